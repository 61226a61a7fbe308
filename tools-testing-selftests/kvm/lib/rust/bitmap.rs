// SPDX-License-Identifier: GPL-2.0-only

//! The bitmap by which a VMM marks pages of a userfault slot.

use std::sync::atomic::{
    AtomicU8,
    Ordering, //
};

/// One bit for each page of a slot, in the layout that KVM reads.
pub struct Bitmap {
    bytes: Box<[AtomicU8]>,
}

impl Bitmap {
    /// Creates a bitmap for `pages` pages, none of them marked.
    pub fn new(pages: usize) -> Self {
        let bytes = (0..pages.div_ceil(8)).map(|_| AtomicU8::new(0)).collect();
        Self { bytes }
    }

    /// Creates a bitmap for `pages` pages, all of them marked.
    pub fn marked(pages: usize) -> Self {
        let bitmap = Self::new(pages);
        for page in 0..pages {
            bitmap.mark(page);
        }
        bitmap
    }

    /// Marks a page: the next access that finds it unmapped exits.
    pub fn mark(&self, page: usize) {
        // Before whatever the VMM does next to take the page away.
        self.bytes[page / 8].fetch_or(1 << (page % 8), Ordering::SeqCst);
    }

    /// Clears the mark of a page whose content is complete.
    ///
    /// Returns whether the page was marked, so that of several threads one knows it was first.
    pub fn clear(&self, page: usize) -> bool {
        // Publishes the content: KVM orders its reads of the page after that of the bit.
        let old = self.bytes[page / 8].fetch_and(!(1 << (page % 8)), Ordering::Release);
        old & (1 << (page % 8)) != 0
    }

    /// Returns whether a page is marked.
    pub fn is_marked(&self, page: usize) -> bool {
        self.bytes[page / 8].load(Ordering::Acquire) & (1 << (page % 8)) != 0
    }

    /// Returns where the bitmap is, as KVM wants to know it.
    pub fn address(&self) -> u64 {
        self.bytes.as_ptr() as u64
    }
}
