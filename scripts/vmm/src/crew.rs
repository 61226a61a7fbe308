// SPDX-License-Identifier: GPL-2.0-only
//! The threads that run a machine's vCPUs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::stats::Stats;
use crate::userfault::{self, Demand, Stop};
use crate::vm::Vm;

/// What a machine tells the thread that leads it.
pub enum Event {
    /// A vCPU ended the machine, or failed.
    Ended(Result<Stop>),
    /// Somebody sent a command, and waits for the answer.
    Command(String, std::os::unix::net::UnixStream),
    /// All of the memory is there, or will never be.
    Complete(Result<()>),
}

/// What gets the pages of each vCPU.
pub type Demands = Vec<Box<dyn Demand>>;

/// Running vCPUs. Dropping it leaves them running.
pub struct Crew {
    threads: Vec<JoinHandle<Box<dyn Demand>>>,
    stop: Arc<AtomicBool>,
}

impl Crew {
    /// Runs each vCPU in a thread of its own, with what gets its pages.
    pub fn start(
        vm: &Vm,
        stats: &Arc<Stats>,
        events: &Sender<Event>,
        demands: Demands,
    ) -> Result<Self> {
        extern "C" fn kicked(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        register_signal_handler(SIGRTMIN(), kicked).context("a handler for the kick")?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (number, (vcpu, mut demand)) in vm.vcpus.iter().zip(demands).enumerate() {
            let (vcpu, bus, stats) = (vcpu.clone(), vm.bus.clone(), stats.clone());
            let (events, stop) = (events.clone(), stop.clone());
            let thread = thread::Builder::new().name(format!("vcpu{number}")).spawn(move || {
                stats.running();
                match userfault::run(&mut vcpu.lock().unwrap(), &mut *demand, &bus, &stats, &stop) {
                    Ok(Stop::Asked) => {}
                    // Nobody listens any more when the process is about to end.
                    end => drop(events.send(Event::Ended(end))),
                }
                demand
            });
            threads.push(thread.context("starting a vCPU's thread")?);
        }
        Ok(Self { threads, stop })
    }

    /// Stops the vCPUs, so that their state can be saved, and returns what got their pages.
    pub fn stop(self) -> Result<Demands> {
        self.stop.store(true, Ordering::Release);
        while !self.threads.iter().all(JoinHandle::is_finished) {
            // Again and again, as one that comes just before KVM_RUN is lost.
            for thread in self.threads.iter().filter(|thread| !thread.is_finished()) {
                thread.kill(SIGRTMIN()).context("kicking a vCPU")?;
            }
            thread::sleep(Duration::from_micros(200));
        }
        Ok(self.threads.into_iter().map(|thread| thread.join().expect("a vCPU panicked")).collect())
    }
}

/// As many of something that gets pages as there are vCPUs.
pub fn demands<D: Demand + Clone + 'static>(vm: &Vm, demand: &D) -> Demands {
    vm.vcpus.iter().map(|_| Box::new(demand.clone()) as Box<dyn Demand>).collect()
}
