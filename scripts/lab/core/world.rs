// SPDX-License-Identifier: GPL-2.0-only

//! What the core is asked about: a slot, the marks of its pages, and what stage 2 maps of it.
//!
//! Whether a page is marked is a function of its number, so that a slot may have any size. The
//! oracle asks it page by page; the core reads the same as bytes of a bitmap.

use crate::random::{
    mix,
    Random, //
};
use std::ops::Range;

/// Why bytes of a bitmap could not be read.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault;

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
    mapped: Set,
    unreadable: Set,
}

impl World {
    /// Creates a world of eight pages, whose marks are given as bits. All are mapped.
    pub fn small(first: u64, bits: u8) -> Self {
        Self {
            base: 0,
            count: first + 8,
            pages: first..first + 8,
            marked: Set::Bits(first, bits),
            mapped: Set::Within(first..first + 8),
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
            mapped: Set::new(random, &pages),
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

    /// Returns whether stage 2 maps a page: one that the oracle looks at.
    pub fn is_mapped(&self, page: u64) -> bool {
        self.pages.contains(&page) && self.mapped.has(page)
    }

    /// Returns whether a byte of the bitmap can be read.
    pub fn is_readable(&self, byte: u64) -> bool {
        !self.unreadable.has(byte)
    }

    /// Reads the bitmap from a byte on, as the core does, up to the first byte that cannot be read.
    /// What is no page of the slot has bits as well, if its byte has others.
    pub fn read(&self, start: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        for (number, byte) in (start..).zip(bytes) {
            assert!(
                number < self.count.div_ceil(8),
                "byte {number} is not of the bitmap"
            );
            if !self.is_readable(number) {
                return Err(Fault);
            }
            let bit =
                |n| u8::from(number * 8 + n >= self.count || self.is_marked(number * 8 + n)) << n;
            *byte = (0..8).map(bit).sum();
        }
        Ok(())
    }
}
