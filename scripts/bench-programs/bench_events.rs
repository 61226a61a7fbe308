// SPDX-License-Identifier: GPL-2.0-only

//! What the kernel counts where it was built to: calls of its functions, uses of its locks.

use std::{
    fs,
    path::Path, //
};

const TRACING: &str = "/sys/kernel/tracing";
const LOCK_STAT: &str = "/proc/lock_stat";

/// Something to count.
#[derive(Clone, Copy)]
pub enum Event {
    /// Calls of any of these functions.
    Calls(&'static [&'static str]),
    /// How often locks of any of these classes were taken, for reading or for writing.
    Taken(&'static [&'static str]),
    /// How often somebody had to wait for them.
    Contended(&'static [&'static str]),
    /// For how many microseconds one was held at most.
    LongestHold(&'static [&'static str]),
}

/// Counts events, and nothing but these.
pub struct Counter {
    events: &'static [(&'static str, Event)],
}

impl Counter {
    /// Prepares to count events, which have names, or returns why that is not possible here.
    pub fn new(events: &'static [(&'static str, Event)]) -> Result<Self, String> {
        let known = read(&tracing("available_filter_functions"))?;
        let known: Vec<&str> = known
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        let mut filter = String::new();
        for (name, event) in events {
            if let Event::Calls(functions) = event {
                for function in *functions {
                    if known.contains(function) {
                        filter += function;
                        filter += "\n";
                    }
                }
                // What the compiler has merged into its caller would count as never called.
                if !functions.iter().any(|function| known.contains(function)) {
                    return Err(format!("{name}: calls cannot be counted"));
                }
            }
        }
        write(&tracing("set_ftrace_filter"), &filter)?;
        read(LOCK_STAT)?;
        Ok(Self { events })
    }

    /// Counts the events of an operation.
    pub fn count(&self, operation: impl FnOnce()) -> Result<Vec<(&'static str, f64)>, String> {
        // Each starts at zero.
        write(LOCK_STAT, "0")?;
        write(&tracing("function_profile_enabled"), "1")?;
        operation();
        write(&tracing("function_profile_enabled"), "0")?;
        let locks = read(LOCK_STAT)?;
        let calls = Self::calls()?;
        let value = |event| match event {
            Event::Calls(functions) => calls
                .iter()
                .filter(|(name, _)| functions.contains(&name.as_str()))
                .map(|(_, hits)| *hits as f64)
                .sum(),
            Event::Taken(classes) => lock_column(&locks, classes, ACQUISITIONS).sum(),
            Event::Contended(classes) => lock_column(&locks, classes, CONTENTIONS).sum(),
            Event::LongestHold(classes) => {
                lock_column(&locks, classes, LONGEST_HOLD).fold(0.0, f64::max)
            }
        };
        Ok(self
            .events
            .iter()
            .map(|(name, event)| (*name, value(*event)))
            .collect())
    }

    /// Returns the functions that were called on any CPU, and how often.
    fn calls() -> Result<Vec<(String, u64)>, String> {
        let mut calls = Vec::new();
        for cpu in 0.. {
            let path = tracing(&format!("trace_stat/function{cpu}"));
            if !Path::new(&path).exists() {
                break;
            }
            // A heading, a line of dashes, then a function and its hits a line.
            for line in read(&path)?.lines().skip(2) {
                let mut words = line.split_whitespace();
                if let (Some(name), Some(Ok(hits))) = (words.next(), words.next().map(str::parse)) {
                    calls.push((name.to_string(), hits));
                }
            }
        }
        Ok(calls)
    }
}

/// The columns of /proc/lock_stat, counted from the name.
const CONTENTIONS: usize = 1;
const ACQUISITIONS: usize = 7;
const LONGEST_HOLD: usize = 9;

/// Returns a column of the lines of classes of locks. Those that distinguish readers and writers
/// have a line for each.
fn lock_column<'a>(
    text: &'a str,
    classes: &'a [&str],
    column: usize,
) -> impl Iterator<Item = f64> + 'a {
    text.lines().filter_map(move |line| {
        let (name, numbers) = line.trim().rsplit_once(':')?;
        let class = name.strip_suffix("-R").or(name.strip_suffix("-W"));
        if !classes.contains(&class.unwrap_or(name)) {
            return None;
        }
        numbers.split_whitespace().nth(column)?.parse().ok()
    })
}

fn tracing(name: &str) -> String {
    format!("{TRACING}/{name}")
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

fn write(path: &str, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{path}: {error}"))
}
