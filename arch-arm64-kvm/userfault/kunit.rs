// SPDX-License-Identifier: GPL-2.0-only

//! KUnit tests of the decisions.

use kernel::prelude::*;

#[kunit_tests(kvm_arm64_userfault)]
mod decisions {
    use kernel::prelude::*;

    use crate::{
        commit::{
            invalidation,
            unmap_marked,
            Change,
            Invalidation, //
        },
        marks::{
            are_clear,
            Marks, //
        },
        size::{
            MapSize,
            Sizes, //
        },
        slot::{
            Gfn,
            Pages,
            Slot, //
        },
    };

    /// Page, PMD block and PUD block sizes with 4K, 16K and 64K pages.
    const GEOMETRIES: [[u64; 3]; 3] = [
        [1 << 12, 1 << 21, 1 << 30],
        [1 << 14, 1 << 25, 1 << 36],
        [1 << 16, 1 << 29, 1 << 42],
    ];

    /// A mapping is a page, unless a block is possible and clear: then it is the smaller block,
    /// whose number of pages is what its size is for.
    #[test]
    fn only_clear_blocks_are_mapped() {
        for [page, block, large] in GEOMETRIES {
            let sizes = Sizes::new(MapSize::new(page));
            for (found, expected) in [(page, page), (block, block), (large, block)] {
                let found = MapSize::new(found);
                let clear = sizes.limit(found, |count| count == block / page);
                assert_eq!(clear, MapSize::new(expected));
                assert_eq!(sizes.limit(found, |_| false), MapSize::new(page));
            }
        }
    }

    /// Where no block is possible, the bitmap is not read.
    #[test]
    fn bitmap_is_read_for_blocks_only() {
        for [page, block, _] in GEOMETRIES {
            for found in [page, block - 1] {
                let mut asked = false;
                let sizes = Sizes::new(MapSize::new(page));
                sizes.limit(MapSize::new(found), |_| {
                    asked = true;
                    true
                });
                assert!(!asked);
            }
        }
    }

    /// An answer is never larger than what C found, even for a size that no geometry has.
    #[test]
    fn size_never_grows() {
        for [page, block, _] in GEOMETRIES {
            for bytes in [0, 1, page - 1, page + 1, block - 1, block + 1, u64::MAX] {
                let found = MapSize::new(bytes);
                assert!(Sizes::new(MapSize::new(page)).limit(found, |_| true) <= found);
            }
        }
    }

    /// All inputs: only an enable of an existing slot, or an unknown change, invalidates.
    #[test]
    fn only_enable_invalidates() {
        use Change::*;
        use Invalidation::*;

        // For each change: never set, enabled, disabled, always set.
        let table = [
            (Some(Create), [Nothing, Nothing, Nothing, Nothing]),
            (Some(Delete), [Nothing, Nothing, Nothing, Nothing]),
            (Some(Move), [Nothing, Nothing, Nothing, Nothing]),
            (Some(FlagsOnly), [Nothing, Marked, Nothing, Nothing]),
            (None, [Slot, Slot, Slot, Slot]),
        ];

        for (change, expected) in table {
            let flags = [(false, false), (false, true), (true, false), (true, true)];
            for ((was, is), expected) in flags.into_iter().zip(expected) {
                assert_eq!(invalidation(was, is, change), expected);
            }
        }
    }

    /// A bitmap to read from: a mark for each page that a function says is marked.
    fn bitmap(is_marked: impl Fn(u64) -> bool) -> impl FnMut(u64, &mut [u8]) -> Result {
        move |start, bytes| {
            for (byte, page) in bytes.iter_mut().zip((start * 8..).step_by(8)) {
                *byte = (0..8).fold(0, |bits, n| bits | u8::from(is_marked(page + n)) << n);
            }
            Ok(())
        }
    }

    /// Reads a bitmap and checks that each of `pages` is in a run of marked pages exactly if it is
    /// marked, that the runs are maximal and in order, and that no byte is read that the bitmap of
    /// a slot which ends with these pages does not have.
    fn check_runs(pages: Pages, is_marked: impl Fn(u64) -> bool + Copy) {
        let (mut marks, mut left, mut seen) = (Marks::none(), pages, pages.first);
        let mut any = false;

        while left.count() != 0 {
            let rest = marks.read(left, |start, bytes| {
                assert!(start + bytes.len() as u64 <= pages.end.div_ceil(8));
                bitmap(is_marked)(start, bytes)
            });
            left = rest.unwrap_or(Pages { first: 0, end: 0 });
            assert_eq!(marks.pages().first, seen);

            let mut runs = 0;
            marks.for_each_run(|run| {
                runs += 1;
                assert!(seen <= run.first && run.first < run.end);
                assert!((seen..run.first).all(|page| !is_marked(page)));
                assert!((run.first..run.end).all(is_marked));
                assert!(run.end == marks.pages().end || !is_marked(run.end));
                seen = run.end;
            });
            assert!((seen..marks.pages().end).all(|page| !is_marked(page)));
            assert_eq!(marks.runs(), runs);
            any |= runs != 0;
            seen = marks.pages().end;
        }
        assert_eq!(seen, pages.end);
        assert_eq!(are_clear(pages, bitmap(is_marked)), Ok(!any));
    }

    /// Runs are found wherever they begin and end: in a byte, at the borders of bytes and words,
    /// and where one part of the bitmap ends and the next is read.
    #[test]
    fn runs_are_the_marked_pages() {
        for first in [0..9, 62..67, 2046..2050].into_iter().flatten() {
            for count in [1..11, 2040..2056].into_iter().flatten() {
                let end = first + count;
                let pages = Pages { first, end };
                check_runs(pages, |_| false);
                check_runs(pages, |_| true);
                check_runs(pages, |page| page % 3 == 0);
                for edge in [first, first + 1, 63, 64, 2047, 2048, end - 1] {
                    check_runs(pages, |page| page == edge);
                    check_runs(pages, |page| page != edge);
                    check_runs(pages, |page| page < edge);
                }
            }
        }
    }

    /// A mark of a page that was not asked about says nothing, though its bit is in the same byte.
    #[test]
    fn other_pages_do_not_count() {
        for first in 0..16 {
            for end in first + 1..32 {
                let outside = |page| page < first || page >= end;
                assert_eq!(are_clear(Pages { first, end }, bitmap(outside)), Ok(true));
            }
        }
    }

    /// A bitmap that cannot be read is an error, in the second part too.
    #[test]
    fn unreadable_bitmap_is_an_error() {
        let read = |start, _: &mut [u8]| if start < 256 { Ok(()) } else { Err(EFAULT) };
        let clear = |end| are_clear(Pages { first: 0, end }, read);
        assert_eq!(clear(2048), Ok(true));
        assert_eq!(clear(2049), Err(EFAULT));
    }

    /// All small slots and pages: a block is what is around a page, and never reaches out of the
    /// slot.
    #[test]
    fn block_is_within_the_slot() {
        for base in 0..9 {
            for count in 0..20 {
                let slot = Slot::new(Gfn(base), count);
                for gfn in base..base + count {
                    let first = gfn / 4 * 4;
                    let inside = base <= first && first + 4 <= base + count;
                    let block = slot.block(Gfn(gfn), 4);
                    assert_eq!(block.is_some(), inside);
                    if let Some(pages) = block {
                        assert_eq!(slot.gfn(pages.first), Gfn(first));
                        assert_eq!(pages.count(), 4);
                    }
                }
            }
        }
    }

    /// Returns, for each page of a slot, whether an enable unmaps it, and how many runs that takes.
    fn unmapped(
        count: u64,
        skip: impl FnMut(u64) -> u64,
        is_marked: impl Fn(u64) -> bool,
    ) -> Result<(KVec<bool>, u64)> {
        let mut unmapped = KVec::from_elem(false, count as usize, GFP_KERNEL)?;
        let mut runs = 0;
        let pages = Pages {
            first: 0,
            end: count,
        };

        unmap_marked(pages, skip, bitmap(is_marked), |run| {
            runs += 1;
            for page in run.first..run.end {
                assert!(!unmapped[page as usize]);
                unmapped[page as usize] = true;
            }
        })?;
        Ok((unmapped, runs))
    }

    /// Few runs: an enable unmaps the marked pages and no other, whatever the slot's size.
    #[test]
    fn enable_unmaps_marked_pages() -> Result {
        for count in [1_u64, 7, 8, 64, 100, 2048, 2049, 5000] {
            let page = count / 2;
            for (is_marked, expected) in [
                ((|_, _| false) as fn(u64, u64) -> bool, 0),
                (|_, _| true, count.div_ceil(2048)),
                (|page, middle| page < middle, page.div_ceil(2048)),
            ] {
                let (unmapped, runs) = unmapped(count, |page| page, |n| is_marked(n, page))?;
                assert!((0..count).all(|n| unmapped[n as usize] == is_marked(n, page)));
                assert_eq!(runs, expected);
            }
        }
        Ok(())
    }

    /// Many runs: there are never more than it costs to unmap everything.
    #[test]
    fn enable_is_not_dearer_than_unmapping_all() -> Result {
        let count = 4096;
        for (distance, all) in [(2, true), (3, true), (4, false), (100, false)] {
            let is_marked = |page| page % distance == 0;
            let (unmapped, runs) = unmapped(count, |page| page, is_marked)?;
            assert!((0..count).all(|page| unmapped[page as usize] == (all || is_marked(page))));
            assert!(runs * 4 <= count);
        }
        Ok(())
    }

    /// Nothing is unmapped, or read, where nothing is mapped.
    #[test]
    fn enable_skips_holes() -> Result {
        let skip = |page| if page < 3000 { 3000 } else { page };
        let (unmapped, _) = unmapped(5000, skip, |_| true)?;
        assert!((0..5000).all(|page| unmapped[page] == (page >= 3000)));

        let read = |_, _: &mut [u8]| Err(EFAULT);
        let all = Pages { first: 0, end: 1 };
        assert_eq!(unmap_marked(all, |_| u64::MAX, read, |_| ()), Ok(()));
        assert_eq!(unmap_marked(all, |_| 0, read, |_| ()), Err(EFAULT));
        Ok(())
    }
}
