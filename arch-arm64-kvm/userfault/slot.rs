// SPDX-License-Identifier: GPL-2.0-only

//! A memslot and its pages.

/// The number of a page of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gfn(pub(crate) u64);

/// A number of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageCount(pub(crate) u64);

/// The number of a page in its slot, which is that of its bit in the bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Page(pub(crate) u64);

/// Pages of a slot that follow each other.
///
/// # Invariants
///
/// `first` is before `end`: there is at least one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pages {
    first: Page,
    end: Page,
}

impl Pages {
    /// Creates the pages from `first` on, without `end`, or returns [`None`] if these are none.
    pub(crate) fn new(first: Page, end: Page) -> Option<Self> {
        if first >= end {
            return None;
        }
        // INVARIANT: Compared above.
        Some(Self { first, end })
    }

    /// Returns the first page.
    pub(crate) const fn first(self) -> Page {
        self.first
    }

    /// Returns the page after the last.
    pub(crate) const fn end(self) -> Page {
        self.end
    }

    /// Returns how many pages these are.
    pub(crate) const fn count(self) -> PageCount {
        // By the invariant this does not wrap.
        PageCount(self.end.0.wrapping_sub(self.first.0))
    }
}

/// Where a slot is in the guest's memory.
///
/// # Invariants
///
/// `base + count` is a [`u64`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    base: Gfn,
    count: PageCount,
}

impl Slot {
    /// Creates a slot, or returns [`None`] if no slot can be there.
    pub(crate) fn new(base: Gfn, count: PageCount) -> Option<Self> {
        base.0.checked_add(count.0)?;
        // INVARIANT: Added above.
        Some(Self { base, count })
    }

    /// Returns `count` pages from `gfn` on, or [`None`] if these are none or not all of the slot.
    pub(crate) fn pages(self, gfn: Gfn, count: PageCount) -> Option<Pages> {
        let first = gfn.0.checked_sub(self.base.0)?;
        let end = first.checked_add(count.0)?;
        if end > self.count.0 {
            return None;
        }
        Pages::new(Page(first), Page(end))
    }

    /// Returns the number in the slot of a page, or of the one after the last.
    pub(crate) fn page(self, gfn: Gfn) -> Option<Page> {
        let page = gfn.0.checked_sub(self.base.0)?;
        (page <= self.count.0).then_some(Page(page))
    }

    /// Returns the number in the guest's memory of a page of the slot, or of the one after the
    /// last.
    pub(crate) const fn gfn(self, page: Page) -> Gfn {
        // A page of the slot is at most `count`, so by the invariant this does not wrap.
        Gfn(self.base.0.wrapping_add(page.0))
    }

    /// Returns the pages that a mapping of `count` pages, a power of two, maps together with `gfn`,
    /// or [`None`] if not all of them are in the slot.
    pub(crate) fn block(self, gfn: Gfn, count: PageCount) -> Option<Pages> {
        if !count.0.is_power_of_two() {
            return None;
        }
        self.pages(Gfn(gfn.0 & !count.0.wrapping_sub(1)), count)
    }
}

#[cfg(CONFIG_KVM_ARM64_USERFAULT_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(kvm_arm64_userfault_slot)]
mod tests {
    use super::*;

    /// A slot ends at the last page that a number can have, at most.
    #[test]
    fn slot_is_in_range() {
        assert!(Slot::new(Gfn(1), PageCount(u64::MAX)).is_none());
        assert!(Slot::new(Gfn(u64::MAX), PageCount(1)).is_none());
        assert!(Slot::new(Gfn(u64::MAX - 1), PageCount(1)).is_some());
    }

    /// Pages have the same numbers on the way from the guest's memory and back, and none is outside
    /// of the slot.
    #[test]
    fn pages_are_of_the_slot() {
        let slot = Slot::new(Gfn(3), PageCount(5));
        let pages = |gfn, count| slot.and_then(|slot| slot.pages(Gfn(gfn), PageCount(count)));
        assert_eq!(pages(3, 2), Pages::new(Page(0), Page(2)));
        assert_eq!(pages(4, 4), Pages::new(Page(1), Page(5)));
        assert_eq!(pages(4, 5), None);
        assert_eq!(pages(4, u64::MAX), None);
        assert_eq!(pages(2, 4), None);
        assert_eq!(pages(8, 1), None);
        assert_eq!(pages(3, 0), None);

        let gfn = |page| slot.map(|slot| slot.gfn(Page(page)));
        assert_eq!(gfn(0), Some(Gfn(3)));
        assert_eq!(gfn(5), Some(Gfn(8)));

        let page = |gfn| slot.and_then(|slot| slot.page(Gfn(gfn)));
        assert_eq!(page(3), Some(Page(0)));
        assert_eq!(page(8), Some(Page(5)));
        assert_eq!(page(9), None);
        assert_eq!(page(2), None);
    }

    /// A block is aligned in the guest's memory, not in the slot, and is in the slot as a whole.
    #[test]
    fn block_is_within_the_slot() {
        // Base and count of a slot, a gfn, and the first page of its block of four.
        let table = [
            (0, 8, 5, Some(4)),
            (2, 8, 5, Some(2)),
            (2, 8, 9, None),
            (3, 8, 3, None),
            (5, 8, 4, None),
            (4, 3, 4, None),
            (4, 4, 8, None),
            (0, u64::MAX, u64::MAX, None),
        ];
        for (base, count, gfn, first) in table {
            let slot = Slot::new(Gfn(base), PageCount(count));
            let block = slot.and_then(|slot| slot.block(Gfn(gfn), PageCount(4)));
            assert_eq!(block.map(Pages::first), first.map(Page));
            assert!(block.is_none_or(|pages| pages.count() == PageCount(4)));
        }
    }

    /// No mapping has three pages, or none.
    #[test]
    fn block_is_a_power_of_two() {
        for count in [0, 3] {
            let slot = Slot::new(Gfn(0), PageCount(8));
            assert!(slot
                .and_then(|slot| slot.block(Gfn(0), PageCount(count)))
                .is_none());
        }
    }
}
