// SPDX-License-Identifier: GPL-2.0-only

//! Guests that are written in Rust.
//!
//! A failure means that other tests in Rust cannot be relied on.

use libkvm::*;
use std::{
    thread,
    time::Duration, //
};

guest_code! {
    /// Hands its arguments to the host, and is done.
    fn tell(guest: Guest, base: Gva, first: u64, second: u64) {
        guest.sync(base.0, first);
        guest.sync(first, second);
        guest.done()
    }

    /// Writes what it reads to the next word, over and over.
    fn copy(guest: Guest, base: Gva, _first: u64, _second: u64) {
        loop {
            guest.write(base + Bytes(8), guest.read(base));
        }
    }

    /// Does nothing that the host would see.
    fn spin(_guest: Guest, _base: Gva, _first: u64, _second: u64) {
        loop {
            std::hint::spin_loop();
        }
    }
}

/// The guest gets its arguments, and the host what the guest says.
fn guest_talks_to_the_host() {
    let (_vm, mut vcpus) = Vm::new(0, 1, tell);
    vcpus[0].set_args(Gva(1), 2, 3);
    expect_eq!(vcpus[0].run(), Exit::Sync(1, 2));
    expect_eq!(vcpus[0].run(), Exit::Sync(2, 3));
    expect_eq!(vcpus[0].run(), Exit::Done);
}

/// An exception that the guest takes is an exit.
fn exception_reaches_the_host() {
    let (_vm, mut vcpus) = Vm::new(0, 1, copy);
    vcpus[0].set_args(Gva(1 << 30), 0, 0);
    // A data abort, which did not change the exception level.
    let (vector, class) = (4, 0x25);
    expect_eq!(vcpus[0].run(), Exit::Exception { vector, class });
}

/// An access to an address without memory says where it was, and what it was.
fn access_without_memory_reaches_the_host() {
    let gpa = Gpa(1 << 30);
    let (mut vm, mut vcpus) = Vm::new(1, 1, copy);
    vm.map(Gva(gpa.0), gpa, 1);
    vcpus[0].set_args(Gva(gpa.0), 0, 0);
    for (gpa, is_write) in [(gpa, false), (gpa + Bytes(8), true)] {
        expect_eq!(vcpus[0].run(), Exit::Mmio { gpa, is_write });
    }
}

/// The guest reads what the host has written to a slot, until that is deleted.
fn guest_reads_a_slot() {
    let gpa = Gpa(1 << 30);
    let (mut vm, mut vcpus) = Vm::new(2, 1, guest::read_pages);
    let slot = Slot::new(&mut vm, Backing::Anonymous, 1, gpa, 2);
    vcpus[0].set_args(Gva(gpa.0), 2, page_size() as u64);
    slot.write(Page(0), 0, 5);
    slot.write(Page(1), 0, 6);
    expect_eq!(vcpus[0].run(), Exit::Sync(0, 5));
    expect_eq!(vcpus[0].run(), Exit::Sync(1, 6));
    slot.write(Page(0), 0, 7);
    expect_eq!(vcpus[0].run(), Exit::Sync(0, 7));

    expect_eq!(slot.region().delete(), Ok(()));
    let gpa = slot.gpa(Page(1));
    let is_write = false;
    expect_eq!(vcpus[0].run(), Exit::Mmio { gpa, is_write });
}

/// A vCPU that never exits can be stopped.
fn kick_stops_a_vcpu() {
    let (_vm, mut vcpus) = Vm::new(0, 1, spin);
    for wait in [0, 1, 100].map(Duration::from_millis) {
        let kicker = vcpus[0].kicker();
        thread::scope(|scope| {
            scope.spawn(move || {
                thread::sleep(wait);
                kicker.kick();
            });
            expect_eq!(vcpus[0].run(), Exit::Kicked);
        });
    }
}

test_main! {
    about: "Guests that are written in Rust.",
    cases: [
        guest_talks_to_the_host,
        exception_reaches_the_host,
        access_without_memory_reaches_the_host,
        guest_reads_a_slot,
        kick_stops_a_vcpu,
    ],
}
