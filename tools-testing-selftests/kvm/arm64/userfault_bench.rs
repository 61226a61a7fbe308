// SPDX-License-Identifier: GPL-2.0-only

//! Measures what userfault costs, and what it is to be compared with.
//!
//! Each figure is a line of its own, `# bench: name=... value=... unit=...`. Times are those of the
//! architecture's counter: on a machine that counts an instruction as a nanosecond, they are
//! numbers of instructions. With `--events` the figures are not times, but how often the kernel
//! did what costs time on hardware only, or waits for others: that takes a kernel with
//! `CONFIG_FUNCTION_PROFILER` and `CONFIG_LOCK_STAT`.
//!
//! Arguments name the cases to run, all by default. None fails because something is slow. Where the
//! kernel has no userfault, what can be measured without it still is.

use libkvm::{
    fixture::{
        Machine,
        GPA, //
    },
    guest,
    host_page_size,
    ktap,
    lateness,
    system_capability,
    test_main,
    without_interrupt_controller,
    Area,
    Backing,
    BareVm,
    Bitmap,
    Counter,
    Errno,
    Event,
    Exit,
    Moment,
    Region,
    Slot,
    Uffd,
    Vcpu,
    KVM_CAP_USERFAULT,
    KVM_EXIT_MMIO,
    KVM_MEM_USERFAULT, //
};
use std::{
    sync::OnceLock,
    thread, //
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
const NOWHERE: u64 = GPA - (1 << 20);

const MMAP_LOCK: &[&str] = &["&mm->mmap_lock"];
const MMU_LOCK: &[&str] = &["&(kvm)->mmu_lock"];
const USERFAULTFD_LOCKS: &[&str] = &["&ctx->fd_wqh", "&ctx->fault_wqh", "&ctx->fault_pending_wqh"];

/// What is counted with `--events`.
const EVENTS: &[(&str, Event)] = &[
    ("unmap", Event::Calls(&["kvm_pgtable_stage2_unmap"])),
    (
        "tlb-invalidation",
        Event::Calls(&[
            "__kvm_tlb_flush_vmid",
            "__kvm_tlb_flush_vmid_ipa",
            "__kvm_tlb_flush_vmid_ipa_nsh",
            "__kvm_tlb_flush_vmid_range",
        ]),
    ),
    (
        "cache-maintenance",
        Event::Calls(&["clean_dcache_guest_page", "invalidate_icache_guest_page"]),
    ),
    (
        "table-cache-top-up",
        Event::Calls(&["kvm_mmu_topup_memory_cache"]),
    ),
    ("mmap-lock", Event::Taken(MMAP_LOCK)),
    ("mmap-lock-wait", Event::Contended(MMAP_LOCK)),
    ("mmu-lock", Event::Taken(MMU_LOCK)),
    ("mmu-lock-wait", Event::Contended(MMU_LOCK)),
    ("userfaultfd-lock", Event::Taken(USERFAULTFD_LOCKS)),
    ("userfaultfd-lock-wait", Event::Contended(USERFAULTFD_LOCKS)),
];

/// Counts events, with `--events`.
static COUNTER: OnceLock<Counter> = OnceLock::new();

/// What an operation took.
enum Sample {
    /// So many nanoseconds.
    Time(f64),
    /// So many of each event.
    Events(Vec<(&'static str, u64)>),
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
        Ok(time) => Sample::Time(time),
        Err(error) => ktap::skip(format!("no thread that runs at once: {error:?}")),
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
            pages: size / host_page_size(),
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
            self.print(event, number as f64, "");
        }
    }

    fn print(&self, event: &str, value: f64, unit: &str) {
        let of = if event.is_empty() { "" } else { "event=" };
        println!(
            "# bench: name={:<20} vcpus={} slot_pages={:<9} marked={:<3} {of}{event:<20} \
             value={value:<12.1} unit={}",
            self.name,
            self.vcpus,
            self.pages,
            self.marked,
            if event.is_empty() { unit } else { "events" },
        );
    }
}

/// Guest code that reads the first word of each page, at the price of four instructions a page, and
/// then calls the host, over and over. Its own page tables are there before it begins.
extern "C" fn touch(base: u64, pages: u64, stride: u64) -> ! {
    let end = base.wrapping_add(pages.wrapping_mul(stride));
    let mut address = base;
    while address != end {
        guest::walk(address);
        address = address.wrapping_add(stride);
    }
    loop {
        guest::sync(0, 0);
        let mut address = base;
        while address != end {
            guest::read(address);
            address = address.wrapping_add(stride);
        }
    }
}

/// Guest code that writes to where there is nothing, over and over.
extern "C" fn write_nowhere(_: u64, _: u64, _: u64) -> ! {
    loop {
        guest::write(NOWHERE, 0);
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
    let pages = size / host_page_size();
    let mut machine = Machine::with_guest(backing, pages + spare, vcpus, touch);
    let share = pages / vcpus;
    for (number, vcpu) in machine.vcpus.iter_mut().enumerate() {
        let start = machine.slot.gpa(number * share);
        vcpu.set_args([start, share as u64, host_page_size() as u64]);
        assert_eq!(vcpu.run(), Exit::Sync(0, 0));
    }
    machine
}

/// Returns a machine with one vCPU, whose slot has all of its memory.
fn machine(backing: Backing, size: usize) -> Machine {
    let machine = machine_with(backing, size, 0, 1);
    machine.fill();
    machine
}

/// Lets the only vCPU touch each page once, and calls `resolve` for each that is marked.
fn touch_all(machine: &mut Machine, mut resolve: impl FnMut(usize)) {
    loop {
        match machine.vcpus[0].run() {
            Exit::Userfault { gpa, .. } => resolve(machine.slot.page_of(gpa)),
            Exit::Sync(0, 0) => return,
            other => panic!("unexpected exit: {other:x?}"),
        }
    }
}

/// What to do about a marked page where none is.
fn none_marked(page: usize) {
    panic!("page {page} is not marked");
}

/// Returns a bitmap with so many percent of the pages marked, evenly.
fn marked(percent: usize, pages: usize) -> Bitmap<'static> {
    let bitmap = Bitmap::new(pages);
    for page in (0..pages).filter(|page| page * percent % 100 < percent) {
        bitmap.mark(page);
    }
    bitmap
}

/// Measures faults in a slot that has never had the flag, on memory that no guest has used.
fn faults(name: &'static str, backing: Backing) {
    Figure::new(name, SIZE)
        .per_page()
        .report((0..REPETITIONS).map(|_| {
            let mut machine = machine(backing, SIZE);
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
                let _ = vcpu.enter();
            }
        })
    }));
}

/// A yardstick: an exit that every VMM knows.
fn mmio_exit() {
    let pages = SIZE / host_page_size();
    let mut machine = Machine::with_guest(Backing::Anonymous, pages, 1, write_nowhere);
    machine.vm.map(NOWHERE, NOWHERE, 1);
    runs(Figure::new("mmio-exit", SIZE), &mut machine.vcpus[0]);
    assert_eq!(machine.run(), Exit::Other(KVM_EXIT_MMIO));
}

/// An exit for a marked page, and nothing done about it.
fn userfault_exit() {
    need_userfault();
    let mut machine = machine(Backing::Anonymous, SIZE);
    let bitmap = Bitmap::marked(machine.slot.pages());
    machine.enable(&bitmap);
    let figure = Figure::new("userfault-exit", SIZE).marked(100);
    runs(figure, &mut machine.vcpus[0]);
    assert_eq!(machine.run(), machine.userfault(0));
}

/// All that a marked page takes whose content is there: the exit, clearing the mark, running again,
/// mapping the page.
fn userfault_page() {
    need_userfault();
    let mut machine = machine(Backing::Anonymous, SIZE);
    touch_all(&mut machine, none_marked);
    let figure = Figure::new("userfault-page", SIZE).marked(100).per_page();
    figure.report((0..REPETITIONS).map(|_| {
        let bitmap = Bitmap::marked(machine.slot.pages());
        machine.enable(&bitmap);
        let vcpu = &mut machine.vcpus[0];
        let mut end = None;
        let sample = sample(|| {
            for page in 0..machine.slot.pages() {
                // Nothing is spent on finding out: it is the next page's turn.
                let _ = vcpu.enter();
                bitmap.clear(page);
            }
            end = Some(vcpu.run());
        });
        assert_eq!(end, Some(Exit::Sync(0, 0)));
        machine.disable();
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
            enable.push(sample(|| machine.enable(&bitmap)));
            touch.push(sample(|| {
                touch_all(&mut machine, |page| {
                    bitmap.clear(page);
                })
            }));
            disable.push(sample(|| machine.disable()));
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
        let bitmap = Bitmap::new(machine.slot.pages());
        machine.enable(&bitmap);
        touch_all(&mut machine, none_marked);
        Figure::new("disable-by-size", size).report([sample(|| machine.disable())]);
        let bitmap = marked(1, machine.slot.pages());
        let figure = Figure::new("enable-by-size", size).marked(1);
        figure.report([sample(|| machine.enable(&bitmap))]);
    }
}

/// A slot that is larger than the machine, with a bitmap that is all but empty.
struct Terabyte {
    vm: BareVm,
    disabled: Region,
    enabled: Region,
    _memory: [Area; 2],
}

impl Terabyte {
    const SIZE: usize = 1 << 40;

    /// Creates the slot, or skips the case where the machine does not have as many addresses.
    fn new() -> Self {
        let vm = BareVm::with_addresses(48).unwrap_or_else(|error| {
            ktap::skip(format!("no VM with 48 bits of addresses: {error:?}"))
        });
        let pages = Self::SIZE / host_page_size();
        let memory = Area::reserved(pages);
        let bits = Area::reserved(pages.div_ceil(8 * host_page_size()));
        let bitmap = Bitmap::within(&bits, 0, pages);
        for page in (0..pages).step_by((1 << 30) / host_page_size()) {
            bitmap.mark(page);
        }
        let disabled = Region {
            memory_size: Self::SIZE as u64,
            userspace_addr: memory.address(),
            ..Default::default()
        };
        let terabyte = Self {
            vm,
            disabled,
            enabled: Region {
                flags: KVM_MEM_USERFAULT,
                userfault_bitmap: bitmap.address(),
                ..disabled
            },
            _memory: [memory, bits],
        };
        terabyte.set(&disabled);
        terabyte
    }

    fn set(&self, region: &Region) {
        assert_eq!(self.vm.set_region(region), Ok(()));
    }
}

/// Setting and clearing the flag on it.
fn terabyte() {
    need_userfault();
    let terabyte = Terabyte::new();
    let [mut enable, mut disable] = [(); 2].map(|()| Vec::new());
    for _ in 0..REPETITIONS {
        enable.push(sample(|| terabyte.set(&terabyte.enabled)));
        disable.push(sample(|| terabyte.set(&terabyte.disabled)));
    }
    Figure::new("enable-terabyte", Terabyte::SIZE).report(enable);
    Figure::new("disable-terabyte", Terabyte::SIZE).report(disable);
}

/// How long setting the flag keeps others from the CPU.
fn latency() {
    need_userfault();
    if COUNTER.get().is_some() {
        ktap::skip("nothing to count");
    }
    Figure::new("latency-idle", SIZE).report([sample_lateness(|| ())]);
    let mut machine = machine(Backing::Anonymous, SIZE);
    for share in [0, 1, 50, 100] {
        touch_all(&mut machine, none_marked);
        let bitmap = marked(share, machine.slot.pages());
        let figure = Figure::new("latency-enable", SIZE).marked(share);
        figure.report([sample_lateness(|| machine.enable(&bitmap))]);
        machine.disable();
    }
    let terabyte = Terabyte::new();
    Figure::new("latency-enable-terabyte", Terabyte::SIZE)
        .report([sample_lateness(|| terabyte.set(&terabyte.enabled))]);
}

/// What faults cost in a slot with the flag whose memory could be mapped by blocks: none marked.
fn unmarked_block() {
    need_userfault();
    let mut machine = machine(Backing::AnonymousThp, SIZE);
    touch_all(&mut machine, none_marked);
    let figure = Figure::new("unmarked-block", SIZE).per_page();
    figure.report((0..REPETITIONS).map(|_| {
        // Nothing is mapped when the flag is set, so that all is mapped under it.
        let region = machine.slot.region();
        assert_eq!(machine.vm.recreate(&machine.slot, region), Ok(()));
        let bitmap = Bitmap::new(machine.slot.pages());
        machine.enable(&bitmap);
        let sample = sample(|| touch_all(&mut machine, none_marked));
        machine.disable();
        sample
    }));
}

/// The same where the VMM, asked for a page, supplies the whole block around it.
fn prefetched_block() {
    need_userfault();
    let mut machine = machine(Backing::AnonymousThp, SIZE);
    touch_all(&mut machine, none_marked);
    let block = Backing::AnonymousThp.pages_per_page();
    let figure = Figure::new("prefetched-block", SIZE).marked(100).per_page();
    figure.report((0..REPETITIONS).map(|_| {
        let bitmap = Bitmap::marked(machine.slot.pages());
        machine.enable(&bitmap);
        let sample = sample(|| {
            touch_all(&mut machine, |page| {
                let start = page - page % block;
                bitmap.clear_range(start..start + block);
            })
        });
        machine.disable();
        sample
    }));
}

/// Lets each vCPU touch its share of the pages in a thread of its own, and calls `resolve` for each
/// that is marked.
fn touch_shares(vcpus: &mut [Vcpu], slot: &Slot, resolve: impl Fn(usize) + Sync) {
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

/// How memory that is paged in on demand gets its content.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Supply {
    /// The VMM's mapping of it is filled, by which the page is allocated.
    Allocated,
    /// The memory is registered with a userfaultfd, which allocates the page and fills it.
    Copied,
    /// The page is in a file and is filled through another mapping.
    InFile,
}

impl Supply {
    /// Returns a machine that is about to touch the memory, but for the last page.
    fn machine(self, vcpus: usize) -> Machine {
        let backing = match self {
            Self::Allocated | Self::Copied => Backing::Anonymous,
            Self::InFile => Backing::Shmem,
        };
        let machine = machine_with(backing, DEMAND, 1, vcpus);
        if self == Self::InFile {
            let content = vec![1; host_page_size()];
            for page in 0..machine.slot.pages() {
                machine.slot.fill_alias(page, &content);
            }
        }
        machine
    }
}

/// Returns a userfaultfd, or skips the case.
fn need_uffd(uffd: Result<Uffd<'_>, Errno>) -> Uffd<'_> {
    uffd.unwrap_or_else(|error| ktap::skip(format!("no userfaultfd: {error:?}")))
}

/// Measures paging by userfault: the vCPU's thread fills the page and clears the mark.
fn userfault_demand(name: &'static str, supply: Supply) {
    need_userfault();
    let content = vec![2; host_page_size()];
    for vcpus in VCPUS {
        let figure = Figure::new(name, DEMAND).vcpus(vcpus).marked(100);
        figure.per_page().report((0..REPETITIONS).map(|_| {
            let mut machine = supply.machine(vcpus);
            let bitmap = Bitmap::marked(machine.slot.pages());
            machine.enable(&bitmap);
            let slot = &machine.slot;
            let uffd = (supply == Supply::Copied).then(|| need_uffd(Uffd::missing(slot)));
            sample(|| {
                touch_shares(&mut machine.vcpus, slot, |page| {
                    match (supply, &uffd) {
                        (_, Some(uffd)) => uffd.copy(page, &content),
                        (Supply::InFile, _) => slot.fill_alias(page, &content),
                        _ => slot.fill(page, &content),
                    }
                    bitmap.clear(page);
                })
            })
        }));
    }
}

/// Touches the last page when it is dropped, be it by a panic: a handler ends with that.
struct TouchLast<'a>(&'a Slot);

impl Drop for TouchLast<'_> {
    fn drop(&mut self) {
        self.0.read(self.0.pages() - 1, 0);
    }
}

/// Measures paging by userfaultfd: a thread of its own fills each page and wakes who waits for it.
fn userfaultfd_demand(name: &'static str, supply: Supply) {
    let content = vec![2; host_page_size()];
    for vcpus in VCPUS {
        let figure = Figure::new(name, DEMAND).vcpus(vcpus);
        figure.per_page().report((0..REPETITIONS).map(|_| {
            let mut machine = supply.machine(vcpus);
            let slot = &machine.slot;
            let uffd = need_uffd(match supply {
                Supply::InFile => Uffd::minor(slot),
                _ => Uffd::missing(slot),
            });
            thread::scope(|scope| {
                scope.spawn(|| loop {
                    // A timer is no part of it.
                    let fault = uffd.wait(None).expect("nothing to wait for");
                    if supply == Supply::InFile {
                        slot.fill_alias(fault.page, &content);
                        uffd.resume(fault.page);
                    } else {
                        uffd.copy(fault.page, &content);
                    }
                    if fault.page == slot.pages() - 1 {
                        break;
                    }
                });
                let _last = TouchLast(slot);
                sample(|| touch_shares(&mut machine.vcpus, slot, none_marked))
            })
        }));
    }
}

/// Paging in anonymous memory by userfault.
fn demand_userfault() {
    userfault_demand("demand-userfault", Supply::Allocated);
}

/// The same, where a userfaultfd fills the memory: for KVM's own accesses there has to be one.
fn demand_userfault_copy() {
    userfault_demand("demand-userfault-copy", Supply::Copied);
}

/// Paging in shared memory, which is there, by userfault.
fn demand_userfault_file() {
    userfault_demand("demand-userfault-file", Supply::InFile);
}

/// Paging in anonymous memory by userfaultfd, which finds it missing.
fn demand_missing() {
    userfaultfd_demand("demand-missing", Supply::Copied);
}

/// Paging in shared memory, which is there but not mapped, by userfaultfd.
fn demand_minor() {
    userfaultfd_demand("demand-minor", Supply::InFile);
}

/// Prepares for what was asked for and says how it is measured.
fn prepare() {
    // The figures would be less about memory with it.
    without_interrupt_controller();
    if ktap::has_option("--events") {
        match Counter::new(EVENTS) {
            Ok(counter) => assert!(COUNTER.set(counter).is_ok()),
            Err(reason) => ktap::skip_all(&reason),
        }
    }
    ktap::diagnostic(
        "Guests have their MMU on and their own tables mapped; VMs have no interrupt controller.",
    );
}

test_main! {
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
    ]
}
