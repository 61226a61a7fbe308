// SPDX-License-Identifier: GPL-2.0-only

//! What vCPUs, slots and the VM that they belong to have in common.

use crate::*;
use std::{
    fs::File,
    os::fd::{
        AsRawFd,
        FromRawFd,
        RawFd, //
    },
    ptr::NonNull,
    sync::Mutex, //
};

// SAFETY: This takes a number.
const CREATE_VM: Number = unsafe { Number::new(bindings::LIBKVM_CREATE_VM) };
// SAFETY: As above.
const CHECK_EXTENSION: Number = unsafe { Number::new(bindings::LIBKVM_CHECK_EXTENSION) };

/// A VM of libkvm or without it, freed with its last user, and then the memory that it was given.
pub(crate) struct VmInner {
    /// libkvm's VM, or the file of one that libkvm does not know.
    raw: Result<NonNull<bindings::kvm_vm>, File>,
    fd: RawFd,
    /// All that slots were ever made of, and bitmaps: KVM may go on to use them.
    kept: Mutex<Vec<Area>>,
    /// The numbers of slots that a [`Slot`](crate::Slot) stands for.
    claimed: Mutex<Vec<u32>>,
}

// SAFETY: What `raw` points to is not bound to a thread, nor is what libkvm has besides.
unsafe impl Send for VmInner {}
// SAFETY: What is shared calls ioctls of the file descriptor. `raw` is used by `Vm`, in methods
// that take it mutably, and by whoever drops the last reference. A `Vcpu`, which has the pointer
// from libkvm, reads fields that never change.
unsafe impl Sync for VmInner {}

impl Drop for VmInner {
    fn drop(&mut self) {
        if let Ok(raw) = self.raw {
            // SAFETY: The pointer is valid, and this is its last user.
            unsafe { bindings::kvm_vm_free(raw.as_ptr()) }
        }
    }
}

impl VmInner {
    /// Wraps a VM of libkvm.
    ///
    /// # Safety
    ///
    /// The VM must be valid, and whoever uses the pointer must have the only [`Vm`](crate::Vm) of
    /// it mutably.
    pub(crate) unsafe fn new(raw: NonNull<bindings::kvm_vm>) -> Self {
        Self {
            raw: Ok(raw),
            // SAFETY: The pointer is valid.
            fd: unsafe { (*raw.as_ptr()).fd },
            kept: Mutex::default(),
            claimed: Mutex::default(),
        }
    }

    /// Creates a VM of which libkvm does not know: there is nothing in it but slots.
    pub(crate) fn bare(kind: u32) -> Result<Self, Errno> {
        let kvm = File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .expect("cannot open /dev/kvm");
        let fd = CREATE_VM.call(kvm.as_raw_fd(), kind.into())?;
        Ok(Self {
            // SAFETY: The file descriptor is new and has no other owner.
            raw: Err(unsafe { File::from_raw_fd(fd) }),
            fd,
            kept: Mutex::default(),
            claimed: Mutex::default(),
        })
    }

    /// Returns libkvm's pointer.
    pub(crate) fn raw(&self) -> *mut bindings::kvm_vm {
        let raw = self.raw.as_ref().expect("libkvm does not know the VM");
        raw.as_ptr()
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.fd
    }

    /// Keeps memory for as long as the VM is there.
    pub(crate) fn keep(&self, area: &Area) {
        // What is the VM's own keeps the VM.
        if !area.is_owned_by(self) {
            let mut kept = self.kept.lock().expect("another thread has failed");
            kept.push(area.clone());
        }
    }

    /// Has a slot's number be that of one [`Slot`](crate::Slot) and no other, which so knows how
    /// large the slot is.
    #[track_caller]
    pub(crate) fn claim(&self, slot: u32) {
        let mut claimed = self.claimed.lock().expect("another thread has failed");
        assert!(!claimed.contains(&slot), "there is a slot {slot} already");
        claimed.push(slot);
    }

    /// Returns whether there is a [`Slot`](crate::Slot) of a number, or was.
    pub(crate) fn is_claimed(&self, slot: u32) -> bool {
        let claimed = self.claimed.lock().expect("another thread has failed");
        claimed.contains(&slot)
    }

    /// Returns what this VM says about a capability.
    pub(crate) fn capability(&self, capability: u32) -> i32 {
        CHECK_EXTENSION
            .call(self.fd, capability.into())
            .expect("KVM_CHECK_EXTENSION failed")
    }
}
