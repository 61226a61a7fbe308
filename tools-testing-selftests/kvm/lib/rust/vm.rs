// SPDX-License-Identifier: GPL-2.0-only

//! Virtual machines and their vCPUs.

use crate::{
    bindings,
    errno::Errno,
    guest::Entry,
    ktap,
    slot::{
        Backing,
        Slot, //
    },
    Region,
    Region1,
    Stage2, //
};
use std::{
    ptr::{
        self,
        NonNull, //
    },
    sync::Arc, //
};

/// Returns the size of the host's pages, in bytes.
pub fn host_page_size() -> usize {
    // SAFETY: Always safe to call.
    (unsafe { bindings::getpagesize() }) as usize
}

/// Returns what the system says about a capability.
pub fn system_capability(capability: u32) -> u32 {
    // SAFETY: Always safe to call.
    unsafe { bindings::kvm_check_cap(capability.into()) }
}

/// A VM of libkvm, freed with its last user.
pub(crate) struct VmInner(NonNull<bindings::kvm_vm>);

// SAFETY: libkvm has no state of its own for each thread.
unsafe impl Send for VmInner {}
// SAFETY: What is shared is used for system calls, and for reading what does not change once the
// slots are there: `Vm`, which adds them, cannot be shared while it does.
unsafe impl Sync for VmInner {}

impl VmInner {
    /// Returns libkvm's pointer.
    pub(crate) fn raw(&self) -> *mut bindings::kvm_vm {
        self.0.as_ptr()
    }

    /// Returns the file descriptor.
    fn fd(&self) -> i32 {
        // SAFETY: The pointer is valid until `self` is dropped.
        unsafe { (*self.raw()).fd }
    }

    /// Calls KVM_SET_USER_MEMORY_REGION2.
    pub(crate) fn set_region(&self, region: &Region) -> Result<(), Errno> {
        self.ioctl(bindings::LIBKVM_SET_USER_MEMORY_REGION2.into(), region)
    }

    /// Calls an ioctl of the VM that reads `argument`.
    fn ioctl<T>(&self, request: u64, argument: &T) -> Result<(), Errno> {
        // SAFETY: The argument is of the type that the request wants, and KVM only reads it.
        let ret = unsafe { bindings::ioctl(self.fd(), request, ptr::from_ref(argument)) };
        Errno::check(ret).map(|_| ())
    }

    /// Reads the stage 2 tables, or skips the case where debugfs does not show them.
    pub(crate) fn stage2(&self) -> Stage2 {
        Stage2::read(self.fd()).unwrap_or_else(|| {
            ktap::skip("no stage 2 tables in debugfs (CONFIG_PTDUMP_STAGE2_DEBUGFS)")
        })
    }
}

impl Drop for VmInner {
    fn drop(&mut self) {
        // SAFETY: The pointer is valid, and this is its last user.
        unsafe { bindings::kvm_vm_free(self.raw()) }
    }
}

/// A virtual machine.
pub struct Vm(Arc<VmInner>);

impl Vm {
    /// Creates a VM with vCPUs that start at `entry`.
    ///
    /// `pages` is the number of host pages that slots are going to have; libkvm has to reserve
    /// memory for the guest's own page tables.
    pub fn new(vcpus: usize, pages: usize, entry: Entry) -> (Self, Vec<Vcpu>) {
        let mut raw = vec![ptr::null_mut(); vcpus];
        // A guest page is at least 4K, and a table of 4K maps 512 of them.
        let tables = pages * (host_page_size() / 4096) / 512 + 16;
        // SAFETY: There is room for as many vCPUs as are asked for, and `entry` is guest code.
        let vm = unsafe {
            bindings::__vm_create_with_vcpus(
                bindings::vm_shape {
                    mode: bindings::vm_mode_default as u8,
                    ..Default::default()
                },
                vcpus as u32,
                tables as u64,
                entry as *mut _,
                raw.as_mut_ptr(),
            )
        };
        let vm = Arc::new(VmInner(NonNull::new(vm).expect("libkvm returned no VM")));
        let vcpus = raw
            .into_iter()
            .map(|raw| Vcpu {
                raw: NonNull::new(raw).expect("libkvm returned no vCPU"),
                _vm: Arc::clone(&vm),
            })
            .collect();
        (Self(vm), vcpus)
    }

    /// Adds a slot of `pages` host pages at a guest physical address, and maps it there in the
    /// guest's own tables.
    pub fn add_slot(&mut self, backing: Backing, id: u32, gpa: u64, pages: usize) -> Slot {
        let vm = self.0.raw();
        // SAFETY: The pointer is valid.
        let guest_page_size = unsafe { (*vm).page_size } as usize;
        let guest_pages = pages * host_page_size() / guest_page_size;
        // SAFETY: The pointer is valid, and libkvm checks what it is asked for.
        unsafe {
            bindings::vm_mem_add(vm, backing.source(), gpa, id, guest_pages as u64, 0, -1, 0);
            bindings::virt_map(vm, gpa, gpa, guest_pages as u32);
        }
        Slot::new(Arc::clone(&self.0), id, gpa, pages)
    }

    /// Returns what this VM says about a capability.
    pub fn capability(&self, capability: u32) -> i32 {
        // SAFETY: The file descriptor is open; the request has no pointer.
        unsafe {
            bindings::ioctl(
                self.0.fd(),
                bindings::LIBKVM_CHECK_EXTENSION.into(),
                u64::from(capability),
            )
        }
    }

    /// Enables a capability.
    pub fn enable_capability(&self, capability: u32) -> Result<(), Errno> {
        let argument = bindings::kvm_enable_cap {
            cap: capability,
            ..Default::default()
        };
        self.0.ioctl(bindings::LIBKVM_ENABLE_CAP.into(), &argument)
    }

    /// Calls KVM_SET_USER_MEMORY_REGION2.
    pub fn set_region(&self, region: &Region) -> Result<(), Errno> {
        self.0.set_region(region)
    }

    /// Calls KVM_SET_USER_MEMORY_REGION, the first version of the call.
    pub fn set_region1(&self, region: &Region1) -> Result<(), Errno> {
        self.0
            .ioctl(bindings::LIBKVM_SET_USER_MEMORY_REGION.into(), region)
    }
}

/// Why a vCPU stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It touched a marked page.
    Userfault {
        /// The guest address of the page.
        gpa: u64,
        /// The size of the page in bytes.
        size: u64,
    },
    /// It touched memory that KVM could not provide, for another reason.
    MemoryFault {
        /// What KVM says about the access.
        flags: u64,
        /// The guest address.
        gpa: u64,
        /// The number of bytes.
        size: u64,
    },
    /// KVM_RUN failed without saying where.
    Error {
        /// The error of the call.
        errno: Errno,
        /// The exit reason that came with it.
        reason: u32,
    },
    /// The guest called [`guest::sync`](crate::guest::sync).
    Sync(u64, u64),
    /// The guest called [`guest::done`](crate::guest::done).
    Done,
    /// Any other exit, by its reason.
    Other(u32),
}

/// A virtual CPU.
pub struct Vcpu {
    raw: NonNull<bindings::kvm_vcpu>,
    _vm: Arc<VmInner>,
}

// SAFETY: A vCPU may be run by any thread, and whoever runs it has it exclusively.
unsafe impl Send for Vcpu {}

impl Vcpu {
    /// Sets the arguments of the guest's entry point.
    pub fn set_args(&mut self, [first, second, third]: [u64; 3]) {
        // SAFETY: The pointer is valid, and the number of arguments is right.
        unsafe { bindings::vcpu_args_set(self.raw.as_ptr(), 3, first, second, third) }
    }

    /// Runs the vCPU until it stops for a reason other than a signal.
    pub fn run(&mut self) -> Exit {
        let vcpu = self.raw.as_ptr();
        // SAFETY: The pointer is valid.
        let ret = unsafe { bindings::_vcpu_run(vcpu) };
        let errno = Errno::last();
        // SAFETY: The pointers are valid, and KVM writes there only while the vCPU runs.
        let run = unsafe { &*(*vcpu).run };

        if ret < 0 {
            if errno != Errno::EFAULT || run.exit_reason != bindings::KVM_EXIT_MEMORY_FAULT {
                return Exit::Error {
                    errno,
                    reason: run.exit_reason,
                };
            }
            // SAFETY: This member is the one for the exit reason.
            let fault = unsafe { run.__bindgen_anon_1.memory_fault };
            let (flags, gpa, size) = (fault.flags, fault.gpa, fault.size);
            return if flags == u64::from(bindings::KVM_MEMORY_EXIT_FLAG_USERFAULT) {
                Exit::Userfault { gpa, size }
            } else {
                Exit::MemoryFault { flags, gpa, size }
            };
        }

        let mut call = bindings::ucall::default();
        // SAFETY: Both pointers are valid.
        match unsafe { bindings::get_ucall(vcpu, &mut call) } as u32 {
            bindings::UCALL_SYNC => Exit::Sync(call.args[0], call.args[1]),
            bindings::UCALL_DONE => Exit::Done,
            _ => Exit::Other(run.exit_reason),
        }
    }
}
