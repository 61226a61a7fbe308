// SPDX-License-Identifier: GPL-2.0-only

//! What the kernel can count: calls of its functions, what they clean, its locks, hypercalls.
//!
//! Calls are those that hit a kprobe, which kernels of distributions have; locks are those of
//! `CONFIG_LOCK_STAT`, hypercalls those of `CONFIG_NVHE_EL2_TRACING`. What a kernel cannot count is
//! named and left out.

use super::*;
use How::*;

const TRACING: &str = "/sys/kernel/tracing";
const PROBES: &str = "/sys/kernel/tracing/events/bench";
const HYPERVISOR: &str = "/sys/kernel/tracing/remotes/hypervisor";
const LOCK_STAT: &str = "/proc/lock_stat";

/// How events are counted.
enum How {
    /// Calls of any of some functions.
    Calls,
    /// Bytes between the first two arguments of a function, in all of its calls.
    Ranges,
    /// A column of /proc/lock_stat, counted from the name, for locks of any of some classes.
    Locks(usize),
    /// Calls of the hypervisor by the host, where that is not in the host's kernel.
    Hypercalls,
}

/// How often somebody had to wait for a lock, how often it was taken, for reading or for writing,
/// and for how many microseconds it was held at most.
const WAITS: How = Locks(1);
const TAKEN: How = Locks(7);
const LONGEST_HOLD: usize = 9;

const UNMAP: &[&str] = &[
    "kvm_pgtable_stage2_unmap",
    "kvm_pgtable_stage2_unmap_deferred",
    "pkvm_pgtable_stage2_unmap",
    "pkvm_pgtable_stage2_unmap_deferred",
];
const TLB_PAGE: &[&str] = &["__kvm_tlb_flush_vmid_ipa", "__kvm_tlb_flush_vmid_ipa_nsh"];
const TOP_UP: &[&str] = &["kvm_mmu_topup_memory_cache", "topup_hyp_memcache"];
const MMAP_LOCK: &[&str] = &["&mm->mmap_lock"];
const MMU_LOCK: &[&str] = &["&(kvm)->mmu_lock"];
const SLOTS_LOCK: &[&str] = &["&kvm->slots_lock"];
const USERFAULTFD_LOCKS: &[&str] = &["&ctx->fd_wqh", "&ctx->fault_wqh", "&ctx->fault_pending_wqh"];

/// Something to count: its name, how, and of which functions or locks.
type Event = (&'static str, How, &'static [&'static str]);

const EVENTS: [Event; 17] = [
    ("unmap", Calls, UNMAP),
    ("tlb-vmid", Calls, &["__kvm_tlb_flush_vmid"]),
    ("tlb-page", Calls, TLB_PAGE),
    ("tlb-range", Calls, &["__kvm_tlb_flush_vmid_range"]),
    ("cleaned-bytes", Ranges, &["dcache_clean_inval_poc"]),
    ("icache-page", Calls, &["invalidate_icache_guest_page"]),
    ("table-cache-top-up", Calls, TOP_UP),
    ("mmap-lock", TAKEN, MMAP_LOCK),
    ("mmap-lock-wait", WAITS, MMAP_LOCK),
    ("mmu-lock", TAKEN, MMU_LOCK),
    ("mmu-lock-wait", WAITS, MMU_LOCK),
    ("mmu-lock-longest-us", Locks(LONGEST_HOLD), MMU_LOCK),
    ("slots-lock", TAKEN, SLOTS_LOCK),
    ("slots-lock-longest-us", Locks(LONGEST_HOLD), SLOTS_LOCK),
    ("userfaultfd-lock", TAKEN, USERFAULTFD_LOCKS),
    ("userfaultfd-lock-wait", WAITS, USERFAULTFD_LOCKS),
    ("hypercall", Hypercalls, &[]),
];

/// What is counted, where that is asked for.
static COUNTED: OnceLock<Vec<Event>> = OnceLock::new();

/// Prepares to count events, if that is asked for, and says which of them cannot be.
pub fn prepare_events() {
    if env::var_os("BENCH_EVENTS").is_none() {
        return;
    }
    let can_be = |(name, how, what): &Event| {
        let prepared = prepare(how, what);
        if let Err(reason) = &prepared {
            println!("bench: {name} is not counted: {reason}");
        }
        prepared.is_ok()
    };
    COUNTED.get_or_init(|| EVENTS.into_iter().filter(can_be).collect());
}

/// Returns whether events are counted.
pub fn counts_events() -> bool {
    COUNTED.get().is_some()
}

/// Returns whether hypercalls are counted, too.
pub fn counts_hypercalls() -> bool {
    counts_events() && has_hypervisor()
}

/// Returns whether the hypervisor is not in the host's kernel, and can be traced.
fn has_hypervisor() -> bool {
    Path::new(HYPERVISOR).exists()
}

/// Prepares to count events, or returns why that is not possible here.
fn prepare(how: &How, what: &[&str]) -> Result<(), String> {
    match how {
        Calls => {
            // The hypervisor has its own copy, which no kprobe reaches.
            let is_copied = |function: &&str| function.starts_with("__kvm_tlb_flush");
            if has_hypervisor() && what.iter().any(is_copied) {
                return Err("the hypervisor does that".into());
            }
            // What the compiler has merged into its caller would count as never called.
            let probed: Vec<_> = what.iter().map(|function| probe(function)).collect();
            match probed.iter().any(Result::is_ok) {
                true => Ok(()),
                false => probed.into_iter().collect(),
            }
        }
        Ranges => {
            probe(what[0])?;
            let sums = "hist:keys=common_pid:vals=start,end";
            write(&format!("{PROBES}/{}/trigger", what[0]), sums)
        }
        Locks(_) => read(LOCK_STAT).map(drop),
        Hypercalls => {
            // Its size cannot change once it is in use, as it is after the first case.
            if read(&format!("{HYPERVISOR}/tracing_on"))?.trim() == "0" {
                write(&format!("{HYPERVISOR}/buffer_size_kb"), "8192")?;
            }
            let enter = format!("{HYPERVISOR}/events/hypervisor/hyp_enter/enable");
            write(&enter, "1")?;
            write(&format!("{HYPERVISOR}/tracing_on"), "1")?;
            count_hypercalls()
        }
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

/// Counts the events of an operation.
pub fn count_events(operation: impl FnOnce()) -> Result<Vec<(&'static str, f64)>, String> {
    let events = COUNTED.get().expect("nothing is counted");
    let values = |locks: &str| -> Result<Vec<f64>, String> {
        let value = |(_, how, what): &Event| so_far(how, what, locks);
        events.iter().map(value).collect()
    };
    let enable = |value| match Path::new(PROBES).exists() {
        true => write(&format!("{PROBES}/enable"), value),
        false => Ok(()),
    };
    enable("1")?;
    let before = values("")?;
    // Locks start at zero, and are read first: to read has some of them taken.
    if Path::new(LOCK_STAT).exists() {
        write(LOCK_STAT, "0")?;
    }
    operation();
    let locks = read(LOCK_STAT).unwrap_or_default();
    let after = values(&locks)?;
    enable("0")?;
    let names = events.iter().map(|event| event.0);
    let differences = before.into_iter().zip(after).map(|(old, new)| new - old);
    Ok(names.zip(differences).collect())
}

/// Returns how many events there have been so far, given what /proc/lock_stat says.
fn so_far(how: &How, what: &[&str], locks: &str) -> Result<f64, String> {
    match how {
        Calls => calls(what),
        Ranges => bytes(what[0]),
        Locks(column) => Ok(lock_column(locks, what, *column)),
        Hypercalls => Ok(hypercalls() as f64),
    }
}

/// Returns how often functions were called while their probes were enabled.
fn calls(functions: &[&str]) -> Result<f64, String> {
    let text = read(&format!("{TRACING}/kprobe_profile"))?;
    let hits = |line: &str| {
        let (name, hits) = line.trim().split_once(char::is_whitespace)?;
        let hits = hits.split_whitespace().next()?.parse::<f64>().ok()?;
        functions.contains(&name).then_some(hits)
    };
    Ok(text.lines().filter_map(hits).sum())
}

/// Returns the bytes between the arguments of a function in all of its calls. The sums of the
/// arguments themselves overflow, which does no harm to their difference.
fn bytes(function: &str) -> Result<f64, String> {
    let text = read(&format!("{PROBES}/{function}/hist"))?;
    let number = |rest: &str| rest.split_whitespace().next()?.parse::<u64>().ok();
    let numbers = |name: &'static str| text.split(name).filter_map(number);
    let sum = |name| numbers(name).fold(0, u64::wrapping_add);
    Ok(sum("end:").wrapping_sub(sum("start:")) as f64)
}

/// Returns the sum of a column of the lines of classes of locks, or the most there. Those that
/// distinguish readers and writers have a line for each.
fn lock_column(text: &str, classes: &[&str], column: usize) -> f64 {
    let value = |line: &str| {
        let (name, numbers) = line.trim().rsplit_once(':')?;
        let class = name.strip_suffix("-R").or(name.strip_suffix("-W"));
        if !classes.contains(&class.unwrap_or(name)) {
            return None;
        }
        numbers.split_whitespace().nth(column)?.parse().ok()
    };
    let values = text.lines().filter_map(value);
    match column {
        LONGEST_HOLD => values.fold(0.0, f64::max),
        _ => values.sum(),
    }
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

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

fn write(path: &str, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{path}: {error}"))
}
