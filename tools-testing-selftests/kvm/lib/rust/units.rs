// SPDX-License-Identifier: GPL-2.0-only

//! What numbers stand for, so that one cannot be taken for another.

use crate::*;
use std::{
    fmt,
    ops::{
        Add,
        Range,
        Sub, //
    },
};

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        // Guest code has addresses too, and must not panic.
        impl Add<Bytes> for $name {
            type Output = Self;

            #[inline(always)]
            fn add(self, bytes: Bytes) -> Self {
                Self(self.0.wrapping_add(bytes.0))
            }
        }

        impl Sub for $name {
            type Output = Bytes;

            #[inline(always)]
            fn sub(self, start: Self) -> Bytes {
                Bytes(self.0.wrapping_sub(start.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

address! {
    /// A guest physical address: where a slot is, for KVM.
    Gpa
}
address! {
    /// A guest virtual address: what guest code accesses.
    Gva
}
address! {
    /// An address of this process.
    Hva
}

extern "C" {
    // The linker's, for the section.
    static __start_guest_code: u8;
    static __stop_guest_code: u8;
}

impl Gva {
    /// Returns whether the address is in a function that was defined by
    /// [`guest_code!`](crate::guest_code).
    pub fn is_in_guest_code(self) -> bool {
        let (start, end) = (&raw const __start_guest_code, &raw const __stop_guest_code);
        (start as u64..end as u64).contains(&self.0)
    }
}

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// Returns the size of a number of the host's pages.
    pub fn of_pages(pages: usize) -> Self {
        let bytes = pages.checked_mul(page_size());
        Self(bytes.expect("too many pages") as u64)
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} bytes", self.0)
    }
}

/// The number of a page in its slot, counted in pages of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Page(pub usize);

impl Page {
    /// Returns how far the page is from the start of its slot.
    pub fn offset(self) -> Bytes {
        Bytes::of_pages(self.0)
    }
}

impl From<Page> for u64 {
    fn from(page: Page) -> Self {
        page.0 as Self
    }
}

/// Returns pages by their numbers, one after the other.
pub fn pages(numbers: Range<usize>) -> impl DoubleEndedIterator<Item = Page> + Clone {
    numbers.map(Page)
}
