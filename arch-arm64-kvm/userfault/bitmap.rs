// SPDX-License-Identifier: GPL-2.0-only

//! The bitmap of a slot, in the VMM's memory.

use kernel::{
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

/// Where a bitmap is.
pub struct Bitmap(UserPtr);

impl Bitmap {
    /// Creates a bitmap from an address in user space.
    pub fn new(address: *const u8) -> Self {
        Self(UserPtr::from_ptr(address.cast_mut().cast()))
    }

    /// Reads bytes of the bitmap, from the byte `start` on.
    ///
    /// The VMM may change them at any time, so nothing may rely on a second read.
    pub fn read(&self, start: u64, bytes: &mut [u8]) -> Result {
        let address = self.0.wrapping_byte_add(start as usize);
        UserSlice::new(address, bytes.len())
            .reader()
            .read_slice(bytes)
    }
}
