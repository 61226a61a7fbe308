// SPDX-License-Identifier: GPL-2.0-only
//! What a restore or a migration counts.

use std::fmt::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

#[derive(Default)]
pub struct Stats {
    start: OnceLock<Instant>,
    first: OnceLock<f64>,
    all: OnceLock<f64>,
    /// vCPUs that left KVM_RUN for a marked page.
    pub exits: AtomicU64,
    /// Faults that userfaultfd reported. Where marks stop the vCPUs, these are KVM's own.
    pub faults: AtomicU64,
    /// Pages that were supplied before the vCPUs ran, as KVM itself accesses them.
    pub first_pages: AtomicU64,
    /// Bytes that were copied into the guest's memory.
    pub bytes: AtomicU64,
}

impl Stats {
    /// What was ordered begins now: the times of the report count from here.
    pub fn begin(&self) {
        self.start.get_or_init(Instant::now);
    }

    fn elapsed(&self) -> f64 {
        self.start.get_or_init(Instant::now).elapsed().as_secs_f64() * 1e3
    }

    /// A vCPU is about to run.
    pub fn running(&self) {
        self.first.get_or_init(|| self.elapsed());
    }

    /// All of the memory is there.
    pub fn complete(&self) {
        self.all.get_or_init(|| self.elapsed());
    }

    /// The figures as `name=value` words, in milliseconds and numbers.
    pub fn report(&self) -> String {
        let mut words = String::new();
        for (name, time) in [("first", &self.first), ("all", &self.all)] {
            if let Some(time) = time.get() {
                let _ = write!(words, "{name}={time:.1} ");
            }
        }
        for (name, count) in [
            ("exits", &self.exits),
            ("faults", &self.faults),
            ("supplied_first", &self.first_pages),
            ("bytes", &self.bytes),
        ] {
            let _ = write!(words, "{name}={} ", count.load(Ordering::Relaxed));
        }
        words.trim_end().to_owned()
    }
}
