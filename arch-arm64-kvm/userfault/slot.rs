// SPDX-License-Identifier: GPL-2.0-only

//! The pages of a slot.

/// The number of a page of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gfn(pub u64);

/// Pages of a slot, by their numbers in its bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// The first one.
    pub first: u64,
    /// The one after the last.
    pub end: u64,
}

impl Pages {
    /// Returns how many these are.
    pub const fn count(self) -> u64 {
        self.end.saturating_sub(self.first)
    }
}

/// Where a slot is in the guest's memory.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    base: Gfn,
    count: u64,
}

impl Slot {
    /// Creates a slot of `count` pages, of which the first is `base`.
    pub const fn new(base: Gfn, count: u64) -> Self {
        Self { base, count }
    }

    /// Returns all of its pages.
    pub const fn pages(self) -> Pages {
        Pages {
            first: 0,
            end: self.count,
        }
    }

    /// Returns the page that has a number in the bitmap.
    pub const fn gfn(self, page: u64) -> Gfn {
        Gfn(self.base.0.saturating_add(page))
    }

    /// Returns the pages that a block of `count` pages, a power of two, maps if it maps `gfn`, or
    /// [`None`] if one of them is not in the slot.
    pub fn block(self, gfn: Gfn, count: u64) -> Option<Pages> {
        let aligned = gfn.0 & !count.wrapping_sub(1);
        let first = aligned.checked_sub(self.base.0)?;
        let end = first.checked_add(count)?;
        (end <= self.count).then_some(Pages { first, end })
    }
}
