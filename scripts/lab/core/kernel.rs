// SPDX-License-Identifier: GPL-2.0-only

//! Stands in for what the helper's core uses of the `kernel` crate, on a host of 64 bits.

/// Bitmaps, bit by bit.
pub mod bitmap {
    /// Words whose bits count, from the lowest of the first word on.
    #[repr(transparent)]
    pub struct Bitmap([usize]);

    impl Bitmap {
        /// Borrows words as a bitmap.
        pub fn from_words(words: &mut [usize]) -> Option<&Self> {
            let fits = words.len().checked_mul(64)? <= i32::MAX as usize;
            // SAFETY: It has the same layout.
            fits.then(|| unsafe { &*(words as *mut [usize] as *const Self) })
        }

        /// Returns the number of bits.
        pub fn len(&self) -> usize {
            self.0.len() * 64
        }

        /// Returns the first bit from `start` on that is `value`. The kernel may panic where
        /// `start` is no bit, so this does.
        fn next(&self, start: usize, value: bool) -> Option<usize> {
            assert!(start < self.len());
            (start..self.len()).find(|bit| ((self.0[bit / 64] >> (bit % 64)) & 1 != 0) == value)
        }

        /// Returns the next bit that is set.
        pub fn next_bit(&self, start: usize) -> Option<usize> {
            self.next(start, true)
        }

        /// Returns the next bit that is clear.
        pub fn next_zero_bit(&self, start: usize) -> Option<usize> {
            self.next(start, false)
        }
    }
}

/// Conversions that lose nothing.
pub mod num {
    /// By name of the types.
    pub mod casts {
        /// Widens a number.
        pub trait FromSafeCast<T> {
            /// Makes it of a smaller one.
            fn from_safe_cast(value: T) -> Self;
        }

        impl FromSafeCast<usize> for u64 {
            fn from_safe_cast(value: usize) -> Self {
                value as u64
            }
        }
    }
}

/// What the kernel's code has at hand.
pub mod prelude {
    pub use crate::static_assert;
}

/// Does not compile where something is not so.
#[macro_export]
macro_rules! static_assert {
    ($condition:expr) => {
        const _: () = assert!($condition);
    };
}

/// Barriers, of which the order of reads is not looked at here.
pub mod sync {
    /// Barriers between CPUs.
    pub mod barrier {
        /// Orders reads.
        pub struct Read;

        /// Stands for the barrier.
        pub fn smp_mb<T>(_: T) {}
    }
}
