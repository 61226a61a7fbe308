// SPDX-License-Identifier: GPL-2.0-only

//! Dirty logging, by bitmap and by ring.

use crate::{
    bindings,
    errno::Errno,
    Slot,
    Vcpu,
    Vm, //
};
use std::ptr;

impl Slot {
    /// Returns the pages that KVM_GET_DIRTY_LOG reports, and starts over.
    pub fn dirty_pages(&self) -> Vec<usize> {
        let mut bitmap = vec![0u64; self.pages().div_ceil(64)];
        let mut log = bindings::kvm_dirty_log {
            slot: self.region().slot,
            ..Default::default()
        };
        log.__bindgen_anon_1.dirty_bitmap = bitmap.as_mut_ptr().cast();
        self.ioctl(bindings::LIBKVM_GET_DIRTY_LOG, &log)
            .expect("KVM_GET_DIRTY_LOG failed");
        (0..self.pages())
            .filter(|page| bitmap[page / 64] & (1 << (page % 64)) != 0)
            .collect()
    }
}

impl Slot {
    /// Has KVM watch all pages for writes anew, where it leaves that to the VMM.
    pub fn clear_dirty_log(&self) {
        let ones = vec![u64::MAX; self.pages().div_ceil(64)];
        let mut clear = bindings::kvm_clear_dirty_log {
            slot: self.region().slot,
            num_pages: self.pages() as u32,
            ..Default::default()
        };
        clear.__bindgen_anon_1.dirty_bitmap = ones.as_ptr() as *mut _;
        self.ioctl(bindings::LIBKVM_CLEAR_DIRTY_LOG, &clear)
            .expect("KVM_CLEAR_DIRTY_LOG failed");
    }
}

impl Vm {
    /// Leaves it to the VMM to have pages watched for writes: they are all dirty at first.
    pub fn set_initially_dirty(&self) -> Result<(), Errno> {
        let how = bindings::LIBKVM_DIRTY_LOG_INITIALLY_SET.into();
        self.enable_capability(bindings::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, how)
    }

    /// Lets vCPUs that are added later have dirty rings, or returns why that is not possible.
    pub(crate) fn enable_dirty_ring(&self, entries: usize) -> Result<(), Errno> {
        let size = entries * size_of::<bindings::kvm_dirty_gfn>();
        if self.capability(bindings::KVM_CAP_DIRTY_LOG_RING_ACQ_REL) < size as i32 {
            return Err(Errno::EINVAL);
        }
        // SAFETY: The VM is valid.
        unsafe { bindings::vm_enable_dirty_ring(self.raw(), size as u32) };
        Ok(())
    }
}

impl Vcpu {
    /// Returns the pages, by slot and number, that the vCPU's dirty ring holds.
    pub fn dirty_ring(&self) -> Vec<(u32, u64)> {
        // SAFETY: The vCPU is valid and has a ring.
        let ring = unsafe { bindings::vcpu_map_dirty_ring(self.raw()) };
        let ring: *const bindings::kvm_dirty_gfn = ring.cast();
        // SAFETY: libkvm has set the number of entries when it mapped the ring.
        let entries = unsafe { (*self.raw()).dirty_gfns_count } as usize;
        (0..entries)
            // SAFETY: There are so many entries, and the vCPU, which KVM writes them for, is not
            // running as it is borrowed here.
            .map(|index| unsafe { ptr::read_volatile(ring.add(index)) })
            .take_while(|entry| entry.flags & bindings::LIBKVM_DIRTY_GFN_F_DIRTY != 0)
            .map(|entry| (entry.slot, entry.offset))
            .collect()
    }
}
