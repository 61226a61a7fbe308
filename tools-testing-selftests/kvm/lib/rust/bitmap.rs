// SPDX-License-Identifier: GPL-2.0-only

//! The bitmap by which a VMM marks pages of a userfault slot.

use crate::area::Area;
use std::{
    ops::Range,
    slice,
    sync::atomic::{
        AtomicU8,
        Ordering, //
    },
};

/// One bit for each page of a slot, in the layout that KVM reads.
pub struct Bitmap<'a> {
    storage: Storage<'a>,
}

enum Storage<'a> {
    Owned(Box<[AtomicU8]>),
    Borrowed(&'a [AtomicU8]),
}

impl Bitmap<'static> {
    /// Creates a bitmap for `pages` pages, none of them marked.
    pub fn new(pages: usize) -> Self {
        let bytes = (0..pages.div_ceil(8)).map(|_| AtomicU8::new(0)).collect();
        Self {
            storage: Storage::Owned(bytes),
        }
    }

    /// Creates a bitmap for `pages` pages, all of them marked.
    pub fn marked(pages: usize) -> Self {
        let bitmap = Self::new(pages);
        bitmap.mark_all(pages);
        bitmap
    }
}

impl<'a> Bitmap<'a> {
    /// Creates a bitmap for `pages` pages in the bytes from `offset` on of an area, as they are.
    pub fn within(area: &'a Area, offset: usize, pages: usize) -> Self {
        let len = pages.div_ceil(8);
        assert!(offset + len <= area.len(), "outside the area");
        // SAFETY: The bytes are inside the area, which lives as long as the bitmap, and are
        // accessed by atomics only.
        let bytes = unsafe { slice::from_raw_parts(area.at(offset).cast(), len) };
        Self {
            storage: Storage::Borrowed(bytes),
        }
    }

    fn bytes(&self) -> &[AtomicU8] {
        match &self.storage {
            Storage::Owned(bytes) => bytes,
            Storage::Borrowed(bytes) => bytes,
        }
    }

    /// Marks a page: the next access that finds it unmapped exits.
    pub fn mark(&self, page: usize) {
        // Before whatever the VMM does next to take the page away.
        self.bytes()[page / 8].fetch_or(1 << (page % 8), Ordering::SeqCst);
    }

    /// Marks the first `pages` pages.
    pub fn mark_all(&self, pages: usize) {
        for page in 0..pages {
            self.mark(page);
        }
    }

    /// Clears the mark of a page whose content is complete.
    ///
    /// Returns whether the page was marked, so that of several threads one knows it was first.
    pub fn clear(&self, page: usize) -> bool {
        // Publishes the content: KVM orders its reads of the page after that of the bit.
        let old = self.bytes()[page / 8].fetch_and(!(1 << (page % 8)), Ordering::Release);
        old & (1 << (page % 8)) != 0
    }

    /// Clears the marks of pages whose content is complete. They have to be whole bytes of the
    /// bitmap.
    pub fn clear_range(&self, pages: Range<usize>) {
        assert!(
            pages.start % 8 == 0 && pages.end % 8 == 0,
            "not whole bytes"
        );
        for byte in &self.bytes()[pages.start / 8..pages.end / 8] {
            byte.store(0, Ordering::Release);
        }
    }

    /// Returns whether a page is marked.
    pub fn is_marked(&self, page: usize) -> bool {
        self.bytes()[page / 8].load(Ordering::Acquire) & (1 << (page % 8)) != 0
    }

    /// Returns where the bitmap is, as KVM wants to know it.
    pub fn address(&self) -> u64 {
        self.bytes().as_ptr() as u64
    }
}
