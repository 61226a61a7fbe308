// SPDX-License-Identifier: GPL-2.0-only

//! Which pages an enable takes away, chunk by chunk of a slot.

use crate::{
    marks::{
        Marks,
        UserBitmap, //
    },
    slot::{
        Gfn,
        Page,
        PageCount,
        Slot, //
    },
};

/// Marked pages that follow each other, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first page.
    pub(crate) first: Gfn,
    /// The page after the last.
    pub(crate) end: Gfn,
    /// How many there are.
    pub(crate) count: PageCount,
}

/// A part of a slot whose marks have been read, and where to look for the next run.
///
/// # Invariants
///
/// The pages of `marks` are pages of `slot`.
pub(crate) struct Chunk<'a> {
    slot: Slot,
    marks: Marks<'a>,
    next: Page,
}

impl<'a> Chunk<'a> {
    /// Reads the marks of `count` pages from `first` on into `words`.
    ///
    /// Returns [`None`] where that is not possible. All pages may be marked then.
    pub(crate) fn read(
        slot: Slot,
        first: Gfn,
        count: PageCount,
        bitmap: &impl UserBitmap,
        words: &'a mut [usize],
    ) -> Option<Self> {
        let pages = slot.pages(first, count)?;
        let marks = Marks::read(bitmap, pages, words)?;
        let next = pages.first();
        // INVARIANT: `pages` are of the slot.
        Some(Self { slot, marks, next })
    }

    /// Goes on from the page `next` with a chunk that has been read into `words`.
    ///
    /// Returns [`None`] if there is no such chunk. All pages may be marked then.
    pub(crate) fn resume(
        slot: Slot,
        first: Gfn,
        count: PageCount,
        next: Gfn,
        words: &'a mut [usize],
    ) -> Option<Self> {
        let pages = slot.pages(first, count)?;
        let marks = Marks::new(pages, words)?;
        let next = slot.page(next)?;
        // INVARIANT: `pages` are of the slot.
        Some(Self { slot, marks, next })
    }

    /// Returns the next marked pages, or [`None`] if there are no more.
    pub(crate) fn next_run(&self) -> Option<Run> {
        let pages = self.marks.next_run(self.next)?;
        Some(Run {
            first: self.slot.gfn(pages.first()),
            end: self.slot.gfn(pages.end()),
            count: pages.count(),
        })
    }
}

#[cfg(CONFIG_KVM_ARM64_USERFAULT_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(kvm_arm64_userfault_chunk)]
mod tests {
    use super::*;
    use crate::marks::{
        Byte,
        ByteCount, //
    };

    /// A bitmap of two words, of which some bytes can be read.
    struct Words([usize; 2], u64);

    impl UserBitmap for Words {
        fn read(&self, first: Byte, count: ByteCount, words: &mut [usize]) -> Option<()> {
            words.fill(0);
            for (word, marks) in words.iter_mut().zip(self.0) {
                *word = marks;
            }
            (first.0 == 0 && count.0 <= self.1).then_some(())
        }
    }

    fn run(first: u64, count: u64) -> Option<Run> {
        Some(Run {
            first: Gfn(first),
            end: Gfn(first + count),
            count: PageCount(count),
        })
    }

    /// Runs are where the marks are, in the numbers of the guest's memory.
    #[test]
    fn runs_of_a_chunk_are_found() {
        let slot = Slot::new(Gfn(1000), PageCount(120));
        let bitmap = Words([1 | 1 << 63, 0x3], 16);
        let words = &mut [0; 2];

        let first = slot
            .and_then(|slot| Chunk::read(slot, Gfn(1000), PageCount(100), &bitmap, words))
            .and_then(|chunk| chunk.next_run());
        assert_eq!(first, run(1000, 1));

        for (next, expected) in [
            (1001, run(1063, 3)),
            (1066, None),
            (1100, None),
            (1120, None),
        ] {
            let found = slot
                .and_then(|slot| Chunk::resume(slot, Gfn(1000), PageCount(100), Gfn(next), words))
                .map(|chunk| chunk.next_run());
            assert_eq!(found, Some(expected));
        }
    }

    /// What is not a chunk of the slot is not taken for one without marks.
    #[test]
    fn chunk_is_of_the_slot() {
        let slot = Slot::new(Gfn(8), PageCount(100));
        let is_chunk = |first, count, next| {
            slot.is_some_and(|slot| {
                Chunk::resume(slot, Gfn(first), PageCount(count), Gfn(next), &mut [0]).is_some()
            })
        };
        assert!(is_chunk(8, 64, 8));
        assert!(is_chunk(8, 64, 108));
        assert!(!is_chunk(8, 64, 7));
        assert!(!is_chunk(8, 64, 109));
        assert!(!is_chunk(8, 65, 8));
        assert!(!is_chunk(8, 0, 8));
        assert!(!is_chunk(7, 8, 8));
        assert!(!is_chunk(100, 9, 100));
        assert!(!is_chunk(u64::MAX, 2, 8));
    }

    /// What cannot be read is not taken for a chunk without marks.
    #[test]
    fn unreadable_bitmap_is_no_chunk() {
        let slot = Slot::new(Gfn(0), PageCount(200));
        let is_chunk = |count, words: &mut [usize]| {
            slot.is_some_and(|slot| {
                Chunk::read(slot, Gfn(0), PageCount(count), &Words([0, 0], 10), words).is_some()
            })
        };
        assert!(is_chunk(80, &mut [0; 2]));
        assert!(!is_chunk(81, &mut [0; 2]));
        assert!(!is_chunk(80, &mut [0; 1]));
        assert!(!is_chunk(201, &mut [0; 4]));
    }
}
