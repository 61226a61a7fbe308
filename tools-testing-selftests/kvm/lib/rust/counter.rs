// SPDX-License-Identifier: GPL-2.0-only

//! The architecture's counter, and what is measured with it.

use crate::{
    bindings,
    errno::Errno, //
};
use std::{
    arch::asm,
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

/// Returns by how many nanoseconds a thread was late at most, while `operation` ran, that the
/// scheduler has to run as soon as its time has come: on one CPU that is how long the kernel did
/// not let go of it. Returns why that is not possible here, otherwise.
pub fn lateness(operation: impl FnOnce()) -> Result<f64, Errno> {
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
            Ok(worst)
        });
        // The thread is at it by then.
        thread::sleep(10 * PERIOD);
        operation();
        finished.store(true, Ordering::Relaxed);
        thread.join().expect("the thread has panicked")
    })
}

/// Has the scheduler run this thread in preference to others.
fn run_at_once() -> Result<(), Errno> {
    let parameters = bindings::sched_param { sched_priority: 1 };
    // SAFETY: The call reads the parameters and changes nothing but the schedule of this thread.
    let ret = unsafe { bindings::sched_setscheduler(0, bindings::SCHED_FIFO as i32, &parameters) };
    Errno::check(ret).map(|_| ())
}

/// Returns how many times a second the counter counts.
fn frequency() -> u64 {
    let frequency;
    // SAFETY: The kernel lets programs read the frequency.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) frequency) };
    frequency
}
