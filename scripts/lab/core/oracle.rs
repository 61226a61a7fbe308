// SPDX-License-Identifier: GPL-2.0-only

//! What the core has to answer.

use crate::{
    commit::{
        self,
        Change,
        Invalidation, //
    },
    marks::{
        are_clear,
        Marks, //
    },
    random::Random,
    size::{
        MapSize,
        Sizes, //
    },
    slot::{
        Gfn,
        Pages,
        Slot, //
    },
    world::{
        Fault,
        World, //
    },
};
use std::{
    cell::{
        Cell,
        RefCell, //
    },
    ops::Range,
};

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

/// To unmap a run by itself costs as much as to unmap so many pages more at once.
const PAGES_PER_RUN: u64 = 4;

/// Returns the runs of marked pages.
fn runs(world: &World, pages: Range<u64>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for page in pages.filter(|&page| world.is_marked(page)) {
        match runs.last_mut() {
            Some(run) if run.end == page => run.end = page + 1,
            _ => runs.push(page..page + 1),
        }
    }
    runs
}

/// Returns whether a page is clear, and known to be.
fn is_clear(world: &World, page: u64) -> bool {
    !world.is_marked(page) && world.is_readable(page / 8)
}

/// Returns the pages of a block around a page of the guest, by their numbers in a slot's bitmap or
/// on either side of it.
fn block_around(world: &World, gfn: u64, count: u64) -> Range<i128> {
    let first = i128::from(gfn - gfn % count) - i128::from(world.base);
    first..first + i128::from(count)
}

/// Returns a function that reads the bitmap, and notes when it could not.
fn watched<'a>(
    world: &'a World,
    faulted: &'a Cell<bool>,
) -> impl FnMut(u64, &mut [u8]) -> Result<(), Fault> + 'a {
    |start, bytes| {
        let result = world.read(start, bytes);
        faulted.set(faulted.get() || result.is_err());
        result
    }
}

/// Returns a range as the core has it.
fn pages(range: &Range<u64>) -> Pages {
    Pages {
        first: range.start,
        end: range.end,
    }
}

/// Returns the slot as the core has it.
fn slot(world: &World) -> Slot {
    Slot::new(Gfn(world.base), world.count)
}

/// Marks are read part by part, and the runs of a part are those of its marked pages.
pub fn marks(world: &World, mut left: Range<u64>) {
    let mut marks = Marks::none();
    assert!(marks.are_clear());

    while !left.is_empty() {
        let faulted = Cell::new(false);
        let read = marks.read(pages(&left), watched(world, &faulted));
        assert_eq!(read.is_err(), faulted.get());
        let Ok(rest) = read else {
            return;
        };
        assert!(left.start < rest.first && rest.first <= left.end);
        let part = left.start..rest.first;
        left.start = rest.first;
        assert_eq!(rest, pages(&left));
        assert_eq!(marks.pages(), pages(&part));

        let mut answer = Vec::new();
        marks.for_each_run(|run| answer.push(run.first..run.end));
        assert_eq!(marks.runs(), answer.len() as u64);
        assert_eq!(answer, runs(world, part.clone()));
        assert_eq!(
            marks.are_clear(),
            part.clone().all(|page| is_clear(world, page))
        );
    }
}

/// Pages are clear if none of them is marked, and all of their marks could be read.
pub fn clear(world: &World, mut range: Range<u64>) {
    let faulted = Cell::new(false);

    match are_clear(pages(&range), watched(world, &faulted)) {
        Ok(true) => assert!(range.all(|page| is_clear(world, page))),
        Ok(false) => assert!(range.any(|page| world.is_marked(page))),
        Err(Fault) => assert!(faulted.get()),
    }
}

/// A block is looked at if all of its pages are in the slot.
pub fn block(world: &World, random: &mut Random) {
    let count = 1 << random.below(14);
    let page = random.within(&world.pages);
    let page = random.one_of(&[0, page, world.count]);
    let gfn = random.one_of(&[
        world.base.saturating_add(page),
        world.base.saturating_sub(page),
        u64::MAX - page,
    ]);
    let block = block_around(world, gfn, count);
    let inside = 0 <= block.start && block.end <= world.count.into();

    let answer = slot(world).block(Gfn(gfn), count);
    let expected = inside.then(|| pages(&(block.start as u64..block.end as u64)));
    assert_eq!(answer, expected);
    if let Some(pages) = answer {
        assert_eq!(slot(world).gfn(pages.first), Gfn(gfn - gfn % count));
    }
}

/// A mapping is a block where C has found one that covers no marked page, else a page.
pub fn size(world: &World, random: &mut Random) {
    let smallest = if random.once_in(100) { 0 } else { 3 };
    let [page, block] = random.one_of(&GEOMETRIES[smallest..]);
    let found = [0, page - 1, page, block - 1, block, block, block * 512];
    let found = random.one_of(&found);
    let count = block / page;
    let Some(gfn) = world.base.checked_add(random.within(&world.pages)) else {
        return;
    };

    let faulted = Cell::new(false);
    let sizes = Sizes::new(MapSize::new(page));
    let answer = sizes.limit(MapSize::new(found), |asked| {
        assert!(asked == count && found >= block);
        let block = slot(world).block(Gfn(gfn), asked);
        block.is_some_and(|pages| are_clear(pages, watched(world, &faulted)) == Ok(true))
    });

    let is_clear_in_slot = |page| page < world.count && is_clear(world, page);
    let mut around = block_around(world, gfn, count);
    let is_block = found >= block
        && !faulted.get()
        && around.all(|page| u64::try_from(page).is_ok_and(is_clear_in_slot));
    let expected = if is_block { block } else { found.min(page) };
    assert_eq!(answer.bytes(), expected);
}

/// Pages whose marks were read together, and the runs of them that were unmapped then.
struct Part {
    pages: Range<u64>,
    unmapped: Vec<Range<u64>>,
}

/// An enable unmaps what is mapped and marked. It looks at no part of the bitmap without a mapped
/// page, and unmaps others with the marked ones only where that takes less.
pub fn unmap(world: &World) {
    let faulted = Cell::new(false);
    let parts = RefCell::new(Vec::<Part>::new());
    let mut reader = watched(world, &faulted);

    let skip = |page: u64| {
        assert!(page < world.count);
        let mut pages = page.max(world.pages.start)..world.pages.end;
        let mapped = pages.find(|&page| world.is_mapped(page));
        mapped.unwrap_or(u64::MAX)
    };
    let read = |start: u64, bytes: &mut [u8]| {
        let end = (start + bytes.len() as u64).saturating_mul(8);
        let part = Part {
            pages: start * 8..end.min(world.count),
            unmapped: Vec::new(),
        };
        assert!(part.pages.clone().any(|page| world.is_mapped(page)));
        parts.borrow_mut().push(part);
        reader(start, bytes)
    };
    let unmap = |run: Pages| {
        let mut parts = parts.borrow_mut();
        let part = parts.last_mut().expect("unmapped before a mark was read");
        assert!(part.pages.start <= run.first && run.first < run.end);
        assert!(run.end <= part.pages.end);
        part.unmapped.push(run.first..run.end);
    };
    let result = commit::unmap_marked(slot(world).pages(), skip, read, unmap);
    assert_eq!(result.is_err(), faulted.get());

    let parts = parts.into_inner();
    for Part { pages, unmapped } in &parts {
        let cost = |runs: &[Range<u64>]| PAGES_PER_RUN * runs.len() as u64;
        assert!(unmapped.len() <= 1 || cost(unmapped) <= pages.end - pages.start);
        for run in unmapped {
            let marked = runs(world, run.clone());
            assert!(marked == [run.clone()] || cost(&marked) > run.end - run.start);
        }
    }
    let unmapped: Vec<_> = parts.iter().flat_map(|part| &part.unmapped).collect();
    assert!(unmapped.is_sorted_by(|run, next| run.end <= next.start));
    if result.is_ok() {
        for page in world.pages.clone().filter(|&page| world.is_mapped(page)) {
            let is_unmapped = unmapped.iter().any(|run| run.contains(&page));
            assert!(is_unmapped || is_clear(world, page));
        }
    }
}

/// Only an enable of a slot that was there leaves something to invalidate, or an unknown change.
pub fn invalidation() {
    use Change::*;

    for (was, is) in [(false, false), (false, true), (true, false), (true, true)] {
        for change in [Create, Delete, Move] {
            assert_eq!(
                commit::invalidation(was, is, Some(change)),
                Invalidation::Nothing
            );
        }
        let expected = if !was && is {
            Invalidation::Marked
        } else {
            Invalidation::Nothing
        };
        assert_eq!(commit::invalidation(was, is, Some(FlagsOnly)), expected);
        assert_eq!(commit::invalidation(was, is, None), Invalidation::Slot);
    }
}
