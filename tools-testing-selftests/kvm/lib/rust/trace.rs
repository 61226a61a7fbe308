// SPDX-License-Identifier: GPL-2.0-only

//! Trace events.

use crate::*;
use std::{
    fs,
    path::PathBuf,
    process, //
};

/// The events of one kind that happen from now on, in a buffer of their own.
pub struct Trace(PathBuf);

impl Trace {
    /// Starts to record an event, such as `kvm/kvm_exit`, or skips the case where this user cannot.
    #[track_caller]
    pub fn new(event: &str) -> Self {
        let instances = PathBuf::from("/sys/kernel/tracing/instances");
        let what = format!("no trace events: {instances:?}");
        ktap::need(fs::read_dir(&instances), what);
        let instance = instances.join(format!("kvm_selftest-{}", process::id()));
        ktap::at_end(&instance.to_string_lossy(), None);
        fs::create_dir(&instance).expect("cannot create a trace instance");
        let enable = instance.join("events").join(event).join("enable");
        fs::write(&enable, "1").unwrap_or_else(|error| panic!("{enable:?}: {error}"));
        Self(instance)
    }

    /// Returns what was recorded of this process, without what says when and where.
    #[track_caller]
    pub fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(self.0.join("trace")).expect("cannot read the trace");
        let of_this = format!("-{} ", process::id());
        text.lines()
            .filter(|line| !line.starts_with('#') && line.contains(&of_this))
            .map(|line| line.splitn(3, ": ").last().unwrap_or("").to_string())
            .collect()
    }
}
