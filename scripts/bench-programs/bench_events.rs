// SPDX-License-Identifier: GPL-2.0-only

//! What the kernel can count: calls of its functions, what they clean, its locks, hypercalls.
//!
//! Calls are those that hit a kprobe, which kernels of distributions have; locks are those of
//! `CONFIG_LOCK_STAT`, hypercalls those of `CONFIG_NVHE_EL2_TRACING`. What a kernel cannot count is
//! named and left out.

use std::{
    fs::{
        self,
        File, //
    },
    io::{
        BufRead,
        BufReader,
        Write, //
    },
    path::Path,
    sync::atomic::{
        AtomicU64,
        Ordering, //
    },
    thread,
    time::Duration, //
};

const TRACING: &str = "/sys/kernel/tracing";
const PROBES: &str = "/sys/kernel/tracing/events/bench";
const HYPERVISOR: &str = "/sys/kernel/tracing/remotes/hypervisor";
const LOCK_STAT: &str = "/proc/lock_stat";

/// Something to count.
#[derive(Clone, Copy)]
pub enum Event {
    /// Calls of any of these functions.
    Calls(&'static [&'static str]),
    /// Bytes between the first two arguments of a function, in all of its calls.
    Bytes(&'static str),
    /// How often locks of any of these classes were taken, for reading or for writing.
    Taken(&'static [&'static str]),
    /// How often somebody had to wait for them.
    Contended(&'static [&'static str]),
    /// For how many microseconds one was held at most.
    LongestHold(&'static [&'static str]),
    /// Calls of the hypervisor by the host, where that is not in the host's kernel.
    Hypercalls,
}

impl Event {
    /// Returns the functions that it is about.
    fn functions(&self) -> &[&'static str] {
        match self {
            Self::Calls(functions) => functions,
            Self::Bytes(function) => std::slice::from_ref(function),
            _ => &[],
        }
    }

    /// Prepares to count it, or returns why that is not possible here.
    fn prepare(&self) -> Result<(), String> {
        match self {
            Self::Calls(functions) => {
                // The hypervisor has its own copy, which no kprobe reaches.
                let is_copied = |function: &&str| function.starts_with("__kvm_tlb_flush");
                if has_hypervisor() && functions.iter().any(is_copied) {
                    return Err("the hypervisor does that".into());
                }
                // What the compiler has merged into its caller would count as never called.
                let probed: Vec<_> = functions.iter().map(|function| probe(function)).collect();
                match probed.iter().any(Result::is_ok) {
                    true => Ok(()),
                    false => probed.into_iter().collect(),
                }
            }
            Self::Bytes(function) => {
                probe(function)?;
                let sums = "hist:keys=common_pid:vals=start,end";
                write(&format!("{PROBES}/{function}/trigger"), sums)
            }
            Self::Hypercalls => {
                // Its size cannot change once it is in use, as it is after the first case.
                if read(&format!("{HYPERVISOR}/tracing_on"))?.trim() == "0" {
                    write(&format!("{HYPERVISOR}/buffer_size_kb"), "8192")?;
                }
                write(
                    &format!("{HYPERVISOR}/events/hypervisor/hyp_enter/enable"),
                    "1",
                )?;
                write(&format!("{HYPERVISOR}/tracing_on"), "1")?;
                count_hypercalls()
            }
            _ => read(LOCK_STAT).map(drop),
        }
    }

    /// Returns how often it has happened so far, given what /proc/lock_stat says.
    fn read(&self, locks: &str) -> Result<f64, String> {
        match self {
            Self::Calls(functions) => calls(functions),
            Self::Bytes(function) => bytes(function),
            Self::Taken(classes) => Ok(lock_column(locks, classes, ACQUISITIONS).sum()),
            Self::Contended(classes) => Ok(lock_column(locks, classes, CONTENTIONS).sum()),
            Self::LongestHold(classes) => {
                Ok(lock_column(locks, classes, LONGEST_HOLD).fold(0.0, f64::max))
            }
            Self::Hypercalls => Ok(hypercalls() as f64),
        }
    }
}

/// Returns whether the hypervisor is not in the host's kernel, and can be traced.
pub fn has_hypervisor() -> bool {
    Path::new(HYPERVISOR).exists()
}

/// How many hypercalls the trace has shown.
static HYPERCALLS: AtomicU64 = AtomicU64::new(0);

/// Begins to count hypercalls, by a thread that reads the trace as it comes: to read what is kept
/// of it shows a part only, and the file waits for more where there is none.
fn count_hypercalls() -> Result<(), String> {
    let path = format!("{HYPERVISOR}/trace_pipe");
    let file = File::open(&path).map_err(|error| format!("{path}: {error}"))?;
    thread::spawn(|| {
        for line in BufReader::new(file).lines().map_while(Result::ok) {
            assert!(!line.contains("LOST"), "the trace has lost events");
            if line.contains("hyp_enter") && line.contains("=hvc") {
                HYPERCALLS.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    Ok(())
}

/// Returns how many there were so far.
fn hypercalls() -> u64 {
    let mut before = u64::MAX;
    loop {
        let now = HYPERCALLS.load(Ordering::Relaxed);
        if now == before {
            return now;
        }
        before = now;
        // The reader comes to the end, and gives up its CPU then.
        thread::sleep(Duration::from_millis(300));
    }
}

/// Has a kprobe at a function.
fn probe(function: &str) -> Result<(), String> {
    // A case before this one may have made it.
    if Path::new(&format!("{PROBES}/{function}")).exists() {
        return Ok(());
    }
    let path = format!("{TRACING}/kprobe_events");
    let line = format!("p:bench/{function} {function} start=%x0 end=%x1\n");
    File::options()
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .map_err(|error| format!("no kprobe at {function}: {error}"))
}

/// Returns how often functions were called while their probes were enabled.
fn calls(functions: &[&str]) -> Result<f64, String> {
    let mut sum = 0.0;
    for line in read(&format!("{TRACING}/kprobe_profile"))?.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(Ok(hits))) = (words.next(), words.next().map(str::parse::<f64>)) {
            if functions.contains(&name) {
                sum += hits;
            }
        }
    }
    Ok(sum)
}

/// Returns the bytes between the arguments of a function in all of its calls. The sums of the
/// arguments themselves overflow, which does no harm to their difference.
fn bytes(function: &str) -> Result<f64, String> {
    let text = read(&format!("{PROBES}/{function}/hist"))?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let sum = |name| {
        words
            .windows(2)
            .filter(|pair| pair[0] == name)
            .filter_map(|pair| pair[1].parse::<u64>().ok())
            .fold(0, u64::wrapping_add)
    };
    Ok(sum("end:").wrapping_sub(sum("start:")) as f64)
}

/// Counts events, and nothing but these.
pub struct Counter {
    events: Vec<(&'static str, Event)>,
}

impl Counter {
    /// Prepares to count events, which have names, and says which of them cannot be.
    pub fn new(wanted: &[(&'static str, Event)]) -> Self {
        let mut events = Vec::new();
        for (name, event) in wanted {
            match event.prepare() {
                Ok(()) => events.push((*name, *event)),
                Err(reason) => println!("bench: {name} is not counted: {reason}"),
            }
        }
        Self { events }
    }

    /// Counts the events of an operation.
    pub fn count(&self, operation: impl FnOnce()) -> Result<Vec<(&'static str, f64)>, String> {
        let probed = self
            .events
            .iter()
            .any(|(_, event)| !event.functions().is_empty());
        let enable = |value| match probed {
            true => write(&format!("{PROBES}/enable"), value),
            false => Ok(()),
        };
        let values = |locks: &str| -> Result<Vec<f64>, String> {
            self.events
                .iter()
                .map(|(_, event)| event.read(locks))
                .collect()
        };
        let is_there = |path: &str| Path::new(path).exists();
        enable("1")?;
        let before = values("")?;
        // Locks start at zero, and are read first: to read has some of them taken.
        if is_there(LOCK_STAT) {
            write(LOCK_STAT, "0")?;
        }
        operation();
        let locks = read(LOCK_STAT).unwrap_or_default();
        let after = values(&locks)?;
        enable("0")?;
        let names = self.events.iter().map(|(name, _)| *name);
        let differences = before.into_iter().zip(after).map(|(old, new)| new - old);
        Ok(names.zip(differences).collect())
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
    let value = move |line: &str| {
        let (name, numbers) = line.trim().rsplit_once(':')?;
        let class = name.strip_suffix("-R").or(name.strip_suffix("-W"));
        if !classes.contains(&class.unwrap_or(name)) {
            return None;
        }
        numbers.split_whitespace().nth(column)?.parse().ok()
    };
    text.lines().filter_map(value)
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

fn write(path: &str, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{path}: {error}"))
}
