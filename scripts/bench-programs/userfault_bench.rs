// SPDX-License-Identifier: GPL-2.0-only

//! Measures what userfault costs, and what it is to be compared with.
//!
//! Each figure is a line of its own, `# bench: name=... value=... unit=...`. Times are those of the
//! architecture's counter: on a machine that counts an instruction as a nanosecond, they are
//! numbers of instructions. With BENCH_EVENTS in the environment the figures are not times, but how
//! often the kernel did what costs time on hardware only, or waits for others.
//!
//! None fails because something is slow. Where the kernel has no userfault, what can be measured
//! without it still is.

// The priority of a thread, and what a VM is made of, are no business of the tests' crate.
#![allow(unsafe_code)]

#[path = "bench_counter.rs"]
mod counter;
#[path = "bench_demand.rs"]
mod demand;
#[path = "bench_events.rs"]
mod events;
#[path = "bench_figure.rs"]
mod figure;
#[path = "bench_minor.rs"]
mod minor;
#[path = "bench_toggle.rs"]
mod toggle;

use demand::{
    minor as demand_minor,
    missing as demand_missing,
    userfault as demand_userfault,
    userfault_copy as demand_userfault_copy,
    userfault_file as demand_userfault_file,
    userfault_handler as demand_userfault_handler, //
};
use figure::{
    counts_hypercalls,
    sample,
    sample_call,
    sample_lateness,
    Figure,
    REPETITIONS,
    RUNS, //
};
use libkvm::*;
use toggle::{
    fault_meanwhile,
    toggle, //
};

/// Returns how large the slot is, unless another size is named: smaller where each hypercall is read
/// from a trace.
fn size() -> usize {
    if counts_hypercalls() {
        4 << 20
    } else {
        64 << 20
    }
}

/// The sizes of slots where these are varied.
const SIZES: [usize; 3] = [16 << 20, 64 << 20, 256 << 20];

/// How many percent of the pages are marked where that is varied.
const SHARES: [usize; 6] = [0, 1, 10, 25, 50, 100];

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

/// Skips the case where the kernel has no userfault.
fn need_userfault() {
    if system_capability(KVM_CAP_USERFAULT) == 0 {
        ktap::skip("the kernel has no KVM_CAP_USERFAULT");
    }
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
fn touch_all(machine: &mut Machine, mut resolve: impl FnMut(Page)) {
    loop {
        match machine.vcpus[0].run() {
            Exit::Userfault { gpa, .. } => resolve(machine.slot.page_of(gpa)),
            Exit::Sync(0, 0) => return,
            other => panic!("unexpected exit: {other:x?}"),
        }
    }
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
fn faults(name: &'static str, backing: Backing) {
    let mut machine = machine(backing, size());
    Figure::new(name, size())
        .per_page()
        .report((0..REPETITIONS).map(|_| {
            unmap(&machine);
            sample(|| touch_all(&mut machine, none_marked))
        }));
}

/// What every fault costs, a page each.
fn fault() {
    faults("fault", Backing::Anonymous);
}

/// The same where a fault maps a block.
fn fault_block() {
    faults("fault-block", Backing::AnonymousThp);
}

/// Measures calls of KVM_RUN.
fn runs(figure: Figure, vcpu: &mut Vcpu) {
    figure.per_run().report((0..REPETITIONS).map(|_| {
        sample(|| {
            for _ in 0..RUNS {
                // The guest would do the same over and over.
                vcpu.run();
            }
        })
    }));
}

/// A yardstick: an exit that every VMM knows.
fn mmio_exit() {
    let pages = size() / page_size();
    let mut machine = Machine::with_guest(Backing::Anonymous, pages, 1, write_nowhere);
    machine.vm.map(Gva(NOWHERE), Gpa(NOWHERE), 1);
    runs(Figure::new("mmio-exit", size()), &mut machine.vcpus[0]);
    assert!(matches!(machine.run(), Exit::Mmio { is_write: true, .. }));
}

/// An exit for a marked page, and nothing done about it.
fn userfault_exit() {
    need_userfault();
    let mut machine = machine(Backing::Anonymous, size());
    let bitmap = Bitmap::marked(machine.slot.pages());
    let _flag = machine.enable(&bitmap);
    let figure = Figure::new("userfault-exit", size()).marked(100);
    runs(figure, &mut machine.vcpus[0]);
    assert_eq!(machine.run(), machine.userfault(Page(0)));
}

/// All that a marked page takes whose content is there: the exit, clearing the mark, running again,
/// mapping the page.
fn userfault_page() {
    need_userfault();
    let mut machine = machine(Backing::Anonymous, size());
    let figure = Figure::new("userfault-page", size()).marked(100).per_page();
    figure.report((0..REPETITIONS).map(|_| {
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
        sample
    }));
}

/// Setting the flag with all pages mapped, touching all pages again, and clearing the flag with all
/// pages mapped.
fn marked_share() {
    need_userfault();
    let mut machine = machine(Backing::Anonymous, size());
    touch_all(&mut machine, none_marked);
    for share in SHARES {
        let [mut enable, mut touch, mut disable] = [(); 3].map(|()| Vec::new());
        for _ in 0..REPETITIONS {
            let bitmap = marked(share, machine.slot.pages());
            let slot = machine.slot.clone();
            let mut flag = None;
            enable.push(sample_call(|| flag = Some(slot.enable(&bitmap))));
            touch.push(sample(|| {
                touch_all(&mut machine, |page| {
                    bitmap.clear(page);
                })
            }));
            disable.push(sample_call(|| drop(flag)));
        }
        for (name, samples) in [("enable", enable), ("touch", touch), ("disable", disable)] {
            Figure::new(name, size()).marked(share).report(samples);
        }
    }
}

/// What setting the flag is to be compared with: KVM forgets the whole slot, because it is deleted.
/// Then it is there again, and all of it is touched.
fn flush() {
    let mut machine = machine(Backing::Anonymous, size());
    let [mut flush, mut touch] = [(); 2].map(|()| Vec::new());
    for _ in 0..REPETITIONS {
        touch.push(sample(|| touch_all(&mut machine, none_marked)));
        let region = machine.slot.region();
        flush.push(sample_call(|| assert_eq!(region.delete(), Ok(()))));
        assert_eq!(machine.slot.region().set(), Ok(()));
    }
    Figure::new("flush", size()).report(flush);
    Figure::new("flush-touch", size()).report(touch);
}

/// Taking one page back: marking and dropping it, and touching all of its block again, where memory
/// is in a block of the host and where it is in pages.
fn rearm() {
    need_userfault();
    let block = Backing::ShmemThp.need_huge_pages(1);
    for (backing, names) in [
        (Backing::ShmemThp, ["rearm-block", "rearm-block-touch"]),
        (Backing::Shmem, ["rearm-page", "rearm-page-touch"]),
    ] {
        let mut machine = Machine::with_guest(backing, block, 1, touch);
        machine.slot.fill();
        touch_all(&mut machine, none_marked);
        let mut samples = [(); 2].map(|()| Vec::new());
        for _ in 0..REPETITIONS {
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
            samples[0].push(sample(|| {
                bitmap.mark(page);
                slot.discard(page);
            }));
            samples[1].push(sample(|| {
                touch_all(&mut machine, |page| {
                    bitmap.clear(page);
                })
            }));
        }
        for (name, samples) in names.into_iter().zip(samples) {
            Figure::new(name, block * page_size()).report(samples);
        }
    }
}

/// Clearing and setting the flag with all pages mapped, in slots of several sizes.
fn slot_size() {
    need_userfault();
    for size in SIZES {
        let mut machine = machine(Backing::Anonymous, size);
        let slot = machine.slot.clone();
        let bitmap = Bitmap::new(slot.pages());
        let flag = slot.enable(&bitmap);
        touch_all(&mut machine, none_marked);
        Figure::new("disable-by-size", size).report([sample_call(|| drop(flag))]);
        let bitmap = marked(1, slot.pages());
        let figure = Figure::new("enable-by-size", size).marked(1);
        figure.report([sample_call(|| drop(slot.enable(&bitmap)))]);
    }
}

/// The size of a slot that is larger than the machine.
const TERABYTE: usize = 1 << 40;

/// Returns a VM with such a slot, and a bitmap that is all but empty.
fn terabyte_slot() -> (Vm, Slot, Bitmap) {
    let (vm, _) = Vm::new(16, 1, touch);
    let pages = TERABYTE / page_size();
    let slot = Slot::undeclared(&vm, &Area::reserved(pages), SLOT, Gpa(TERABYTE as u64));
    if let Err(error) = slot.region().set() {
        ktap::skip(format!("no slot of a terabyte: {error:?}"));
    }
    let bitmap = Bitmap::new(pages);
    for page in (0..pages).step_by((1 << 30) / page_size()) {
        bitmap.mark(Page(page));
    }
    (vm, slot, bitmap)
}

/// Setting and clearing the flag on it.
fn terabyte() {
    need_userfault();
    let (_vm, slot, bitmap) = terabyte_slot();
    let [mut enable, mut disable] = [(); 2].map(|()| Vec::new());
    for _ in 0..REPETITIONS {
        let mut flag = None;
        enable.push(sample_call(|| flag = Some(slot.enable(&bitmap))));
        disable.push(sample_call(|| drop(flag)));
    }
    Figure::new("enable-terabyte", TERABYTE).report(enable);
    Figure::new("disable-terabyte", TERABYTE).report(disable);
}

/// How long setting the flag keeps others from the CPU.
fn latency() {
    need_userfault();
    let mut machine = machine(Backing::Anonymous, size());
    for share in [0, 1] {
        touch_all(&mut machine, none_marked);
        let bitmap = marked(share, machine.slot.pages());
        let slot = machine.slot.clone();
        let figure = Figure::new("latency-enable", size()).marked(share);
        figure.report([sample_lateness(|| drop(slot.enable(&bitmap)))]);
    }
    touch_all(&mut machine, none_marked);
    let region = machine.slot.region();
    let flush = || assert_eq!(region.delete(), Ok(()));
    Figure::new("latency-flush", size()).report([sample_lateness(flush)]);
    let (_vm, slot, bitmap) = terabyte_slot();
    let figure = Figure::new("latency-enable-terabyte", TERABYTE);
    figure.report([sample_lateness(|| drop(slot.enable(&bitmap)))]);
}

/// What faults cost in a slot with the flag whose memory could be mapped by blocks: none marked.
fn unmarked_block() {
    need_userfault();
    let mut machine = machine(Backing::AnonymousThp, size());
    let figure = Figure::new("unmarked-block", size()).per_page();
    figure.report((0..REPETITIONS).map(|_| {
        // Nothing is mapped when the flag is set, so that all is mapped under it.
        unmap(&machine);
        let bitmap = Bitmap::new(machine.slot.pages());
        let slot = machine.slot.clone();
        let _flag = slot.enable(&bitmap);
        sample(|| touch_all(&mut machine, none_marked))
    }));
}

/// The same where the VMM, asked for a page, supplies the whole block around it.
fn prefetched_block() {
    need_userfault();
    let mut machine = machine(Backing::AnonymousThp, size());
    let block = Backing::AnonymousThp.need_huge_pages(1);
    let figure = Figure::new("prefetched-block", size())
        .marked(100)
        .per_page();
    figure.report((0..REPETITIONS).map(|_| {
        let bitmap = Bitmap::marked(machine.slot.pages());
        let slot = machine.slot.clone();
        let _flag = slot.enable(&bitmap);
        sample(|| {
            touch_all(&mut machine, |page| {
                let start = page.0 - page.0 % block;
                for page in pages(start..start + block) {
                    bitmap.clear(page);
                }
            })
        })
    }));
}

extern "C" {
    /// libkvm's: VMs get no interrupt controller by default.
    fn test_disable_default_vgic();
}

/// Prepares for what was asked for.
fn prepare() {
    // The figures would be less about memory with it.
    // SAFETY: It sets a variable, before there is any VM.
    unsafe { test_disable_default_vgic() };
    figure::prepare();
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
        terabyte,
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
