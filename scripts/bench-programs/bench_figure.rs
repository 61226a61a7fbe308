// SPDX-License-Identifier: GPL-2.0-only

//! Figures: what they are of, how they are measured and shown.

use super::*;

/// Of so many repetitions the least is what counts: in the others a timer's interrupt took its
/// share, or the kernel had to set up something.
const REPETITIONS: usize = 2;

/// What an operation took.
pub enum Sample {
    /// So many nanoseconds.
    Time(f64),
    /// So many of each event.
    Events(Vec<(&'static str, f64)>),
}

/// Measures an operation.
pub fn sample(operation: impl FnOnce()) -> Sample {
    measure(operation, time)
}

/// Measures a call that waits for a grace period, without the wait: what the calling thread runs.
/// Where an instruction takes a nanosecond the PMU's count is exact, which the scheduler's is not.
pub fn sample_call(call: impl FnOnce()) -> Sample {
    fn spent(so_far: impl Fn() -> f64, call: impl FnOnce()) -> f64 {
        let start = so_far();
        call();
        so_far() - start
    }
    measure(call, |call| match env::var_os("BENCH_INSTRUCTIONS") {
        Some(_) => spent(instructions(), call),
        None => spent(run_time, call),
    })
}

/// Counts events, if that is asked for, or takes the time.
fn measure<T: FnOnce()>(operation: T, time: impl FnOnce(T) -> f64) -> Sample {
    match counts_events() {
        true => Sample::Events(count_events(operation).expect("cannot count")),
        false => Sample::Time(time(operation)),
    }
}

/// Returns how many nanoseconds an operation takes.
pub fn time<T>(operation: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    operation();
    start.elapsed().as_nanos() as f64
}

/// Returns for how many nanoseconds the calling thread has run, which leaves out what it waits for.
fn run_time() -> f64 {
    const CLOCK_GETTIME: i64 = 113;
    const CLOCK_THREAD_CPUTIME_ID: i64 = 3;
    let mut time = [0_i64; 2];
    // SAFETY: The kernel writes seconds and nanoseconds.
    let ret = unsafe { syscall(CLOCK_GETTIME, CLOCK_THREAD_CPUTIME_ID, time.as_mut_ptr()) };
    assert_eq!(ret, 0);
    time[0] as f64 * 1e9 + time[1] as f64
}

/// Returns the PMU's count of the instructions of the calling thread, the kernel's for it included.
fn instructions() -> impl Fn() -> f64 {
    const PERF_EVENT_OPEN: i64 = 241;
    const PERF_TYPE_HARDWARE: u64 = 0;
    const PERF_COUNT_HW_INSTRUCTIONS: u64 = 1;
    // The first version of struct perf_event_attr: type, size, config, and nothing special.
    let mut attributes = [0u64; 8];
    attributes[0] = PERF_TYPE_HARDWARE | (size_of_val(&attributes) as u64) << 32;
    attributes[1] = PERF_COUNT_HW_INSTRUCTIONS;
    let attributes = attributes.as_ptr();
    // This thread, any CPU, no group, no flags.
    let (pid, cpu, group, flags) = (0i64, -1i64, -1i64, 0i64);
    // SAFETY: The kernel reads the attributes, which say how long they are.
    let fd = unsafe { syscall(PERF_EVENT_OPEN, attributes, pid, cpu, group, flags) };
    let file = opened(fd).expect("the PMU does not count instructions");
    move || {
        let mut bytes = [0; 8];
        let read = (&file).read_exact(&mut bytes);
        read.expect("cannot read the PMU's count");
        u64::from_ne_bytes(bytes) as f64
    }
}

/// Measures how long others have to wait for the CPU because of an operation: by how much a thread
/// is late at most that the scheduler has to run as soon as its time has come. Skips the case where
/// that is not possible.
pub fn sample_lateness(operation: impl FnOnce()) -> Sample {
    const PERIOD: Duration = Duration::from_micros(100);
    let finished = AtomicBool::new(false);
    let worst = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            run_at_once()?;
            let mut worst: f64 = 0.0;
            while !finished.load(Ordering::Relaxed) {
                let slept = time(|| thread::sleep(PERIOD));
                worst = worst.max(slept - PERIOD.as_nanos() as f64);
            }
            Some(worst)
        });
        // The thread is at it by then.
        thread::sleep(10 * PERIOD);
        operation();
        finished.store(true, Ordering::Relaxed);
        thread.join().expect("the thread has panicked")
    });
    Sample::Time(worst.unwrap_or_else(|| ktap::skip("no thread that runs at once")))
}

/// Has the scheduler run this thread in preference to others.
fn run_at_once() -> Option<()> {
    const SCHED_SETSCHEDULER: i64 = 119;
    const SCHED_FIFO: i64 = 1;
    let (pid, priority) = (0i64, [1i32]);
    // SAFETY: The parameters are a number, and change nothing but the schedule of this thread.
    let ret = unsafe { syscall(SCHED_SETSCHEDULER, pid, SCHED_FIFO, priority.as_ptr()) };
    (ret == 0).then_some(())
}

/// What figures are about.
pub struct Figure {
    pub vcpus: usize,
    pub pages: usize,
    /// How many percent of the pages are marked.
    pub marked: usize,
    /// How many slots are toggled.
    pub slots: usize,
    /// What a figure is for one of, and how many of these there are.
    pub per: (&'static str, usize),
}

impl Figure {
    pub fn new(size: usize, marked: usize) -> Self {
        Self {
            vcpus: 1,
            pages: size / page_size(),
            marked,
            slots: 1,
            per: ("", 1),
        }
    }

    pub fn per_page(self) -> Self {
        let per = ("/page", self.pages);
        Self { per, ..self }
    }

    /// Takes samples and reports the least time of each, or the events of the last repetition: they
    /// are the same each time but for the first, when the kernel may have had to set up something.
    pub fn report<const N: usize>(&self, names: [&str; N], mut take: impl FnMut() -> [Sample; N]) {
        let mut reported = take();
        for _ in 1..REPETITIONS {
            for (old, new) in reported.iter_mut().zip(take()) {
                *old = match (&*old, new) {
                    (Sample::Time(old), Sample::Time(new)) => Sample::Time(old.min(new)),
                    (_, new) => new,
                };
            }
        }
        for (name, sample) in names.into_iter().zip(reported) {
            self.show(name, sample);
        }
    }

    /// Reports a sample that is not taken again.
    pub fn show(&self, name: &str, sample: Sample) {
        let (unit, number) = self.per;
        match sample {
            Sample::Time(time) => self.print(name, "", time / number as f64, &format!("ns{unit}")),
            Sample::Events(events) => {
                for (event, number) in events {
                    self.print(name, event, number, "events");
                }
            }
        }
    }

    /// Reports which time half of some times are within, and which all but one of a hundred.
    pub fn show_times(&self, name: &str, mut times: Vec<f64>) {
        times.sort_by(f64::total_cmp);
        for (event, percent) in [("p50", 50), ("p99", 99)] {
            let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
            if let Some(time) = times.get(place) {
                self.print(name, event, *time, "ns");
            }
        }
    }

    fn print(&self, name: &str, event: &str, value: f64, unit: &str) {
        let of = if event.is_empty() { "" } else { "event=" };
        println!(
            "bench: name={name:<20} vcpus={} slots={:<2} slot_pages={:<9} marked={:<3} \
             {of}{event:<24} value={value:<12.1} unit={unit}",
            self.vcpus, self.slots, self.pages, self.marked,
        );
    }
}
