// SPDX-License-Identifier: GPL-2.0-only

//! The bitmap of a slot, in the VMM's memory.

use kernel::{
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

use crate::slot::{
    Gfn,
    Slot, //
};

/// A slot and its bitmap.
pub struct UserfaultSlot {
    /// The slot.
    pub slot: Slot,
    bitmap: UserPtr,
}

impl UserfaultSlot {
    /// Creates a slot from what C knows of it.
    pub fn new(bitmap: *const u8, base_gfn: u64, npages: u64) -> Self {
        Self {
            slot: Slot {
                base: Gfn(base_gfn),
                count: npages,
            },
            bitmap: UserPtr::from_ptr(bitmap.cast_mut().cast()),
        }
    }

    /// Reads bytes of the bitmap, from the byte `start` on.
    ///
    /// The VMM may change them at any time, so nothing may rely on a second read.
    pub fn read(&self, start: u64, bytes: &mut [u8]) -> Result {
        let bitmap = self.bitmap.wrapping_byte_add(start as usize);
        UserSlice::new(bitmap, bytes.len())
            .reader()
            .read_slice(bytes)
    }
}
