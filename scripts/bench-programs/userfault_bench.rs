// SPDX-License-Identifier: GPL-2.0-only

//! Measures what userfault costs, and what it is to be compared with.
//!
//! Each figure is a line of its own, `# bench: name=... value=... unit=...`. Times are those of the
//! architecture's counter: on a machine that counts an instruction as a nanosecond, they are
//! numbers of instructions. With BENCH_EVENTS in the environment the figures are not times, but how
//! often the kernel did what costs time on hardware only, or waits for others: that takes a kernel
//! with `CONFIG_FUNCTION_PROFILER` and `CONFIG_LOCK_STAT`.
//!
//! None fails because something is slow. Where the kernel has no userfault, what can be measured
//! without it still is.

// The priority of a thread, and what a VM is made of, are no business of the tests' crate.
#![allow(unsafe_code)]

#[path = "bench_counter.rs"]
mod counter;
#[path = "bench_events.rs"]
mod events;
#[path = "bench_minor.rs"]
mod minor;

use counter::{
    lateness,
    Moment, //
};
use events::{
    Counter,
    Event, //
};
use libkvm::*;
use minor::Minor;
use std::{
    env,
    sync::OnceLock,
    thread,
    time::Duration, //
};

/// The size of a slot, unless it is what is varied.
const SIZE: usize = 64 << 20;

/// The sizes of slots where these are varied.
const SIZES: [usize; 4] = [16 << 20, 64 << 20, 256 << 20, 1 << 30];

/// How many percent of the pages are marked where that is varied.
const SHARES: [usize; 7] = [0, 1, 10, 25, 50, 75, 100];

/// How much memory is paged in on demand, and by how many vCPUs together.
const DEMAND: usize = 16 << 20;
const VCPUS: [usize; 4] = [1, 2, 4, 8];

/// Of so many repetitions the least is what counts: in the others a timer's interrupt took its
/// share.
const REPETITIONS: usize = 3;

/// How often KVM_RUN is called to see what it takes.
const RUNS: usize = 1000;

/// Where there is neither memory nor a device.
const NOWHERE: u64 = GPA.0 - (1 << 20);

const MMAP_LOCK: &[&str] = &["&mm->mmap_lock"];
const MMU_LOCK: &[&str] = &["&(kvm)->mmu_lock"];
const SLOTS_LOCK: &[&str] = &["&kvm->slots_lock"];
const USERFAULTFD_LOCKS: &[&str] = &["&ctx->fd_wqh", "&ctx->fault_wqh", "&ctx->fault_pending_wqh"];

/// What is counted.
const EVENTS: &[(&str, Event)] = &[
    ("unmap", Event::Calls(&["kvm_pgtable_stage2_unmap", "kvm_pgtable_stage2_unmap_noflush"])),
    ("tlb-vmid", Event::Calls(&["__kvm_tlb_flush_vmid"])),
    ("tlb-page", Event::Calls(&["__kvm_tlb_flush_vmid_ipa", "__kvm_tlb_flush_vmid_ipa_nsh"])),
    ("tlb-range", Event::Calls(&["__kvm_tlb_flush_vmid_range"])),
    ("clean-page", Event::Calls(&["clean_dcache_guest_page"])),
    ("icache-page", Event::Calls(&["invalidate_icache_guest_page"])),
    ("table-cache-top-up", Event::Calls(&["kvm_mmu_topup_memory_cache"])),
    ("mmap-lock", Event::Taken(MMAP_LOCK)),
    ("mmap-lock-wait", Event::Contended(MMAP_LOCK)),
    ("mmu-lock", Event::Taken(MMU_LOCK)),
    ("mmu-lock-wait", Event::Contended(MMU_LOCK)),
    ("mmu-lock-longest-hold", Event::LongestHold(MMU_LOCK)),
    ("slots-lock", Event::Taken(SLOTS_LOCK)),
    ("slots-lock-longest-hold", Event::LongestHold(SLOTS_LOCK)),
    ("userfaultfd-lock", Event::Taken(USERFAULTFD_LOCKS)),
    ("userfaultfd-lock-wait", Event::Contended(USERFAULTFD_LOCKS)),
];

/// Counts events, where that is asked for.
static COUNTER: OnceLock<Counter> = OnceLock::new();

/// What an operation took.
enum Sample {
    /// So many nanoseconds.
    Time(f64),
    /// So many of each event.
    Events(Vec<(&'static str, f64)>),
}

/// Measures an operation.
fn sample(operation: impl FnOnce()) -> Sample {
    match COUNTER.get() {
        Some(counter) => Sample::Events(counter.count(operation).expect("cannot count")),
        None => {
            let start = Moment::now();
            operation();
            Sample::Time(start.elapsed())
        }
    }
}

/// Measures how long others have to wait for the CPU because of an operation.
fn sample_lateness(operation: impl FnOnce()) -> Sample {
    match lateness(operation) {
        Some(time) => Sample::Time(time),
        None => ktap::skip("no thread that runs at once"),
    }
}

/// What a figure is about.
struct Figure {
    name: &'static str,
    vcpus: usize,
    pages: usize,
    /// How many percent of the pages are marked.
    marked: usize,
    /// What the figure is for one of, and how many of these there are.
    per: (&'static str, usize),
}

impl Figure {
    /// Describes a figure about a slot of `size` bytes.
    fn new(name: &'static str, size: usize) -> Self {
        Self {
            name,
            vcpus: 1,
            pages: size / page_size(),
            marked: 0,
            per: ("", 1),
        }
    }

    fn vcpus(self, vcpus: usize) -> Self {
        Self { vcpus, ..self }
    }

    fn marked(self, marked: usize) -> Self {
        Self { marked, ..self }
    }

    fn per_page(self) -> Self {
        let per = ("/page", self.pages);
        Self { per, ..self }
    }

    fn per_run(self) -> Self {
        let per = ("/run", RUNS);
        Self { per, ..self }
    }

    /// Reports the least time, or the events of the last repetition: these are the same each time
    /// but for the first, when the kernel may have had to set up something.
    fn report(&self, samples: impl IntoIterator<Item = Sample>) {
        let (mut least, mut last) = (None, Vec::new());
        for sample in samples {
            match sample {
                Sample::Time(time) => least = Some(least.map_or(time, |least| time.min(least))),
                Sample::Events(events) => last = events,
            }
        }
        let (unit, number) = self.per;
        if let Some(time) = least {
            self.print("", time / number as f64, &format!("ns{unit}"));
        }
        for (event, number) in last {
            self.print(event, number, "events");
        }
    }

    fn print(&self, event: &str, value: f64, unit: &str) {
        let of = if event.is_empty() { "" } else { "event=" };
        println!(
            "# bench: name={:<20} vcpus={} slot_pages={:<9} marked={:<3} {of}{event:<24} \
             value={value:<12.1} unit={unit}",
            self.name, self.vcpus, self.pages, self.marked,
        );
    }
}

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
    let mut machine = machine(backing, SIZE);
    Figure::new(name, SIZE)
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
    let pages = SIZE / page_size();
    let mut machine = Machine::with_guest(Backing::Anonymous, pages, 1, write_nowhere);
    machine.vm.map(Gva(NOWHERE), Gpa(NOWHERE), 1);
    runs(Figure::new("mmio-exit", SIZE), &mut machine.vcpus[0]);
    assert!(matches!(machine.run(), Exit::Mmio { is_write: true, .. }));
}

/// An exit for a marked page, and nothing done about it.
fn userfault_exit() {
    need_userfault();
    let mut machine = machine(Backing::Anonymous, SIZE);
    let bitmap = Bitmap::marked(machine.slot.pages());
    let _flag = machine.enable(&bitmap);
    let figure = Figure::new("userfault-exit", SIZE).marked(100);
    runs(figure, &mut machine.vcpus[0]);
    assert_eq!(machine.run(), machine.userfault(Page(0)));
}

/// All that a marked page takes whose content is there: the exit, clearing the mark, running again,
/// mapping the page.
fn userfault_page() {
    need_userfault();
    let mut machine = machine(Backing::Anonymous, SIZE);
    let figure = Figure::new("userfault-page", SIZE).marked(100).per_page();
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
    let mut machine = machine(Backing::Anonymous, SIZE);
    touch_all(&mut machine, none_marked);
    for share in SHARES {
        let [mut enable, mut touch, mut disable] = [(); 3].map(|()| Vec::new());
        for _ in 0..REPETITIONS {
            let bitmap = marked(share, machine.slot.pages());
            let slot = machine.slot.clone();
            let mut flag = None;
            enable.push(sample(|| flag = Some(slot.enable(&bitmap))));
            touch.push(sample(|| {
                touch_all(&mut machine, |page| {
                    bitmap.clear(page);
                })
            }));
            disable.push(sample(|| drop(flag)));
        }
        for (name, samples) in [("enable", enable), ("touch", touch), ("disable", disable)] {
            Figure::new(name, SIZE).marked(share).report(samples);
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
        Figure::new("disable-by-size", size).report([sample(|| drop(flag))]);
        let bitmap = marked(1, slot.pages());
        let figure = Figure::new("enable-by-size", size).marked(1);
        figure.report([sample(|| drop(slot.enable(&bitmap)))]);
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
        enable.push(sample(|| flag = Some(slot.enable(&bitmap))));
        disable.push(sample(|| drop(flag)));
    }
    Figure::new("enable-terabyte", TERABYTE).report(enable);
    Figure::new("disable-terabyte", TERABYTE).report(disable);
}

/// How long setting the flag keeps others from the CPU.
fn latency() {
    need_userfault();
    let mut machine = machine(Backing::Anonymous, SIZE);
    for share in [0, 1] {
        touch_all(&mut machine, none_marked);
        let bitmap = marked(share, machine.slot.pages());
        let slot = machine.slot.clone();
        let figure = Figure::new("latency-enable", SIZE).marked(share);
        figure.report([sample_lateness(|| drop(slot.enable(&bitmap)))]);
    }
    let (_vm, slot, bitmap) = terabyte_slot();
    let figure = Figure::new("latency-enable-terabyte", TERABYTE);
    figure.report([sample_lateness(|| drop(slot.enable(&bitmap)))]);
}

/// What faults cost in a slot with the flag whose memory could be mapped by blocks: none marked.
fn unmarked_block() {
    need_userfault();
    let mut machine = machine(Backing::AnonymousThp, SIZE);
    let figure = Figure::new("unmarked-block", SIZE).per_page();
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
    let mut machine = machine(Backing::AnonymousThp, SIZE);
    let block = Backing::AnonymousThp.need_huge_pages(1);
    let figure = Figure::new("prefetched-block", SIZE).marked(100).per_page();
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

/// Lets each vCPU touch its share of the pages in a thread of its own, and calls `resolve` for each
/// that is marked.
fn touch_shares(vcpus: &mut [Vcpu], slot: &Slot, resolve: impl Fn(Page) + Sync) {
    let resolve = &resolve;
    thread::scope(|scope| {
        for vcpu in vcpus {
            scope.spawn(move || loop {
                match vcpu.run() {
                    Exit::Userfault { gpa, .. } => resolve(slot.page_of(gpa)),
                    Exit::Sync(0, 0) => return,
                    other => panic!("unexpected exit: {other:x?}"),
                }
            });
        }
    });
}

/// Measures paging by userfault: the vCPU's thread fills the page and clears the mark. `supply` is
/// made for the memory and fills a page of it.
fn userfault_demand<S: Fn(Page, &[u8]) + Sync>(
    name: &'static str,
    backing: Backing,
    supply: impl Fn(&Slot) -> S,
) {
    need_userfault();
    let content = vec![2; page_size()];
    for vcpus in VCPUS {
        let figure = Figure::new(name, DEMAND).vcpus(vcpus).marked(100);
        figure.per_page().report((0..REPETITIONS).map(|_| {
            let mut machine = machine_with(backing, DEMAND, 1, vcpus);
            let bitmap = Bitmap::marked(machine.slot.pages());
            let slot = machine.slot.clone();
            let _flag = slot.enable(&bitmap);
            let supply = supply(&slot);
            sample(|| {
                touch_shares(&mut machine.vcpus, &slot, |page| {
                    supply(page, &content);
                    bitmap.clear(page);
                })
            })
        }));
    }
}

/// Paging in anonymous memory by userfault.
fn demand_userfault() {
    userfault_demand("demand-userfault", Backing::Anonymous, |slot| {
        let slot = slot.clone();
        move |page, content: &[u8]| slot.fill_page(page, content)
    });
}

/// The same, where a userfaultfd fills the memory: for KVM's own accesses there has to be one.
fn demand_userfault_copy() {
    userfault_demand("demand-userfault-copy", Backing::Anonymous, |slot| {
        let uffd = Uffd::new(slot.area());
        move |page, content: &[u8]| uffd.copy(page, content)
    });
}

/// Paging in shared memory by userfault, through another mapping of its file.
fn demand_userfault_file() {
    userfault_demand("demand-userfault-file", Backing::Shmem, |slot| {
        // As for MINOR, the file has all of its memory.
        let alias = slot.area().alias();
        pages(0..alias.pages()).for_each(|page| alias.fill_page(page, &vec![1; page_size()]));
        move |page, content: &[u8]| alias.fill_page(page, content)
    });
}

/// Measures paging by userfaultfd: a thread of its own supplies each page and wakes who waits for
/// it. `handler` is made for the memory, waits for a page, supplies it and says which it was.
fn userfaultfd_demand<H: FnMut() -> Page + Send>(
    name: &'static str,
    backing: Backing,
    handler: impl Fn(&Slot) -> H,
) {
    for vcpus in VCPUS {
        let figure = Figure::new(name, DEMAND).vcpus(vcpus);
        figure.per_page().report((0..REPETITIONS).map(|_| {
            let mut machine = machine_with(backing, DEMAND, 1, vcpus);
            let slot = machine.slot.clone();
            let mut handler = handler(&slot);
            let last = Page(slot.pages() - 1);
            thread::scope(|scope| {
                scope.spawn(move || while handler() != last {});
                let sample = sample(|| touch_shares(&mut machine.vcpus, &slot, none_marked));
                // The handler ends with the page that no vCPU has.
                slot.read(last, 0);
                sample
            })
        }));
    }
}

/// Paging in anonymous memory by userfaultfd, which finds it missing.
fn demand_missing() {
    userfaultfd_demand("demand-missing", Backing::Anonymous, |slot| {
        let uffd = Uffd::new(slot.area());
        let content = vec![2; page_size()];
        move || loop {
            if let Some(page) = uffd.wait(Duration::from_secs(20)) {
                uffd.copy(page, &content);
                return page;
            }
        }
    });
}

/// Paging in shared memory, which is there but not mapped, by userfaultfd.
fn demand_minor() {
    userfaultfd_demand("demand-minor", Backing::Shmem, |slot| {
        let alias = slot.area().alias();
        let content = vec![2; page_size()];
        pages(0..alias.pages()).for_each(|page| alias.fill_page(page, &content));
        let uffd = Minor::new(slot.area())
            .unwrap_or_else(|| ktap::skip("no userfaultfd for minor faults"));
        move || {
            let page = uffd.wait();
            alias.fill_page(page, &content);
            uffd.resume(page);
            page
        }
    });
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
    if env::var_os("BENCH_EVENTS").is_some() {
        match Counter::new(EVENTS) {
            Ok(counter) => assert!(COUNTER.set(counter).is_ok()),
            Err(reason) => ktap::skip(reason),
        }
    }
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
        slot_size,
        terabyte,
        latency,
        unmarked_block,
        prefetched_block,
        demand_userfault,
        demand_userfault_copy,
        demand_userfault_file,
        demand_missing,
        demand_minor,
    ],
}
