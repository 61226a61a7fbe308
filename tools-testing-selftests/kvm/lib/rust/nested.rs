// SPDX-License-Identifier: GPL-2.0-only

//! What a guest that is a hypervisor has in its memory for a guest of its own.

use crate::{
    area::Backing,
    slot::Slot,
    sys::page_size,
    units::{
        Gpa,
        Page, //
    },
    vm::Vm, //
};
use std::ops::Range;

/// The table for [`Guest::set_stage2`](crate::Guest::set_stage2): what L1 maps in L2, in
/// blocks. It has a slot of its own.
pub struct L2Table(pub Slot);

/// A valid block: accessed, inner shareable, readable and writable, executable, write-back.
const BLOCK: u64 = (1 << 10) | (3 << 8) | (3 << 6) | (0xf << 2) | 1;

/// Returns the log2 of the size of a block.
///
/// The table is of the level whose blocks are largest: level 1 for pages of 4K, else level 2.
fn block_shift() -> u32 {
    let page_shift = page_size().trailing_zeros();
    let levels_below = if page_shift == 12 { 2 } else { 1 };
    page_shift + levels_below * (page_shift - 3)
}

impl L2Table {
    /// Adds a slot with an empty table to a VM.
    pub fn new(vm: &mut Vm, id: u32, gpa: Gpa) -> Self {
        Self(Slot::new(vm, Backing::Anonymous, id, gpa, 1))
    }

    /// Maps a range of L2's addresses, in blocks, to the L1 addresses from `target` on.
    ///
    /// Any address that is a multiple of 1G is that of a block.
    pub fn map(&self, range: Range<Gpa>, target: Gpa) {
        let shift = block_shift();
        let addresses = [range.start, range.end, target];
        let is_of_block = |address: Gpa| address.0 % (1 << shift) == 0;
        assert!(addresses.into_iter().all(is_of_block), "not blocks");
        for block in (range.start.0..range.end.0).step_by(1 << shift) {
            let entry = (target.0 + (block - range.start.0)) | BLOCK;
            self.0.write(Page(0), (block >> shift) as usize, entry);
        }
    }
}
