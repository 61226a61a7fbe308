// SPDX-License-Identifier: GPL-2.0-only

//! The architecture's counter, and what is measured with it.

use std::{
    arch::asm,
    fs::File,
    io::Read,
    os::fd::FromRawFd,
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
    thread,
    time::Duration, //
};

/// A moment, as the counter has it.
#[derive(Clone, Copy)]
pub struct Moment(u64);

impl Moment {
    /// Returns this moment: all that the program does before it is done.
    #[inline]
    pub fn now() -> Self {
        let ticks;
        // SAFETY: The kernel lets programs read the counter.
        unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) ticks) };
        Self(ticks)
    }

    /// Returns how many nanoseconds have passed since.
    pub fn elapsed(self) -> f64 {
        let ticks = Self::now().0 - self.0;
        ticks as f64 * 1e9 / frequency() as f64
    }
}

/// `struct timespec`, of C.
#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

unsafe extern "C" {
    safe fn clock_gettime(clock: i32, time: &mut Timespec) -> i32;
}

/// Returns for how many nanoseconds the calling thread has run, which leaves out what it waits for.
pub fn run_time() -> f64 {
    const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
    let mut time = Timespec {
        seconds: 0,
        nanoseconds: 0,
    };
    assert_eq!(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &mut time), 0);
    time.seconds as f64 * 1e9 + time.nanoseconds as f64
}

/// The PMU's count of the instructions of the calling thread, the kernel's for it included.
pub struct Instructions(File);

extern "C" {
    fn syscall(number: i64, ...) -> i64;
}

impl Instructions {
    /// Begins to count.
    pub fn count() -> Self {
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
        assert!(fd >= 0, "the PMU does not count instructions");
        // SAFETY: The descriptor is new, and nobody else's.
        Self(unsafe { File::from_raw_fd(fd as i32) })
    }

    /// Returns how many there have been.
    pub fn so_far(&self) -> f64 {
        let mut bytes = [0; 8];
        let read = (&self.0).read_exact(&mut bytes);
        read.expect("cannot read the PMU's count");
        u64::from_ne_bytes(bytes) as f64
    }
}

/// Returns by how many nanoseconds a thread was late at most, while `operation` ran, that the
/// scheduler has to run as soon as its time has come: on one CPU that is how long the kernel did
/// not let go of it. Returns nothing where that is not possible.
pub fn lateness(operation: impl FnOnce()) -> Option<f64> {
    const PERIOD: Duration = Duration::from_micros(100);
    let finished = AtomicBool::new(false);
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            run_at_once()?;
            let mut worst: f64 = 0.0;
            while !finished.load(Ordering::Relaxed) {
                let start = Moment::now();
                thread::sleep(PERIOD);
                worst = worst.max(start.elapsed() - PERIOD.as_nanos() as f64);
            }
            Some(worst)
        });
        // The thread is at it by then.
        thread::sleep(10 * PERIOD);
        operation();
        finished.store(true, Ordering::Relaxed);
        thread.join().expect("the thread has panicked")
    })
}

extern "C" {
    fn sched_setscheduler(pid: i32, policy: i32, parameters: *const i32) -> i32;
}

/// Has the scheduler run this thread in preference to others.
fn run_at_once() -> Option<()> {
    const SCHED_FIFO: i32 = 1;
    let priority = 1;
    // SAFETY: The parameters are a number, and change nothing but the schedule of this thread.
    let ret = unsafe { sched_setscheduler(0, SCHED_FIFO, &priority) };
    (ret == 0).then_some(())
}

/// Returns how many times a second the counter counts.
fn frequency() -> u64 {
    let frequency;
    // SAFETY: The kernel lets programs read the frequency.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) frequency) };
    frequency
}
