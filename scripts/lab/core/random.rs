// SPDX-License-Identifier: GPL-2.0-only

//! Numbers that look random, and are the same for the same seed.

use std::ops::Range;

/// A generator: Marsaglia's xorshift of 64 bits.
pub struct Random(u64);

impl Random {
    /// Creates a generator. Seeds that are neighbours make numbers that have nothing in common.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed) | 1)
    }

    /// Returns any number.
    pub fn any(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.any() % end
    }

    /// Returns a number of a range.
    pub fn within(&mut self, range: &Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    /// Returns true once in so many times.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// Returns a number of any size, often one at which something ends.
    pub fn number(&mut self) -> u64 {
        let number = self.any() >> self.below(64);
        let near = self.one_of(&[0, 8, 64, 1 << 40, u64::MAX, number]);
        near.wrapping_add(self.below(5)).wrapping_sub(2)
    }

    /// Returns one of some values.
    pub fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }
}

/// Spreads what a number says over all bits of another: a step of splitmix64.
pub fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
