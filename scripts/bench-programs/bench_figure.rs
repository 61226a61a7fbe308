// SPDX-License-Identifier: GPL-2.0-only

//! Figures: what they are of, how they are measured and shown.

use crate::{
    counter::{
        lateness,
        run_time,
        Instructions,
        Moment, //
    },
    events::{
        has_hypervisor,
        Counter,
        Event, //
    },
};
use libkvm::{
    ktap,
    page_size, //
};
use std::{
    env,
    sync::OnceLock, //
};

/// Of so many repetitions the least is what counts: in the others a timer's interrupt took its
/// share, or the kernel had to set up something.
pub const REPETITIONS: usize = 2;

/// How often KVM_RUN is called to see what it takes.
pub const RUNS: usize = 1000;

const MMAP_LOCK: &[&str] = &["&mm->mmap_lock"];
const MMU_LOCK: &[&str] = &["&(kvm)->mmu_lock"];
const SLOTS_LOCK: &[&str] = &["&kvm->slots_lock"];
const USERFAULTFD_LOCKS: &[&str] = &["&ctx->fd_wqh", "&ctx->fault_wqh", "&ctx->fault_pending_wqh"];

/// What is counted.
const EVENTS: &[(&str, Event)] = &[
    (
        "unmap",
        Event::Calls(&[
            "kvm_pgtable_stage2_unmap",
            "kvm_pgtable_stage2_unmap_deferred",
            "pkvm_pgtable_stage2_unmap",
            "pkvm_pgtable_stage2_unmap_deferred",
        ]),
    ),
    ("tlb-vmid", Event::Calls(&["__kvm_tlb_flush_vmid"])),
    (
        "tlb-page",
        Event::Calls(&["__kvm_tlb_flush_vmid_ipa", "__kvm_tlb_flush_vmid_ipa_nsh"]),
    ),
    ("tlb-range", Event::Calls(&["__kvm_tlb_flush_vmid_range"])),
    ("cleaned-bytes", Event::Bytes("dcache_clean_inval_poc")),
    (
        "icache-page",
        Event::Calls(&["invalidate_icache_guest_page"]),
    ),
    (
        "table-cache-top-up",
        Event::Calls(&["kvm_mmu_topup_memory_cache", "topup_hyp_memcache"]),
    ),
    ("mmap-lock", Event::Taken(MMAP_LOCK)),
    ("mmap-lock-wait", Event::Contended(MMAP_LOCK)),
    ("mmu-lock", Event::Taken(MMU_LOCK)),
    ("mmu-lock-wait", Event::Contended(MMU_LOCK)),
    ("mmu-lock-longest-us", Event::LongestHold(MMU_LOCK)),
    ("slots-lock", Event::Taken(SLOTS_LOCK)),
    ("slots-lock-longest-us", Event::LongestHold(SLOTS_LOCK)),
    ("userfaultfd-lock", Event::Taken(USERFAULTFD_LOCKS)),
    ("userfaultfd-lock-wait", Event::Contended(USERFAULTFD_LOCKS)),
    ("hypercall", Event::Hypercalls),
];

/// Counts events, where that is asked for.
static COUNTER: OnceLock<Counter> = OnceLock::new();

/// Prepares to count events, if that is asked for.
pub fn prepare() {
    if env::var_os("BENCH_EVENTS").is_some() {
        assert!(COUNTER.set(Counter::new(EVENTS)).is_ok());
    }
}

/// Returns whether events are counted.
pub fn counts_events() -> bool {
    COUNTER.get().is_some()
}

/// Returns whether hypercalls are counted, too.
pub fn counts_hypercalls() -> bool {
    counts_events() && has_hypervisor()
}

/// What an operation took.
pub enum Sample {
    /// So many nanoseconds.
    Time(f64),
    /// So many of each event.
    Events(Vec<(&'static str, f64)>),
}

/// Measures an operation.
pub fn sample(operation: impl FnOnce()) -> Sample {
    measure(operation, |operation| {
        let start = Moment::now();
        operation();
        start.elapsed()
    })
}

/// Measures a call that waits for a grace period, without the wait: what the calling thread runs.
/// Where an instruction takes a nanosecond the PMU's count is exact, which the scheduler's is not.
pub fn sample_call(call: impl FnOnce()) -> Sample {
    measure(call, |call| {
        if env::var_os("BENCH_INSTRUCTIONS").is_some() {
            let instructions = Instructions::count();
            let start = instructions.so_far();
            call();
            return instructions.so_far() - start;
        }
        let start = run_time();
        call();
        run_time() - start
    })
}

/// Counts events, if that is asked for, or takes the time.
fn measure<T: FnOnce()>(operation: T, time: impl FnOnce(T) -> f64) -> Sample {
    match COUNTER.get() {
        Some(counter) => Sample::Events(counter.count(operation).expect("cannot count")),
        None => Sample::Time(time(operation)),
    }
}

/// Measures how long others have to wait for the CPU because of an operation.
pub fn sample_lateness(operation: impl FnOnce()) -> Sample {
    match lateness(operation) {
        Some(time) => Sample::Time(time),
        None => ktap::skip("no thread that runs at once"),
    }
}

/// What a figure is about.
pub struct Figure {
    name: &'static str,
    vcpus: usize,
    pages: usize,
    /// How many percent of the pages are marked.
    marked: usize,
    /// How many slots are toggled.
    slots: usize,
    /// What the figure is for one of, and how many of these there are.
    per: (&'static str, usize),
}

impl Figure {
    pub fn new(name: &'static str, size: usize) -> Self {
        Self {
            name,
            vcpus: 1,
            pages: size / page_size(),
            marked: 0,
            slots: 1,
            per: ("", 1),
        }
    }

    pub fn vcpus(self, vcpus: usize) -> Self {
        Self { vcpus, ..self }
    }

    pub fn marked(self, marked: usize) -> Self {
        Self { marked, ..self }
    }

    pub fn slots(self, slots: usize) -> Self {
        Self { slots, ..self }
    }

    pub fn per_page(self) -> Self {
        let per = ("/page", self.pages);
        Self { per, ..self }
    }

    pub fn per_run(self) -> Self {
        let per = ("/run", RUNS);
        Self { per, ..self }
    }

    /// Reports the least time, or the events of the last repetition: these are the same each time
    /// but for the first, when the kernel may have had to set up something.
    pub fn report(&self, samples: impl IntoIterator<Item = Sample>) {
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

    /// Reports which time half of some times are within, and which all but one of a hundred.
    pub fn report_times(&self, mut times: Vec<f64>) {
        times.sort_by(f64::total_cmp);
        for (event, percent) in [("p50", 50), ("p99", 99)] {
            let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
            if let Some(time) = times.get(place) {
                self.print(event, *time, "ns");
            }
        }
    }

    fn print(&self, event: &str, value: f64, unit: &str) {
        let of = if event.is_empty() { "" } else { "event=" };
        println!(
            "bench: name={:<20} vcpus={} slots={:<2} slot_pages={:<9} marked={:<3} \
             {of}{event:<24} value={value:<12.1} unit={unit}",
            self.name, self.vcpus, self.slots, self.pages, self.marked,
        );
    }
}
