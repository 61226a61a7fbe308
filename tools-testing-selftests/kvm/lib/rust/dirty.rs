// SPDX-License-Identifier: GPL-2.0-only

//! Dirty logging, by bitmap and by ring.

use crate::*;
use std::sync::atomic::{
    AtomicU32,
    Ordering, //
};

// SAFETY: This takes what api.rst has for it. The address is of a bitmap for all of the slot, which
// nobody changes meanwhile.
const GET_DIRTY_LOG: Ioctl<bindings::kvm_dirty_log> =
    unsafe { Ioctl::new(bindings::LIBKVM_GET_DIRTY_LOG) };
// SAFETY: As above.
const CLEAR_DIRTY_LOG: Ioctl<bindings::kvm_clear_dirty_log> =
    unsafe { Ioctl::new(bindings::LIBKVM_CLEAR_DIRTY_LOG) };
// SAFETY: This takes no argument, and a number is ignored.
const RESET_DIRTY_RINGS: Number = unsafe { Number::new(bindings::LIBKVM_RESET_DIRTY_RINGS) };

impl Slot {
    /// Returns the pages that KVM_GET_DIRTY_LOG reports.
    ///
    /// KVM starts over, unless it leaves that to the VMM.
    #[track_caller]
    pub fn dirty_pages(&self) -> Vec<Page> {
        let _changing = self.changing();
        let count = self.pages();
        let mut bitmap = vec![0u64; count.div_ceil(64)];
        let mut log = bindings::kvm_dirty_log {
            slot: self.id(),
            ..Default::default()
        };
        log.__bindgen_anon_1.dirty_bitmap = bitmap.as_mut_ptr().cast();
        GET_DIRTY_LOG
            .call(self.vm().fd(), &mut log)
            .expect("KVM_GET_DIRTY_LOG failed");
        let is_dirty = |page: &Page| bitmap[page.0 / 64] & (1 << (page.0 % 64)) != 0;
        pages(0..count).filter(is_dirty).collect()
    }

    /// Has KVM watch all pages for writes anew, where it leaves that to the VMM.
    #[track_caller]
    pub fn clear_dirty_log(&self) {
        let _changing = self.changing();
        let count = self.pages();
        let mut ones = vec![u64::MAX; count.div_ceil(64)];
        let mut clear = bindings::kvm_clear_dirty_log {
            slot: self.id(),
            num_pages: count as u32,
            ..Default::default()
        };
        clear.__bindgen_anon_1.dirty_bitmap = ones.as_mut_ptr().cast();
        CLEAR_DIRTY_LOG
            .call(self.vm().fd(), &mut clear)
            .expect("KVM_CLEAR_DIRTY_LOG failed");
    }
}

impl Vcpu {
    /// Takes pages out of the dirty ring and returns them, by the number of their slot and their
    /// own.
    #[track_caller]
    pub fn harvest_dirty_ring(&mut self) -> Vec<(u32, Page)> {
        let vcpu = self.raw;
        // SAFETY: The vCPU is valid, and libkvm ends the program if it has no ring.
        let ring = unsafe { bindings::vcpu_map_dirty_ring(vcpu) };
        let ring: *mut bindings::kvm_dirty_gfn = ring.cast();
        // SAFETY: libkvm has set the number of entries when it mapped the ring.
        let (entries, first) = unsafe { ((*vcpu).dirty_gfns_count, (*vcpu).fetch_index) };
        let mut harvested = Vec::new();
        for index in first..first + entries {
            // SAFETY: There are so many entries, and the vCPU, which KVM writes them for, is not
            // running as it is borrowed here.
            unsafe {
                let entry = ring.add((index % entries) as usize);
                let flags = AtomicU32::from_ptr(&raw mut (*entry).flags);
                if flags.load(Ordering::Acquire) & bindings::LIBKVM_DIRTY_GFN_F_DIRTY == 0 {
                    break;
                }
                harvested.push(((*entry).slot, Page((*entry).offset as usize)));
                // KVM reads the flag before it uses the entry again.
                flags.store(bindings::LIBKVM_DIRTY_GFN_F_RESET, Ordering::Release);
            }
        }
        // SAFETY: The vCPU is exclusively ours.
        unsafe { (*vcpu).fetch_index += harvested.len() as u32 };
        RESET_DIRTY_RINGS
            .call(self.vm().fd(), 0)
            .expect("KVM_RESET_DIRTY_RINGS failed");
        harvested
    }
}
