// SPDX-License-Identifier: GPL-2.0-only

//! Memory of the VMM whose mapping a test changes.

use crate::{
    bindings,
    errno::Errno,
    vm::host_page_size, //
};
use std::{
    ptr::{
        self,
        NonNull, //
    },
    sync::atomic::{
        AtomicU8,
        Ordering, //
    },
};

/// Pages of memory, with a page behind them that can never be accessed.
pub struct Area {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: The memory belongs to the process, and all access to it is atomic.
unsafe impl Send for Area {}
// SAFETY: As above.
unsafe impl Sync for Area {}

/// What may be done with the pages of an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    None,
    /// Reading.
    Read,
    /// Reading and writing.
    ReadWrite,
}

impl Access {
    fn protection(self) -> i32 {
        (match self {
            Self::None => bindings::PROT_NONE,
            Self::Read => bindings::PROT_READ,
            Self::ReadWrite => bindings::PROT_READ | bindings::PROT_WRITE,
        }) as i32
    }
}

impl Area {
    /// Maps private memory of `pages` pages.
    pub fn new(pages: usize) -> Self {
        Self::map(pages, bindings::MAP_PRIVATE)
    }

    /// Maps memory of `pages` pages as it is shared between processes.
    pub fn shared(pages: usize) -> Self {
        Self::map(pages, bindings::MAP_SHARED)
    }

    /// Maps private memory of `pages` pages, more than there may be of it.
    pub fn reserved(pages: usize) -> Self {
        Self::map(pages, bindings::MAP_PRIVATE | bindings::MAP_NORESERVE)
    }

    fn map(pages: usize, flags: u32) -> Self {
        let len = pages * host_page_size();
        let flags = (flags | bindings::MAP_ANONYMOUS) as i32;
        let access = Access::ReadWrite.protection();
        // SAFETY: This maps new memory, at an address that the kernel chooses.
        let start = unsafe {
            bindings::mmap(
                ptr::null_mut(),
                len + host_page_size(),
                access,
                flags,
                -1,
                0,
            )
        };
        assert_ne!(start as isize, -1, "mmap failed: {:?}", Errno::last());
        let area = Self {
            start: NonNull::new(start.cast()).expect("mmap returned NULL"),
            len,
        };
        area.protect_range(len, host_page_size(), Access::None);
        area
    }

    /// Writes to each page, so that there is memory for it.
    pub fn fill(&self) {
        for page in 0..self.len / host_page_size() {
            // SAFETY: The byte is inside the mapping.
            let byte = unsafe { AtomicU8::from_ptr(self.at(page * host_page_size())) };
            byte.store(1, Ordering::Relaxed);
        }
    }

    /// Changes what may be done with the pages. This process ends if it does anything else.
    pub fn protect(&self, access: Access) {
        self.protect_range(0, self.len, access);
    }

    fn protect_range(&self, offset: usize, len: usize, access: Access) {
        let ret =
            // SAFETY: The range is inside the mapping, nothing but atomics is accessed there, and
            // that only while it is allowed.
            unsafe { bindings::mprotect(self.at(offset).cast(), len, access.protection()) };
        Errno::check(ret).expect("mprotect failed");
    }

    /// Returns the address of a byte.
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.len, "outside the area");
        // SAFETY: The offset is inside the mapping.
        unsafe { self.start.as_ptr().add(offset) }
    }

    /// Returns the address, as KVM wants to know it.
    pub fn address(&self) -> u64 {
        self.at(0) as u64
    }

    /// Returns the number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: The mapping is this area's, and nothing refers to it any more.
        unsafe { bindings::munmap(self.start.as_ptr().cast(), self.len + host_page_size()) };
    }
}
