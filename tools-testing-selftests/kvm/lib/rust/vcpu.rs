// SPDX-License-Identifier: GPL-2.0-only

//! vCPUs, and why they stop running.

use crate::*;
use std::{
    ffi::CStr,
    process,
    sync::{
        atomic::{
            AtomicBool,
            AtomicI32,
            AtomicU64,
            AtomicU8,
            Ordering, //
        },
        Arc, //
    },
};

// SAFETY: The argument of KVM_RUN is a number.
const RUN: Number = unsafe { Number::new(bindings::LIBKVM_RUN) };

/// Why a vCPU stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It touched a marked page.
    Userfault {
        /// The guest address of the page.
        gpa: Gpa,
        /// The size of the page.
        size: Bytes,
    },
    /// It touched memory that KVM could not provide, for another reason.
    MemoryFault {
        /// What KVM says about the access.
        flags: u64,
        /// The guest address.
        gpa: Gpa,
        /// The number of bytes.
        size: Bytes,
    },
    /// KVM_RUN failed without saying where.
    Error(Errno),
    /// The guest called [`Guest::sync`](crate::guest::Guest::sync).
    Sync(u64, u64),
    /// The guest called [`Guest::done`](crate::guest::Guest::done).
    Done,
    /// The guest took an exception.
    Exception {
        /// The number of the vector: 0 to 3 for the current EL with SP_EL0, 4 to 7 for the current
        /// EL, 8 to 11 for a lower one.
        vector: u64,
        /// The exception class, or 0 where the exception has none.
        class: u64,
    },
    /// The guest accessed a guest address without memory, or wrote to one that is read-only.
    Mmio {
        /// The guest address.
        gpa: Gpa,
        /// Whether it was a write.
        is_write: bool,
    },
    /// Its dirty ring is full.
    DirtyRingFull,
    /// [`Kick::kick`] was called.
    Kicked,
    /// Any other exit, by its reason.
    Other(u32),
}

impl Exit {
    /// Returns the exit by which an access must end to a page that is marked, at its address.
    pub fn userfault(gpa: Gpa) -> Self {
        Self::Userfault {
            gpa,
            size: Bytes(page_size() as u64),
        }
    }

    /// Returns what [`guest::read_pages`](crate::guest::read_pages) tells about a page that holds
    /// its number.
    pub fn numbered(page: Page) -> Self {
        Self::Sync(page.into(), page.into())
    }
}

/// Gets a vCPU out of the guest, from another thread.
#[derive(Clone)]
pub struct Kick(Arc<Kicked>);

struct Kicked {
    asked: AtomicBool,
    /// The thread that has run the vCPU last.
    thread: AtomicI32,
    immediate_exit: *const AtomicU8,
    vm: Arc<VmInner>,
}

// SAFETY: The byte is mapped for as long as the VM is there, and is accessed by atomics only.
unsafe impl Send for Kicked {}
// SAFETY: As above.
unsafe impl Sync for Kicked {}

impl Kick {
    /// Has the vCPU's next, or current, call of [`Vcpu::run`] return [`Exit::Kicked`].
    pub fn kick(&self) {
        // For a thread that is about to enter the guest, and one that is in there. Whoever takes
        // the byte back sees after that who has asked.
        self.0.asked.store(true, Ordering::SeqCst);
        self.immediate_exit().store(1, Ordering::SeqCst);
        let thread = self.0.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: The call takes numbers. Whichever thread of this process gets the signal has
            // a handler for it, which does nothing.
            unsafe {
                let (call, signal) = (bindings::SYS_tgkill.into(), bindings::SIGUSR1);
                bindings::syscall(call, process::id(), thread, signal);
            }
        }
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: The byte is valid while `self` has the VM.
        unsafe { &*self.0.immediate_exit }
    }

    /// Returns whether somebody has asked since this was called last.
    fn take(&self) -> bool {
        self.immediate_exit().store(0, Ordering::SeqCst);
        self.0.asked.swap(false, Ordering::SeqCst)
    }
}

/// A virtual CPU.
pub struct Vcpu {
    /// libkvm's pointer.
    ///
    /// Who uses it has the vCPU mutably, or reads what never changes.
    pub(crate) raw: *mut bindings::kvm_vcpu,
    kick: Kick,
    /// Where ucalls are, and where libkvm's memory is.
    ucall: Gpa,
    memory: (u64, u64),
}

// SAFETY: A vCPU may be run by any thread, and whoever runs it has it exclusively. The VM stays
// there with it.
unsafe impl Send for Vcpu {}

impl Vcpu {
    /// # Safety
    ///
    /// The vCPU must be one of the VM, and have no other user.
    pub(crate) unsafe fn new(raw: *mut bindings::kvm_vcpu, vm: Arc<VmInner>) -> Self {
        // SAFETY: The pointers are valid, and the handler does nothing: the signal itself is what
        // ends KVM_RUN.
        unsafe {
            bindings::signal(bindings::SIGUSR1 as i32, Some(ignore));
            let region = (*bindings::memslot2region((*raw).vm, 0)).region;
            let immediate_exit = &raw const (*(*raw).run).immediate_exit;
            Self {
                raw,
                kick: Kick(Arc::new(Kicked {
                    asked: AtomicBool::new(false),
                    thread: AtomicI32::new(0),
                    immediate_exit: immediate_exit.cast(),
                    vm,
                })),
                ucall: Gpa((*(*raw).vm).ucall_mmio_addr),
                memory: (region.userspace_addr, region.memory_size),
            }
        }
    }

    /// Returns what gets the vCPU out of the guest.
    pub fn kicker(&self) -> Kick {
        self.kick.clone()
    }

    /// Sets the arguments of the guest's entry point that follow its
    /// [`Guest`](crate::guest::Guest).
    pub fn set_args(&mut self, base: Gva, first: u64, second: u64) {
        // SAFETY: The pointer is valid, and the number of arguments is right.
        unsafe { bindings::vcpu_args_set(self.raw, 4, 0_u64, base.0, first, second) }
    }

    /// Returns the VM.
    pub(crate) fn vm(&self) -> &VmInner {
        &self.kick.0.vm
    }

    fn fd(&self) -> i32 {
        // SAFETY: The pointer is valid.
        unsafe { (*self.raw).fd }
    }

    /// Lets KVM report to the guest, at a guest address, how much time was stolen from the vCPU,
    /// or skips the case where KVM does not.
    #[track_caller]
    pub fn set_steal_time(&mut self, gpa: Gpa) {
        if self.vm().capability(bindings::KVM_CAP_STEAL_TIME) == 0 {
            ktap::skip("KVM reports no stolen time here");
        }
        let (group, what) = (
            bindings::KVM_ARM_VCPU_PVTIME_CTRL,
            bindings::KVM_ARM_VCPU_PVTIME_IPA,
        );
        let set = set_attribute(self.fd(), group, what, &gpa.0);
        set.expect("cannot set where stolen time goes");
    }

    /// Returns a statistic of the vCPU.
    pub fn stat(&mut self, name: &CStr) -> u64 {
        let mut value = 0;
        // SAFETY: The vCPU is valid, and there is room for one element.
        unsafe {
            bindings::kvm_get_stat(&mut (*self.raw).stats, name.as_ptr(), &mut value, 1);
        }
        value
    }

    /// Runs the vCPU until it stops for a reason other than a signal.
    #[track_caller]
    pub fn run(&mut self) -> Exit {
        // SAFETY: The call takes nothing.
        let thread = unsafe { bindings::gettid() };
        self.kick.0.thread.store(thread, Ordering::SeqCst);
        loop {
            if self.kick.take() {
                return Exit::Kicked;
            }
            // Not libkvm's function, which ends the program when the guest takes an exception.
            match RUN.call(self.fd(), 0) {
                Err(Errno::EINTR) => {}
                result => return self.exit(result.err()),
            }
        }
    }

    /// Returns why KVM_RUN has returned.
    #[track_caller]
    fn exit(&mut self, error: Option<Errno>) -> Exit {
        // SAFETY: The pointer is valid, and KVM writes there only while the vCPU runs.
        let run = unsafe { (*self.raw).run };
        // SAFETY: As above.
        let reason = unsafe { (*run).exit_reason };
        match (error, reason) {
            (Some(Errno::EFAULT), bindings::KVM_EXIT_MEMORY_FAULT) => {
                // SAFETY: As above, and this member is the one for the exit reason.
                let fault = unsafe { (*run).__bindgen_anon_1.memory_fault };
                let (flags, gpa, size) = (fault.flags, Gpa(fault.gpa), Bytes(fault.size));
                if flags == u64::from(bindings::KVM_MEMORY_EXIT_FLAG_USERFAULT) {
                    Exit::Userfault { gpa, size }
                } else {
                    Exit::MemoryFault { flags, gpa, size }
                }
            }
            (Some(errno), _) => Exit::Error(errno),
            (None, bindings::KVM_EXIT_MMIO) => {
                // SAFETY: As above, and this member is the one for the exit reason.
                let mmio = unsafe { (*run).__bindgen_anon_1.mmio };
                let (gpa, is_write) = (Gpa(mmio.phys_addr), mmio.is_write != 0);
                if gpa == self.ucall && is_write && mmio.len == 8 {
                    self.call(u64::from_ne_bytes(mmio.data))
                } else {
                    Exit::Mmio { gpa, is_write }
                }
            }
            (None, bindings::KVM_EXIT_DIRTY_RING_FULL) => Exit::DirtyRingFull,
            (None, reason) => Exit::Other(reason),
        }
    }

    /// Returns what the guest has called the host for: the address is that of the call in libkvm's
    /// memory, as the host has it.
    #[track_caller]
    fn call(&self, address: u64) -> Exit {
        let (start, len) = self.memory;
        let offset = address.wrapping_sub(start);
        let size = size_of::<bindings::ucall>() as u64;
        assert!(
            offset < len && len - offset >= size && offset % 8 == 0,
            "the guest has no ucall"
        );
        let call = address as *mut bindings::ucall;
        // SAFETY: This is inside libkvm's memory, which is there while the VM is, and aligned. Who
        // accesses it meanwhile does so by atomics of this size.
        let [command, first, second] = unsafe {
            let words = [
                &raw mut (*call).cmd,
                &raw mut (*call).args[0],
                &raw mut (*call).args[1],
            ];
            words.map(|word| AtomicU64::from_ptr(word).load(Ordering::Relaxed))
        };
        match command as u32 {
            bindings::UCALL_SYNC => Exit::Sync(first, second),
            bindings::UCALL_DONE => Exit::Done,
            bindings::UCALL_UNHANDLED => Exit::Exception {
                vector: first,
                class: second,
            },
            other => panic!("unknown ucall {other}"),
        }
    }
}
