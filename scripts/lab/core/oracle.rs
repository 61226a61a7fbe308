// SPDX-License-Identifier: GPL-2.0-only

//! What the core has to answer, computed with numbers that cannot overflow, page by page.

use crate::{
    chunk::{
        Chunk,
        Run, //
    },
    marks::{
        ByteCount,
        Marks, //
    },
    random::Random,
    size::Sizes,
    slot::{
        Gfn,
        Page,
        PageCount,
        Pages,
        Slot, //
    },
    world::World,
};
use std::ops::Range;

/// Sizes of pages and of the blocks that a page of page table entries maps: those of arm64, then
/// smaller ones that take less time.
const GEOMETRIES: [[u64; 2]; 6] = [
    [4 << 10, 2 << 20],
    [16 << 10, 32 << 20],
    [64 << 10, 512 << 20],
    [64, 512],
    [32, 128],
    [16, 32],
];

/// Returns a range of pages as the core has it, or nothing if no such pages can be.
fn pages(range: Range<i128>) -> Option<Pages> {
    let first = u64::try_from(range.start).ok()?;
    let end = u64::try_from(range.end).ok()?;
    let pages = Pages::new(Page(first), Page(end));
    assert_eq!(pages.is_some(), first < end);
    pages
}

/// Returns the numbers in its slot of the block of `count` pages around a page of the guest.
fn block_around(base: u64, gfn: u64, count: u64) -> Range<i128> {
    let first = i128::from(gfn - gfn % count) - i128::from(base);
    first..first + i128::from(count)
}

/// Whatever the numbers are, a slot has the pages that it has in arithmetic without borders.
pub fn numbers(random: &mut Random) {
    let [base, count, gfn, many] = [0; 4].map(|_| random.number());
    let end = i128::from(base) + i128::from(count);
    let slot = Slot::new(Gfn(base), PageCount(count));
    assert_eq!(slot.is_some(), end <= u64::MAX.into());
    let Some(slot) = slot else {
        return;
    };

    let first = i128::from(gfn) - i128::from(base);
    let last = first + i128::from(many);
    let inside = 0 <= first && last <= count.into();
    let expected = inside.then(|| pages(first..last)).flatten();
    let found = slot.pages(Gfn(gfn), PageCount(many));
    assert_eq!(found, expected);
    if let Some(pages) = found {
        assert_eq!(pages.count().0, many);
    }

    let inside = 0 <= first && first <= count.into();
    assert_eq!(slot.page(Gfn(gfn)), inside.then_some(Page(first as u64)));
    if gfn <= count {
        assert_eq!(slot.gfn(Page(gfn)), Gfn(base + gfn));
    }

    let size = random.one_of(&[many, 1, 2, 512, 1 << 63]);
    let mut expected = None;
    if size.is_power_of_two() {
        let block = block_around(base, gfn, size);
        if 0 <= block.start && block.end <= count.into() {
            expected = pages(block);
        }
    }
    assert_eq!(slot.block(Gfn(gfn), PageCount(size)), expected);
}

/// Sizes of any kind never give another answer than a page or a block, and a page where no pages
/// can be looked at.
pub fn sizes(random: &mut Random) {
    let [page, block] = [0; 2].map(|_| random.number());
    let world = World::small(0, 0);
    let sizes = Sizes::new(ByteCount(page), ByteCount(block));
    let answer = sizes.largest(None, Gfn(0), &world, &mut [0; 2]);
    assert_eq!(answer, ByteCount(page));

    let slot = Slot::new(Gfn(0), PageCount(8));
    let answer = sizes.largest(slot, Gfn(0), &world, &mut [0; 2]);
    let per_block = block.checked_div(page).unwrap_or(0);
    let is_block = per_block.is_power_of_two() && per_block <= 8;
    assert_eq!(answer, ByteCount(if is_block { block } else { page }));
}

/// Marks are read if there is room for all of them and each byte of them can be read. Then pages are
/// clear if none of them is marked, and runs are where the marks are.
pub fn marks(world: &World, range: Range<u64>, words: usize) {
    let words = &mut vec![usize::MAX; words][..];
    let bits = words.len() as u64 * 64;
    let Some(pages) = pages(range.start.into()..range.end.into()) else {
        return;
    };
    let fits = range.start % 8 + (range.end - range.start) <= bits;
    let marks = Marks::read(world, pages, words);
    let is_readable = (range.start / 8..range.end.div_ceil(8)).all(|byte| world.is_readable(byte));
    assert_eq!(marks.is_some(), fits && is_readable);
    let Some(marks) = marks else {
        return;
    };

    assert_eq!(
        marks.are_clear(),
        !range.clone().any(|page| world.is_marked(page))
    );
    for page in [0, u64::MAX].into_iter().chain(range.clone()) {
        let first = (page.max(range.start)..range.end).find(|&page| world.is_marked(page));
        let expected = first.and_then(|first| {
            let end = (first..range.end).find(|&page| !world.is_marked(page));
            Pages::new(Page(first), Page(end.unwrap_or(range.end)))
        });
        assert_eq!(marks.next_run(Page(page)), expected);
    }
}

/// A mapping is a block where that covers no marked page, else a page.
pub fn size(world: &World, random: &mut Random) {
    let smallest = if random.once_in(100) { 0 } else { 3 };
    let [page, block] = random.one_of(&GEOMETRIES[smallest..]);
    let count = block / page;
    let Some(gfn) = world.base.checked_add(random.within(&world.pages)) else {
        return;
    };
    let short = random.once_in(10);
    let words = &mut vec![0; if short { 1 } else { count as usize / 64 + 1 }][..];

    let sizes = Sizes::new(ByteCount(page), ByteCount(block));
    assert_eq!(sizes.pages_per_block(), Some(PageCount(count)));
    let answer = sizes.largest(world.slot(), Gfn(gfn), world, words);

    let around = block_around(world.base, gfn, count);
    let fits = around.start.rem_euclid(8) + i128::from(count) <= words.len() as i128 * 64;
    let is_clear = |page: i128| {
        u64::try_from(page).is_ok_and(|page| page < world.count && world.is_clear(page))
    };
    let mut bytes = around.start.div_euclid(8)..(around.end + 7).div_euclid(8);
    let mut around = around;
    let is_readable = |byte: i128| u64::try_from(byte).is_ok_and(|byte| world.is_readable(byte));
    let can_be = world.slot().is_some() && fits;
    let is_block = can_be && around.all(is_clear) && bytes.all(is_readable);
    assert_eq!(answer, ByteCount(if is_block { block } else { page }));
}

/// An enable that goes through a slot as C does names each marked page once, in order, and no
/// other. It stops at what cannot be read or has no room, and nowhere else.
pub fn chunks(world: &World, words: usize) {
    let step = 64 * words.max(1) as u64;
    let words = &mut vec![usize::MAX; words][..];
    let bits = words.len() as u64 * 64;
    let Some(slot) = world.slot() else {
        return;
    };

    let mut page = world.pages.start;
    while page < world.pages.end {
        let base = world.base;
        let end = page.saturating_add(step - base.wrapping_add(page) % step);
        let end = end.min(world.count);
        let (first, count) = (Gfn(base + page), PageCount(end - page));
        let fits = page % 8 + count.0 <= bits;
        let is_readable = (page / 8..end.div_ceil(8)).all(|byte| world.is_readable(byte));

        let chunk = Chunk::read(slot, first, count, world, words);
        assert_eq!(chunk.is_some(), fits && is_readable);
        let Some(chunk) = chunk else {
            return;
        };

        let mut found = chunk.next_run();
        for start in page..end {
            let starts = start == page || !world.is_marked(start - 1);
            if world.is_marked(start) && starts {
                let past = (start..end).find(|&page| !world.is_marked(page));
                let past = past.unwrap_or(end);
                let expected = Run {
                    first: Gfn(base + start),
                    end: Gfn(base + past),
                    count: PageCount(past - start),
                };
                assert_eq!(found, Some(expected));
                let chunk = Chunk::resume(slot, first, count, expected.end, words);
                found = chunk.expect("the chunk was read").next_run();
            }
        }
        assert_eq!(found, None);
        page = end;
    }
}

/// What is no chunk of the slot, or has no room, is not gone on with, nor is a chunk from what is no
/// page of the slot: C then takes all that is left as marked.
pub fn resume(world: &World, random: &mut Random) {
    let Some(slot) = world.slot() else {
        return;
    };
    let near = [0, 1, 63, 64, 65, world.count];
    let start = world
        .base
        .wrapping_add(random.one_of(&near))
        .wrapping_sub(random.below(2));
    let count = random.one_of(&near);
    let other = random.number();
    let next = random.one_of(&[start, other]);
    let words = &mut vec![0; random.below(3) as usize][..];

    let first = i128::from(start) - i128::from(world.base);
    let end = first + i128::from(count);
    let inside = 0 <= first && first < end && end <= world.count.into();
    let fits = first.rem_euclid(8) + i128::from(count) <= words.len() as i128 * 64;
    let place = i128::from(next) - i128::from(world.base);
    let is_there = 0 <= place && place <= world.count.into();

    let chunk = Chunk::resume(slot, Gfn(start), PageCount(count), Gfn(next), words);
    assert_eq!(chunk.is_some(), inside && fits && is_there);

    let chunk = Chunk::read(slot, Gfn(start), PageCount(count), world, words);
    let is_readable = || {
        let bytes = first as u64 / 8..(end as u64).div_ceil(8);
        { bytes }.all(|byte| world.is_readable(byte))
    };
    assert_eq!(chunk.is_some(), inside && fits && is_readable());
}
