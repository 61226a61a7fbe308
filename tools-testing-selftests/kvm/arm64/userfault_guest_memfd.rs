// SPDX-License-Identifier: GPL-2.0-only

//! Userfault on slots that are bound to a guest_memfd.
//!
//! A change of flags replaces the slot inside KVM. A failure means that the new one lost what it
//! was bound to, so that a VMM which toggles userfault loses its guest.

use libkvm::*;
use std::{
    sync::atomic::{
        AtomicBool,
        AtomicUsize,
        Ordering, //
    },
    thread,
    time::Instant, //
};

const PAGES: usize = 16;

fn machine() -> Machine {
    let machine = Machine::new(Backing::GuestMemfd, PAGES);
    machine.slot.fill();
    machine
}

/// Returns a machine whose slot has `count` pages from page `first` of its guest_memfd on, with
/// each page's number in the slot.
fn machine_at(first: usize, count: usize, vcpus: usize, entry: guest::Entry) -> Machine {
    let (mut vm, vcpus) = Vm::new(count, vcpus, entry);
    let area = vm.guest_memfd(first + count, first);
    let slot = Slot::of_area(&mut vm, &area, SLOT, GPA);
    slot.fill();
    Machine::of_slot((vm, vcpus), slot)
}

/// Puts other memory where the slot has its file mapped, so that guest_memfd alone tells KVM of a
/// hole, and no MMU notifier.
///
/// Returns another mapping of the file.
fn unmap_file(machine: &Machine) -> Area {
    let area = machine.slot.area();
    let alias = area.alias();
    area.replace(0..area.pages());
    alias
}

/// Marked pages exit and others do not, before and after the flag is set, cleared and set again,
/// and the memory is always the same, wherever in its file the slot begins and ends.
fn toggle_keeps_the_memory() {
    for (first, count) in [(0, PAGES), (1, 16), (3, 70), (64, 64), (100, 37), (511, 5)] {
        let mut machine = machine_at(first, count, 1, guest::read_pages);
        let bitmap = Bitmap::new(count);
        machine.read_all();
        for marked in [0, 3, count - 1] {
            bitmap.mark(Page(marked));
            let flag = machine.enable(&bitmap);
            machine.read(0..marked);
            expect_eq!(
                machine.run(),
                machine.userfault(Page(marked)),
                "from page {first} on"
            );
            bitmap.clear(Page(marked));
            machine.read(marked..count);
            flag.disable();
            machine.read_all();
        }
    }
}

/// A hole that is punched after a toggle is a hole for the guest too, at the first page of the
/// slot, at the last and between, and at no other.
fn toggle_keeps_the_binding() {
    for (first, count) in [(0, PAGES), (3, 70), (100, 37)] {
        let mut machine = machine_at(first, count, 1, guest::read_pages);
        let bitmap = Bitmap::new(count);
        let file = unmap_file(&machine);
        machine.read_all();
        for hole in [0, 5, count - 1].map(Page) {
            let hole_is_seen = |machine: &mut Machine, what| {
                machine.slot.discard(hole);
                machine.read(0..hole.0);
                expect_eq!(
                    machine.run(),
                    Exit::Sync(hole.into(), 0),
                    "{what}, at {first}"
                );
                machine.read(hole.0 + 1..count);
                file.word(hole, 0).store(hole.into(), Ordering::Relaxed);
                machine.read_all();
            };
            let flag = machine.enable(&bitmap);
            hole_is_seen(&mut machine, "set");
            flag.disable();
            hole_is_seen(&mut machine, "clear");
        }
    }
}

/// A slot may be created with the flag, and loses it.
fn slot_is_created_with_the_flag() {
    for (first, count) in [(0, PAGES), (3, 70)] {
        let mut machine = machine_at(first, count, 1, guest::read_pages);
        let bitmap = Bitmap::new(count).with(2..3);
        let flag = machine.slot.recreate(&bitmap);
        machine.read(0..2);
        expect_eq!(machine.run(), machine.userfault(Page(2)));
        bitmap.clear(Page(2));
        machine.read(2..count);
        flag.disable();
        machine.slot.discard(Page(4));
        machine.read(0..4);
        expect_eq!(machine.run(), Exit::Sync(4, 0));
    }
}

/// Everything but userfault stays as it is for a slot's life, and so do file and offset.
fn nothing_else_changes() {
    const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;
    const FILE: u32 = KVM_MEM_GUEST_MEMFD;
    let mut machine = machine();
    let other = machine.vm.guest_memfd(PAGES, 0);
    let bitmap = Bitmap::new(PAGES);
    let elsewhere = Gpa(3 << 30);
    let slot = machine.slot.clone();
    let region = || slot.region();
    let toggled = || region().toggled(KVM_MEM_USERFAULT).bitmap(&bitmap);
    let page = Bytes::of_pages(1);
    let refused = |what, change: Region| {
        expect_eq!(change.set_unguarded(), Err(Errno::EINVAL), "{what}");
    };

    refused("nothing", region());
    refused("its place", region().at(elsewhere));
    refused("set flag and place", toggled().at(elsewhere));
    refused("set flag and log", toggled().toggled(LOG));
    refused("set flag, no file", toggled().toggled(FILE));
    refused("set flag and offset", toggled().guest_memfd_offset(page));
    refused("set flag and file", toggled().guest_memfd(Some(&other)));
    let closed = toggled().guest_memfd(None).set_unguarded();
    expect_eq!(closed, Err(Errno::EBADF), "set flag, named no file");

    let flag = machine.enable(&bitmap);
    refused("place, with flag", region().at(elsewhere));
    refused("offset, with flag", region().guest_memfd_offset(page));
    refused("file, with flag", region().guest_memfd(Some(&other)));
    refused("cleared flag and place", toggled().at(elsewhere));
    refused("cleared flag and log", toggled().toggled(LOG));
    refused("cleared flag, no file", toggled().toggled(FILE));
    let same = slot.region().set_unguarded();
    expect_eq!(same, Ok(()), "the same while the flag is set");
    machine.read_all();
    flag.disable();
    machine.read_all();
}

/// A toggle leaves another slot alone that has the next part of the file.
fn neighbours_in_a_file() {
    let (mut vm, mut vcpus) = Vm::new(2 * PAGES, 1, guest::read_pages);
    let area = vm.guest_memfd(2 * PAGES, 0);
    area.fill();
    vm.map(Gva(GPA.0), GPA, 2 * PAGES);
    vcpus[0].set_args(Gva(GPA.0), 2 * PAGES as u64, page_size() as u64);
    let slots = [0..PAGES, PAGES..2 * PAGES].map(|part| {
        let id = SLOT + u32::from(part.start != 0);
        let slot = Slot::undeclared(&vm, &area, id, GPA);
        expect_eq!(slot.region().part(part).set(), Ok(()));
        slot
    });
    let bitmap = Bitmap::new(PAGES);
    for slot in &slots {
        slot.enable(&bitmap).disable();
        // The other is bound still: the hole is its own, too.
        for hole in [0, PAGES - 1, PAGES, 2 * PAGES - 1].map(Page) {
            area.punch(hole.0..hole.0 + 1);
            for page in pages(0..2 * PAGES) {
                let word = if page == hole { 0 } else { page.into() };
                expect_eq!(vcpus[0].run(), Exit::Sync(page.into(), word));
            }
            area.word(hole, 0).store(hole.into(), Ordering::Relaxed);
        }
    }
}

/// A call that is refused keeps nothing of the file that it names, which would keep the VM.
fn refused_call_keeps_no_file() {
    let machine = machine();
    let other = machine.vm.guest_memfd(PAGES, 0);
    let bitmap = Bitmap::new(PAGES);
    let enabled = machine
        .slot
        .region()
        .toggled(KVM_MEM_USERFAULT)
        .bitmap(&bitmap);
    let refused = enabled.guest_memfd(Some(&other)).set_unguarded();
    expect_eq!(refused, Err(Errno::EINVAL));
    let debugfs = machine.vm.debugfs();
    drop((machine, other));
    ktap::wait_for("the VM to go", || !debugfs.is_dir());
}

/// Toggling and punching holes while vCPUs run: none sees anything but userfaults and zeroes.
///
/// The slot neither begins where its file does nor has a size that is a power of two.
fn toggle_under_vcpus() {
    let (first, count) = (3, 70);
    let mut machine = machine_at(first, count, 2, guest::hunt_zero);
    let bitmap = Bitmap::new(count).with(0..1);
    machine.slot.write(Page(0), 0, 1);
    let userfault = machine.userfault(Page(0));
    let (exits, holes) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let on_exit = |_, exit| match exit {
        exit if exit == userfault => {
            exits.fetch_add(1, Ordering::Relaxed);
            thread::yield_now();
        }
        Exit::Sync(page, 0) if page != 0 => {
            holes.fetch_add(1, Ordering::Relaxed);
        }
        other => panic!("unexpected exit: {other:x?}"),
    };
    let finished = AtomicBool::new(false);
    let slot = machine.slot.clone();
    thread::scope(|scope| {
        // The holes are another thread's, at any moment of the toggle.
        scope.spawn(|| {
            let mut round = 0;
            while !finished.load(Ordering::Relaxed) {
                let page = Page(1 + round % (count - 1));
                slot.discard(page);
                slot.write(page, 0, 1);
                round += 7;
            }
        });
        machine.run_while(on_exit, |slot| {
            let are = |count: &AtomicUsize, least| count.load(Ordering::Relaxed) >= least;
            let are_seen = || are(&exits, 20) && are(&holes, 1);
            for _ in ktap::rounds(300, "20 exits and a hole", are_seen) {
                slot.enable(&bitmap).disable();
            }
        });
        finished.store(true, Ordering::Relaxed);
    });
}

/// What is punched out while the flag is being set or cleared is not mapped afterwards, at whatever
/// moment of that call.
fn hole_at_the_moment_of_a_toggle() {
    let (first, count) = (100, 37);
    let mut machine = machine_at(first, count, 1, guest::read_pages);
    let bitmap = Bitmap::new(count);
    let (slot, file) = (machine.slot.clone(), unmap_file(&machine));
    // Calls take about as long as this one.
    let start = Instant::now();
    let mut flag = Some(slot.enable(&bitmap));
    let call = start.elapsed();
    for round in 0..160 {
        let hole = Page(round % count);
        machine.read_all();
        let moment = call * (round as u32 / 2 % 16) / 12;
        let started = AtomicBool::new(false);
        flag = thread::scope(|scope| {
            scope.spawn(|| {
                started.store(true, Ordering::Relaxed);
                let start = Instant::now();
                while start.elapsed() < moment {
                    std::hint::spin_loop();
                }
                slot.discard(hole);
            });
            while !started.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            match flag {
                Some(flag) => {
                    flag.disable();
                    None
                }
                None => Some(slot.enable(&bitmap)),
            }
        });
        machine.read(0..hole.0);
        let what = ["set", "clear"][round % 2];
        expect_eq!(
            machine.run(),
            Exit::Sync(hole.into(), 0),
            "round {round}, {what}"
        );
        machine.read(hole.0 + 1..count);
        file.word(hole, 0).store(hole.into(), Ordering::Relaxed);
    }
}

/// A VMM that has closed its file but has the memory mapped can clear the flag, but not set it:
/// that would name the file.
fn flag_is_cleared_when_the_file_is_closed() {
    let mut machine = machine();
    let bitmap = Bitmap::new(PAGES).with(3..4);
    let flag = machine.enable(&bitmap);
    machine.read(0..3);
    expect_eq!(machine.run(), machine.userfault(Page(3)));
    machine.slot.area().close_file();
    flag.disable();
    machine.read(3..PAGES);
    let region = machine
        .slot
        .region()
        .toggled(KVM_MEM_USERFAULT)
        .bitmap(&bitmap);
    expect_eq!(region.set_unguarded(), Err(Errno::EBADF), "set");
    machine.read_all();
}

/// An exit does not make the page that it is for: that may take memory which the VMM has to free
/// first.
fn exit_makes_no_page() {
    let mut machine = Machine::new(Backing::GuestMemfd, PAGES);
    let bitmap = Bitmap::marked(PAGES);
    let _flag = machine.enable(&bitmap);
    expect_eq!(machine.run(), machine.userfault(Page(0)));
    expect_eq!(machine.run(), machine.userfault(Page(0)), "again");
    expect_eq!(machine.slot.area().has_page(Page(0)), false);
    machine.slot.write(Page(0), 0, 7);
    expect_eq!(machine.slot.area().has_page(Page(0)), true);
    bitmap.clear(Page(0));
    expect_eq!(machine.run(), Exit::Sync(0, 7));
}

/// A file that is closed, and mapped no more, takes the memory away from the guest, toggled or not,
/// and nothing else breaks.
///
/// No other file comes in its place.
fn file_may_be_closed() {
    for toggled in [false, true] {
        let mut machine = machine();
        let bitmap = Bitmap::new(PAGES);
        machine.read_all();
        let slot = machine.slot.clone();
        let toggle = || {
            let region = slot.region().toggled(KVM_MEM_USERFAULT);
            region.bitmap(&bitmap).set_unguarded()
        };
        if toggled {
            expect_eq!(toggle(), Ok(()));
        }
        machine.slot.area().close_file();
        machine.slot.area().replace(0..PAGES);
        let exit = machine.run();
        assert!(
            matches!(exit, Exit::MemoryFault { flags: 0, .. }),
            "{exit:x?}"
        );
        // The flag can be cleared, but not set.
        let expected = if toggled { Ok(()) } else { Err(Errno::EBADF) };
        expect_eq!(toggle(), expected);
        let other = machine.vm.guest_memfd(PAGES, 0);
        let region = slot.region().toggled(KVM_MEM_USERFAULT);
        let region = region.bitmap(&bitmap).guest_memfd(Some(&other));
        expect_eq!(region.set_unguarded(), Err(Errno::EINVAL), "another file");
    }
}

test_main! {
    about: "Userfault on slots that are bound to a guest_memfd.",
    needs: needs_userfault,
    cases: [
        toggle_keeps_the_memory,
        toggle_keeps_the_binding,
        slot_is_created_with_the_flag,
        nothing_else_changes,
        neighbours_in_a_file,
        refused_call_keeps_no_file,
        toggle_under_vcpus,
        hole_at_the_moment_of_a_toggle,
        flag_is_cleared_when_the_file_is_closed,
        exit_makes_no_page,
        file_may_be_closed,
    ],
}
