// SPDX-License-Identifier: GPL-2.0-only

//! How large a stage 2 mapping may be.

/// The size of a stage 2 mapping in bytes, which C has found to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MapSize(u64);

impl MapSize {
    /// Creates a size from a number of bytes.
    pub(crate) const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns the number of bytes.
    pub(crate) const fn bytes(self) -> u64 {
        self.0
    }
}

/// The sizes that a mapping in a slot with `KVM_MEM_USERFAULT` can have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    page: MapSize,
    block: MapSize,
    pages_per_block: u64,
}

impl Sizes {
    /// Returns the sizes of a host that has such pages: a table of them is a page of 64-bit
    /// entries, and a block maps what the table would.
    pub(crate) const fn new(page: MapSize) -> Self {
        let pages_per_block = page.0 / 8;
        Self {
            page,
            block: MapSize(page.0.saturating_mul(pages_per_block)),
            pages_per_block,
        }
    }

    /// Returns the size of a mapping, at most `found`.
    ///
    /// A block must not cover a marked page, as the guest could access that without an exit.
    /// Whether the block of a number of pages is clear is what `is_clear` answers, and it is asked
    /// only if C has found that a block is possible.
    pub(crate) fn limit(self, found: MapSize, is_clear: impl FnOnce(u64) -> bool) -> MapSize {
        if found >= self.block && is_clear(self.pages_per_block) {
            self.block
        } else {
            found.min(self.page)
        }
    }
}
