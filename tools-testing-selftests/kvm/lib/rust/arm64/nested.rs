// SPDX-License-Identifier: GPL-2.0-only

//! What a guest that is a hypervisor has in its memory for a guest of its own.

use crate::*;
use std::ops::Range;

/// The tables for [`Guest::set_stage2`](crate::Guest::set_stage2): what L1 maps in L2.
///
/// They have a slot of their own: a table of blocks, and one of pages.
pub struct L2Table {
    /// The slot.
    pub slot: Slot,
    granule: u64,
}

/// What all entries have.
const VALID: u64 = 1;

/// What entries have that point to a table, and those of pages.
const TABLE_OR_PAGE: u64 = 1 << 1;

/// What an entry has that maps memory: accessed, inner shareable, readable and writable,
/// executable, write-back.
const MEMORY: u64 = L2Table::ACCESSED | (3 << 8) | (3 << 6) | (0xf << 2) | VALID;

impl L2Table {
    /// The access flag of an entry.
    pub const ACCESSED: u64 = 1 << 10;

    /// Adds a slot with empty tables to a VM, for a granule of so many bytes.
    #[track_caller]
    pub fn new(vm: &mut Vm, backing: Backing, id: u32, gpa: Gpa, granule: usize) -> Self {
        let slot = Slot::new(vm, backing, id, gpa, 2 * granule / page_size());
        let granule = granule as u64;
        Self { slot, granule }
    }

    /// Returns the log2 of the size of a block.
    ///
    /// The table is of the level whose blocks are largest: level 1 for pages of 4K, else level 2.
    fn block_shift(&self) -> u32 {
        let page_shift = self.granule.trailing_zeros();
        let levels_below = if page_shift == 12 { 2 } else { 1 };
        page_shift + levels_below * (page_shift - 3)
    }

    /// Sets entry `index` of the table of blocks, or past its end of that of pages.
    fn set(&self, index: u64, entry: u64) {
        self.slot.write(Page(0), index as usize, entry | VALID);
    }

    /// Maps a range of L2's addresses, in blocks, to the L1 addresses from `target` on.
    ///
    /// Any address that is a multiple of 1G is that of a block.
    #[track_caller]
    pub fn map(&self, range: Range<Gpa>, target: Gpa) {
        let shift = self.block_shift();
        let addresses = [range.start, range.end, target];
        let is_of_block = |address: Gpa| address.0 % (1 << shift) == 0;
        assert!(addresses.into_iter().all(is_of_block), "not blocks");
        for block in (range.start.0..range.end.0).step_by(1 << shift) {
            let output = target.0 + (block - range.start.0);
            self.set(block >> shift, output | MEMORY);
        }
    }

    /// Returns the entry of the block that an address of L2 is in.
    pub fn block(&self, address: Gpa) -> u64 {
        let index = address.0 >> self.block_shift();
        self.slot.read(Page(0), index as usize)
    }

    /// Maps one of L2's pages, of the size of the granule, to L1's at `target`.
    ///
    /// All such pages are in the place of one block.
    #[track_caller]
    pub fn map_page(&self, address: Gpa, target: Gpa) {
        assert_ne!(self.granule, 4096, "its blocks have no table of pages");
        let (granule, shift) = (self.granule, self.block_shift());
        let pages = self.slot.gpa(Page(0)) + Bytes(granule);
        self.set(address.0 >> shift, pages.0 | TABLE_OR_PAGE);
        let number = address.0 % (1 << shift) / granule;
        let first = granule / size_of::<u64>() as u64;
        self.set(first + number, target.0 | MEMORY | TABLE_OR_PAGE);
    }
}
