// SPDX-License-Identifier: GPL-2.0-only

//! The bitmap by which a VMM marks pages of a userfault slot.

use crate::*;
use std::{
    ops::Range,
    sync::atomic::{
        AtomicU64,
        Ordering, //
    },
};

/// One bit for each page of a slot, in the layout that KVM reads.
#[derive(Clone)]
pub struct Bitmap {
    area: Area,
    offset: usize,
    pages: usize,
}

impl Bitmap {
    /// Creates a bitmap for `pages` pages, none of them marked.
    #[track_caller]
    pub fn new(pages: usize) -> Self {
        let len = pages.div_ceil(8);
        let area = Area::new(Backing::Anonymous, len.div_ceil(page_size()).max(1));
        Self::within(&area, 0, pages)
    }

    /// Creates a bitmap for `pages` pages, all of them marked.
    #[track_caller]
    pub fn marked(pages: usize) -> Self {
        Self::new(pages).with(0..pages)
    }

    /// Creates a bitmap for `pages` pages in the bytes from `offset` on of an area, as they are.
    #[track_caller]
    pub fn within(area: &Area, offset: usize, pages: usize) -> Self {
        let is_inside = offset <= area.len() && pages.div_ceil(8) <= area.len() - offset;
        assert!(is_inside, "outside the area");
        Self {
            area: area.clone(),
            offset,
            pages,
        }
    }

    /// Returns the bitmap with some pages marked.
    #[track_caller]
    pub fn with(self, numbers: Range<usize>) -> Self {
        for page in pages(numbers) {
            self.mark(page);
        }
        self
    }

    /// Returns for how many pages it is.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Returns the area that it is in.
    pub(crate) fn area(&self) -> &Area {
        &self.area
    }

    /// Returns the word that a page has its bit in, and the bit.
    ///
    /// A bitmap may begin within a word.
    #[track_caller]
    fn bit(&self, page: Page) -> (&AtomicU64, u64) {
        assert!(page.0 < self.pages, "{page:?} of {} pages", self.pages);
        let bit = self.offset * 8 + page.0;
        (self.area.word(Page(0), bit / 64), 1 << (bit % 64))
    }

    /// Marks a page: the next access that finds it unmapped exits.
    #[track_caller]
    pub fn mark(&self, page: Page) {
        let (word, bit) = self.bit(page);
        // Before whatever the VMM does next to take the page away.
        word.fetch_or(bit, Ordering::SeqCst);
    }

    /// Clears the mark of a page whose content is complete.
    ///
    /// Returns whether the page was marked, so that of several threads one knows it was first.
    #[track_caller]
    pub fn clear(&self, page: Page) -> bool {
        let (word, bit) = self.bit(page);
        // Publishes the content: KVM orders its reads of the page after that of the bit.
        word.fetch_and(!bit, Ordering::Release) & bit != 0
    }

    /// Returns whether a page is marked.
    #[track_caller]
    pub fn is_marked(&self, page: Page) -> bool {
        let (word, bit) = self.bit(page);
        word.load(Ordering::Acquire) & bit != 0
    }

    /// Returns where the bitmap is, as KVM wants to know it.
    pub fn address(&self) -> Hva {
        self.area.at(self.offset)
    }
}
