// SPDX-License-Identifier: GPL-2.0-only

//! Measures what userfault costs, and what it is to be compared with.
//!
//! Each figure is a line of its own, `# bench: name=... value=... unit=...`. On a machine where an
//! instruction takes a nanosecond, times are numbers of instructions. With BENCH_EVENTS in the
//! environment the figures are not times, but how often the kernel did what costs time on hardware
//! only, or waits for others.
//!
//! None fails because something is slow. Where the kernel has no userfault, what can be measured
//! without it still is.

// The priority of a thread, and what a VM is made of, are no business of the tests' crate.
#![allow(unsafe_code)]

#[path = "bench_demand.rs"]
mod demand;
#[path = "bench_events.rs"]
mod events;
#[path = "bench_figure.rs"]
mod figure;
#[path = "bench_toggle.rs"]
mod toggle;

// The modules use all of this.
use demand::*;
use events::*;
use figure::*;
use libkvm::*;
use std::{
    env,
    fs::{
        self,
        File, //
    },
    io::{
        BufRead,
        BufReader,
        Read,
        Write, //
    },
    os::fd::{
        AsRawFd,
        FromRawFd,
        RawFd, //
    },
    path::Path,
    sync::{
        atomic::{
            AtomicBool,
            AtomicU64,
            Ordering, //
        },
        mpsc,
        OnceLock, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};
use toggle::*;

/// Returns how large the slot is, unless another size is named: smaller where each hypercall is read
/// from a trace.
fn size() -> usize {
    if counts_hypercalls() {
        4 << 20
    } else {
        64 << 20
    }
}

/// How often KVM_RUN is called to see what it takes.
const RUNS: usize = 1000;

/// Where there is neither memory nor a device.
const NOWHERE: u64 = GPA.0 - (1 << 20);

guest_code! {
    /// Reads the first word of each page, at the price of four instructions a page, and then calls
    /// the host, over and over. To begin with it does not even read.
    fn touch(guest: Guest, base: Gva, pages: u64, stride: u64) {
        loop {
            guest.sync(0, 0);
            let mut address = base;
            let mut page = 0;
            while page != pages {
                guest.read(address);
                address = address + Bytes(stride);
                page = page.wrapping_add(1);
            }
        }
    }

    /// Writes to where there is nothing, over and over.
    fn write_nowhere(guest: Guest, _base: Gva, _pages: u64, _stride: u64) {
        loop {
            guest.write(Gva(NOWHERE), 0);
        }
    }
}

extern "C" {
    fn syscall(number: i64, ...) -> i64;
    /// libkvm's: VMs get no interrupt controller by default.
    fn test_disable_default_vgic();
}

/// Returns the file that a system call has opened, or nothing where it has failed.
fn opened(fd: i64) -> Option<File> {
    // SAFETY: The descriptor is new, and nobody else's.
    (fd >= 0).then(|| unsafe { File::from_raw_fd(fd as i32) })
}

/// Makes a request that takes so many words, and returns whether it succeeded.
fn ioctl<const WORDS: usize>(fd: RawFd, request: u64, argument: &mut [u64; WORDS]) -> bool {
    const IOCTL: i64 = 29;
    let request = request | (size_of_val(argument) as u64) << 16;
    // SAFETY: The request says how long the argument is.
    unsafe { syscall(IOCTL, i64::from(fd), request, argument.as_mut_ptr()) == 0 }
}

/// Returns a machine whose vCPUs are about to touch the pages of a slot, each its share. Pages that
/// are to spare are touched by none.
fn machine_with(backing: Backing, size: usize, spare: usize, vcpus: usize) -> Machine {
    let pages = size / page_size();
    let mut machine = Machine::with_guest(backing, pages + spare, vcpus, touch);
    let share = pages / vcpus;
    for (number, vcpu) in machine.vcpus.iter_mut().enumerate() {
        let start = Gva(machine.slot.gpa(Page(number * share)).0);
        vcpu.set_args(start, share as u64, page_size() as u64);
        assert_eq!(vcpu.run(), Exit::Sync(0, 0));
    }
    machine
}

/// Returns a machine with one vCPU, whose slot has all of its memory and is mapped in the guest's
/// tables. These are walked here, so that no figure has them.
fn machine(backing: Backing, size: usize) -> Machine {
    let mut machine = machine_with(backing, size, 0, 1);
    machine.slot.fill();
    touch_all(&mut machine, none_marked);
    unmap(&machine);
    machine
}

/// Has KVM forget all mappings of the slot.
fn unmap(machine: &Machine) {
    let region = machine.slot.region();
    assert_eq!(region.delete(), Ok(()));
    assert_eq!(machine.slot.region().set(), Ok(()));
}

/// Lets the only vCPU touch each page once, and calls `resolve` for each that is marked.
fn touch_all(machine: &mut Machine, resolve: impl FnMut(Page)) {
    touch_share(&mut machine.vcpus[0], &machine.slot, resolve);
}

/// Lets a vCPU touch each page of its share once, as [`touch_all`] does.
fn touch_share(vcpu: &mut Vcpu, slot: &Slot, mut resolve: impl FnMut(Page)) {
    loop {
        match vcpu.run() {
            Exit::Userfault { gpa, .. } => resolve(slot.page_of(gpa)),
            Exit::Sync(0, 0) => return,
            other => panic!("unexpected exit: {other:x?}"),
        }
    }
}

/// As [`touch_all`], where nothing is to be done for a marked page but to clear the mark.
fn touch_and_clear(machine: &mut Machine, bitmap: &Bitmap) {
    touch_all(machine, |page| {
        bitmap.clear(page);
    });
}

/// What to do about a marked page where none is.
fn none_marked(page: Page) {
    panic!("{page:?} is not marked");
}

/// Returns a bitmap with so many percent of the pages marked, evenly.
fn marked(percent: usize, pages: usize) -> Bitmap {
    let bitmap = Bitmap::new(pages);
    for page in (0..pages).filter(|page| page * percent % 100 < percent) {
        bitmap.mark(Page(page));
    }
    bitmap
}

/// Measures faults in a slot that has never had the flag, on memory that no guest has used.
fn faults(name: &str, backing: Backing) {
    let mut machine = machine(backing, size());
    Figure::new(size(), 0).per_page().report([name], || {
        unmap(&machine);
        [sample(|| touch_all(&mut machine, none_marked))]
    });
}

/// What every fault costs, a page each.
fn fault() {
    faults("fault", Backing::Anonymous);
}

/// The same where a fault maps a block.
fn fault_block() {
    faults("fault-block", Backing::AnonymousThp);
}

/// Measures calls of KVM_RUN, of which the guest would do the same over and over.
fn runs(name: &str, marked: usize, vcpu: &mut Vcpu) {
    let mut figure = Figure::new(size(), marked);
    figure.per = ("/run", RUNS);
    figure.report([name], || {
        [sample(|| {
            for _ in 0..RUNS {
                vcpu.run();
            }
        })]
    });
}

/// A yardstick: an exit that every VMM knows.
fn mmio_exit() {
    let pages = size() / page_size();
    let mut machine = Machine::with_guest(Backing::Anonymous, pages, 1, write_nowhere);
    machine.vm.map(Gva(NOWHERE), Gpa(NOWHERE), 1);
    runs("mmio-exit", 0, &mut machine.vcpus[0]);
    assert!(matches!(machine.run(), Exit::Mmio { is_write: true, .. }));
}

/// An exit for a marked page, and nothing done about it.
fn userfault_exit() {
    needs_userfault();
    let mut machine = machine(Backing::Anonymous, size());
    let bitmap = Bitmap::marked(machine.slot.pages());
    let _flag = machine.enable(&bitmap);
    runs("userfault-exit", 100, &mut machine.vcpus[0]);
    assert_eq!(machine.run(), machine.userfault(Page(0)));
}

/// All that a marked page takes whose content is there: the exit, clearing the mark, running again,
/// mapping the page.
fn userfault_page() {
    needs_userfault();
    let mut machine = machine(Backing::Anonymous, size());
    Figure::new(size(), 100)
        .per_page()
        .report(["userfault-page"], || {
            let bitmap = Bitmap::marked(machine.slot.pages());
            let _flag = machine.slot.enable(&bitmap);
            let vcpu = &mut machine.vcpus[0];
            let mut end = None;
            let sample = sample(|| {
                for page in pages(0..bitmap.pages()) {
                    // Nothing is spent on finding out: it is the next page's turn.
                    vcpu.run();
                    bitmap.clear(page);
                }
                end = Some(vcpu.run());
            });
            assert_eq!(end, Some(Exit::Sync(0, 0)));
            [sample]
        });
}

/// Setting the flag with all pages mapped, touching all pages again, and clearing the flag with all
/// pages mapped.
fn marked_share() {
    needs_userfault();
    let mut machine = machine(Backing::Anonymous, size());
    touch_all(&mut machine, none_marked);
    for share in [0, 1, 10, 25, 50, 100] {
        Figure::new(size(), share).report(["enable", "touch", "disable"], || {
            let bitmap = marked(share, machine.slot.pages());
            let slot = machine.slot.clone();
            let mut flag = None;
            [
                sample_call(|| flag = Some(slot.enable(&bitmap))),
                sample(|| touch_and_clear(&mut machine, &bitmap)),
                sample_call(|| drop(flag)),
            ]
        });
    }
}

/// What setting the flag is to be compared with: all of the slot is touched, and then KVM forgets
/// it, because it is deleted.
fn flush() {
    let mut machine = machine(Backing::Anonymous, size());
    Figure::new(size(), 0).report(["flush-touch", "flush"], || {
        let touch = sample(|| touch_all(&mut machine, none_marked));
        let region = machine.slot.region();
        let flush = sample_call(|| assert_eq!(region.delete(), Ok(())));
        assert_eq!(machine.slot.region().set(), Ok(()));
        [touch, flush]
    });
}

/// Taking one page back: marking and dropping it, and touching all of its block again, where memory
/// is in a block of the host and where it is in pages.
fn rearm() {
    needs_userfault();
    let block = Backing::ShmemThp.need_huge_pages(1);
    for (backing, names) in [
        (Backing::ShmemThp, ["rearm-block", "rearm-block-touch"]),
        (Backing::Shmem, ["rearm-page", "rearm-page-touch"]),
    ] {
        let mut machine = Machine::with_guest(backing, block, 1, touch);
        machine.slot.fill();
        touch_all(&mut machine, none_marked);
        Figure::new(block * page_size(), 0).report(names, || {
            if backing == Backing::ShmemThp {
                // Dropping a page has split the mapping.
                machine.slot.need_huge();
            }
            unmap(&machine);
            let bitmap = Bitmap::new(block);
            let slot = machine.slot.clone();
            let _flag = slot.enable(&bitmap);
            touch_all(&mut machine, none_marked);
            let page = Page(block / 2);
            let mark_and_drop = || {
                bitmap.mark(page);
                slot.discard(page);
            };
            [
                sample(mark_and_drop),
                sample(|| touch_and_clear(&mut machine, &bitmap)),
            ]
        });
    }
}

/// Clearing and setting the flag with all pages mapped, in slots of several sizes.
fn slot_size() {
    needs_userfault();
    for size in [16 << 20, 64 << 20, 256 << 20] {
        let mut machine = machine(Backing::Anonymous, size);
        let slot = machine.slot.clone();
        let bitmap = Bitmap::new(slot.pages());
        let flag = slot.enable(&bitmap);
        touch_all(&mut machine, none_marked);
        let disable = sample_call(|| drop(flag));
        Figure::new(size, 0).show("disable-by-size", disable);
        let bitmap = marked(1, slot.pages());
        let enable = sample_call(|| drop(slot.enable(&bitmap)));
        Figure::new(size, 1).show("enable-by-size", enable);
    }
}

/// How long setting the flag keeps others from the CPU.
fn latency() {
    needs_userfault();
    let mut machine = machine(Backing::Anonymous, size());
    for share in [0, 1] {
        touch_all(&mut machine, none_marked);
        let bitmap = marked(share, machine.slot.pages());
        let slot = machine.slot.clone();
        let enable = sample_lateness(|| drop(slot.enable(&bitmap)));
        Figure::new(size(), share).show("latency-enable", enable);
    }
    touch_all(&mut machine, none_marked);
    let region = machine.slot.region();
    let flush = sample_lateness(|| assert_eq!(region.delete(), Ok(())));
    Figure::new(size(), 0).show("latency-flush", flush);
}

/// What faults cost in a slot with the flag whose memory could be mapped by blocks: none marked.
fn unmarked_block() {
    needs_userfault();
    let mut machine = machine(Backing::AnonymousThp, size());
    Figure::new(size(), 0)
        .per_page()
        .report(["unmarked-block"], || {
            // Nothing is mapped when the flag is set, so that all is mapped under it.
            unmap(&machine);
            let bitmap = Bitmap::new(machine.slot.pages());
            let slot = machine.slot.clone();
            let _flag = slot.enable(&bitmap);
            [sample(|| touch_all(&mut machine, none_marked))]
        });
}

/// The same where the VMM, asked for a page, supplies the whole block around it.
fn prefetched_block() {
    needs_userfault();
    let mut machine = machine(Backing::AnonymousThp, size());
    let block = Backing::AnonymousThp.need_huge_pages(1);
    Figure::new(size(), 100)
        .per_page()
        .report(["prefetched-block"], || {
            let bitmap = Bitmap::marked(machine.slot.pages());
            let slot = machine.slot.clone();
            let _flag = slot.enable(&bitmap);
            let clear_block = |page: Page| {
                let start = page.0 - page.0 % block;
                for page in pages(start..start + block) {
                    bitmap.clear(page);
                }
            };
            [sample(|| touch_all(&mut machine, clear_block))]
        });
}

/// Prepares for what was asked for.
fn prepare() {
    // The figures would be less about memory with it.
    // SAFETY: It sets a variable, before there is any VM.
    unsafe { test_disable_default_vgic() };
    prepare_events();
}

test_main! {
    about: "Measures what userfault costs.",
    needs: prepare,
    cases: [
        fault,
        fault_block,
        mmio_exit,
        userfault_exit,
        userfault_page,
        marked_share,
        flush,
        rearm,
        slot_size,
        latency,
        unmarked_block,
        prefetched_block,
        demand_userfault,
        demand_userfault_copy,
        demand_userfault_file,
        demand_userfault_handler,
        demand_missing,
        demand_minor,
        toggle,
        fault_meanwhile,
    ],
}
