// SPDX-License-Identifier: GPL-2.0-only

//! Which pages of a slot are marked.

use kernel::{
    bitmap::Bitmap,
    num::casts::FromSafeCast,
    prelude::*,
    sync::barrier::{
        smp_mb,
        Read, //
    }, //
};

use crate::slot::{
    Page,
    Pages, //
};

/// The number of marks in a byte of the bitmap.
const MARKS_PER_BYTE: u64 = 8;

// The bitmap is read as bytes and looked at as words.
static_assert!(cfg!(target_endian = "little"));

/// The number of a byte in the bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Byte(pub(crate) u64);

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteCount(pub(crate) u64);

/// A slot's bitmap, in the VMM's memory.
pub(crate) trait UserBitmap {
    /// Reads `count` bytes from `first` on into `words`, in the order of the memory, or returns
    /// [`None`] where that is not possible.
    fn read(&self, first: Byte, count: ByteCount, words: &mut [usize]) -> Option<()>;
}

/// The marks of some pages, as they were when they were read.
///
/// # Invariants
///
/// The marks of `pages` are bits of `bits`, from `begin` on, without `end`.
pub(crate) struct Marks<'a> {
    bits: &'a Bitmap,
    pages: Pages,
    begin: usize,
    end: usize,
}

impl<'a> Marks<'a> {
    /// Reads the marks of `pages` into `words`.
    ///
    /// Returns [`None`] if they cannot be read or if there is not enough room. The pages may be
    /// marked then.
    pub(crate) fn read(
        bitmap: &impl UserBitmap,
        pages: Pages,
        words: &'a mut [usize],
    ) -> Option<Self> {
        let first = pages.first().0 / MARKS_PER_BYTE;
        let end = pages.end().0.div_ceil(MARKS_PER_BYTE);
        // The pages begin before they end, so this does not wrap.
        let count = ByteCount(end.wrapping_sub(first));

        bitmap.read(Byte(first), count, words)?;

        // The VMM fills a page and then clears its mark, with release semantics. Whoever sees the
        // mark clear must see the page as it was filled, and finds it by loads that follow.
        smp_mb(Read);

        Self::new(pages, words)
    }

    /// Takes the marks of `pages` that have been read into `words`.
    pub(crate) fn new(pages: Pages, words: &'a mut [usize]) -> Option<Self> {
        let bits = Bitmap::from_words(words)?;
        let begin = usize::try_from(pages.first().0 % MARKS_PER_BYTE).ok()?;
        let end = begin.checked_add(usize::try_from(pages.count().0).ok()?)?;
        if end > bits.len() {
            return None;
        }
        // INVARIANT: The marks are bits that follow each other, and the last is one of `bits`.
        Some(Self {
            bits,
            pages,
            begin,
            end,
        })
    }

    /// Returns whether none of the pages is marked.
    pub(crate) fn are_clear(&self) -> bool {
        // By the invariant `begin` is a bit that there is.
        self.bits
            .next_bit(self.begin)
            .is_none_or(|marked| marked >= self.end)
    }

    /// Returns the next pages, from `page` on, that are marked and follow each other.
    pub(crate) fn next_run(&self, page: Page) -> Option<Pages> {
        let from = self.bit(page);
        if from >= self.end {
            return None;
        }
        let first = self.bits.next_bit(from).filter(|bit| *bit < self.end)?;
        let end = self.bits.next_zero_bit(first).unwrap_or(self.end);
        Pages::new(self.page(first), self.page(end.min(self.end)))
    }

    /// Returns the bit of a page: `begin` for one before these pages, `end` or more for one after.
    fn bit(&self, page: Page) -> usize {
        let pages_before = page.0.saturating_sub(self.pages.first().0);
        usize::try_from(pages_before)
            .unwrap_or(usize::MAX)
            .saturating_add(self.begin)
    }

    /// Returns the page of a bit of the range, or its end.
    fn page(&self, bit: usize) -> Page {
        let pages_before = u64::from_safe_cast(bit.wrapping_sub(self.begin));
        // By the invariant this does not wrap.
        Page(self.pages.first().0.wrapping_add(pages_before))
    }
}

#[cfg(CONFIG_KVM_ARM64_USERFAULT_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(kvm_arm64_userfault_marks)]
mod tests {
    use super::*;

    /// A bitmap with a mark for each of some pages, of which some bytes can be read.
    struct Marked<'a> {
        pages: &'a [u64],
        bytes: u64,
    }

    impl UserBitmap for Marked<'_> {
        fn read(&self, first: Byte, count: ByteCount, words: &mut [usize]) -> Option<()> {
            for (page, word) in (first.0 * 8..).step_by(64).zip(words) {
                let mark = |n| usize::from(self.pages.contains(&(page + n))) << n;
                *word = (0..64).fold(0, |bits, n| bits | mark(n));
            }
            (first.0 + count.0 <= self.bytes).then_some(())
        }
    }

    /// Returns whether pages are known to be clear where others are marked.
    fn are_clear(first: u64, end: u64, marked: &[u64], bytes: u64) -> bool {
        let bitmap = Marked {
            pages: marked,
            bytes,
        };
        Pages::new(Page(first), Page(end))
            .and_then(|pages| Some(Marks::read(&bitmap, pages, &mut [0; 2])?.are_clear()))
            .unwrap_or(false)
    }

    /// Each page counts, wherever its mark is in a byte or a word, and no neighbour does.
    #[test]
    fn marks_of_the_pages_count() {
        for (first, end) in [
            (0, 1),
            (0, 64),
            (3, 70),
            (7, 128),
            (9, 128),
            (64, 72),
            (100, 101),
        ] {
            assert!(are_clear(first, end, &[], 100));
            for page in [first, (first + end) / 2, end - 1] {
                assert!(!are_clear(first, end, &[page], 100));
            }
            assert!(are_clear(
                first,
                end,
                &[end, end + 1, first.wrapping_sub(1)],
                100
            ));
        }
    }

    /// Runs are as long as they can be, wherever they begin and end, and come in order.
    #[test]
    fn runs_are_the_marked_pages() {
        type Range = (u64, u64);

        // The pages, which of them are marked, and the runs.
        let table: [(Range, &[u64], &[Range]); 7] = [
            ((0, 128), &[], &[]),
            ((0, 128), &[0, 1, 2, 127], &[(0, 3), (127, 128)]),
            ((0, 128), &[62, 63, 64, 65], &[(62, 66)]),
            ((3, 100), &[2, 3, 5, 99, 100], &[(3, 4), (5, 6), (99, 100)]),
            ((5, 6), &[4, 5, 6], &[(5, 6)]),
            ((130, 200), &[131, 132, 150], &[(131, 133), (150, 151)]),
            ((130, 200), &[129, 200], &[]),
        ];
        for ((first, end), pages, runs) in table {
            let bitmap = Marked { pages, bytes: 100 };
            let mut words = [0; 2];
            let marks = Pages::new(Page(first), Page(end))
                .and_then(|pages| Marks::read(&bitmap, pages, &mut words));
            let mut from = Page(0);
            for &(first, end) in runs {
                let run = marks.as_ref().and_then(|marks| marks.next_run(from));
                assert_eq!(run, Pages::new(Page(first), Page(end)));
                from = Page(end);
            }
            assert!(marks.is_some_and(|marks| marks.next_run(from).is_none()));
        }
    }

    /// What cannot be read, or has no room, is not known to be clear.
    #[test]
    fn unread_marks_are_not_clear() {
        assert!(are_clear(0, 80, &[], 10));
        assert!(!are_clear(0, 81, &[], 10));
        assert!(are_clear(0, 128, &[], 100));
        assert!(!are_clear(0, 129, &[], 100));
        assert!(!are_clear(7, 136, &[], 100));
    }

    /// No pages are not known to be clear, nor are pages that end before they begin.
    #[test]
    fn no_pages_are_not_clear() {
        assert!(!are_clear(0, 0, &[], 100));
        assert!(!are_clear(2, 1, &[], 100));
    }
}
