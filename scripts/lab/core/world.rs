// SPDX-License-Identifier: GPL-2.0-only

//! What the core is asked about: a slot and the marks of its pages.
//!
//! Whether a page is marked is a function of its number, so that a slot may have any size. The
//! oracle asks it page by page; the core reads the same as bytes of a bitmap.

use crate::{
    marks::{
        Byte,
        ByteCount,
        UserBitmap, //
    },
    random::{
        mix,
        Random, //
    },
    slot::{
        Gfn,
        PageCount,
        Slot, //
    },
};
use std::ops::Range;

/// Some of all pages.
#[derive(Debug)]
enum Set {
    /// One in 2^`rarity` runs of `length` pages, here and there.
    Runs { seed: u64, rarity: u32, length: u64 },
    /// Of eight pages from the first one on those whose bits are set, and all others.
    Bits(u64, u8),
    /// The pages of a range.
    Within(Range<u64>),
    /// All but those of a range.
    Without(Range<u64>),
}

impl Set {
    /// Creates a set of which some pages, and some not, are likely to be in a range.
    fn new(random: &mut Random, range: &Range<u64>) -> Self {
        let first = random.within(range);
        let end = random.within(&(first..range.end));
        let end = random.one_of(&[first, first + 1, end, range.end]);
        match random.below(4) {
            0 => Self::Within(first..end),
            1 => Self::Without(first..end),
            shape => Self::Runs {
                seed: random.any(),
                rarity: random.below(8) as u32,
                length: if shape == 2 { 1 } else { 1 + random.below(70) },
            },
        }
    }

    /// Returns whether a page is in the set.
    fn has(&self, page: u64) -> bool {
        match self {
            Self::Runs {
                seed,
                rarity,
                length,
            } => mix(seed ^ (page / length)).trailing_zeros() >= *rarity,
            Self::Bits(first, bits) => {
                !(*first..first + 8).contains(&page) || (bits >> (page - first)) & 1 != 0
            }
            Self::Within(range) => range.contains(&page),
            Self::Without(range) => !range.contains(&page),
        }
    }
}

/// A slot that has a bitmap.
#[derive(Debug)]
pub struct World {
    /// The guest's number of the slot's first page.
    pub base: u64,
    /// How many pages the slot has.
    pub count: u64,
    /// The pages of the slot that the oracle looks at.
    pub pages: Range<u64>,
    marked: Set,
    unreadable: Set,
}

impl World {
    /// Creates a world of eight pages, whose marks are given as bits.
    pub fn small(first: u64, bits: u8) -> Self {
        Self {
            base: 0,
            count: first + 8,
            pages: first..first + 8,
            marked: Set::Bits(first, bits),
            unreadable: Set::Within(0..0),
        }
    }

    /// Creates a world in which borders of all kinds are likely to meet.
    pub fn new(random: &mut Random) -> Self {
        let most = if random.once_in(100) { 5000 } else { 140 };
        let length = 1 + random.below(most);
        let near = random.one_of(&[0, 0, 0, 1 << 11, 1 << 40, u64::MAX - length - 300]);
        let first = near + random.below(200);
        let pages = first..first + length;
        let most = if random.once_in(20) { u64::MAX } else { 70 };
        let align = random.below(14);
        let behind = random.one_of(&[0, 1, 8, most]);
        let base = random.one_of(&[0, 1 << 40, u64::MAX - 8192]) + random.below(8192);

        Self {
            base: base >> align << align,
            count: pages.end.saturating_add(behind),
            marked: Set::new(random, &pages),
            unreadable: match random.below(4) {
                0 => Set::new(random, &(pages.start / 8..pages.end.div_ceil(8))),
                _ => Set::Within(0..0),
            },
            pages,
        }
    }

    /// Returns whether a page is marked.
    pub fn is_marked(&self, page: u64) -> bool {
        self.marked.has(page)
    }

    /// Returns whether a byte of the bitmap can be read.
    pub fn is_readable(&self, byte: u64) -> bool {
        !self.unreadable.has(byte)
    }

    /// Returns whether a page is clear, and known to be.
    pub fn is_clear(&self, page: u64) -> bool {
        !self.is_marked(page) && self.is_readable(page / 8)
    }

    /// Returns the slot, or nothing where there can be none.
    pub fn slot(&self) -> Option<Slot> {
        Slot::new(Gfn(self.base), PageCount(self.count))
    }
}

impl UserBitmap for World {
    /// Reads up to the first byte that cannot be read, like the kernel, and leaves the rest as it
    /// was. What is no page of the slot has bits as well, if its byte has others.
    fn read(&self, first: Byte, count: ByteCount, words: &mut [usize]) -> Option<()> {
        if count.0 > words.len() as u64 * 8 {
            return None;
        }
        for (place, number) in (first.0..first.0 + count.0).enumerate() {
            assert!(
                number < self.count.div_ceil(8),
                "byte {number} is not of the bitmap"
            );
            if !self.is_readable(number) {
                return None;
            }
            let bit =
                |n| u8::from(number * 8 + n >= self.count || self.is_marked(number * 8 + n)) << n;
            let byte = (0..8).map(bit).sum::<u8>();
            let shift = place % 8 * 8;
            words[place / 8] &= !(0xff << shift);
            words[place / 8] |= usize::from(byte) << shift;
        }
        Some(())
    }
}
