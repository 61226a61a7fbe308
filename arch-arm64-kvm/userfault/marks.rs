// SPDX-License-Identifier: GPL-2.0-only

//! Which pages of a slot are marked.

use crate::slot::Pages;

/// The marks of some pages.
pub struct Marks {
    /// The bitmap from the 64-bit word on that has the mark of the first page, without marks of
    /// other pages.
    words: [[u8; 8]; Self::WORDS],
    pages: Pages,
}

impl Marks {
    /// The most words of a bitmap that are looked at together: few enough for the stack. No
    /// decision depends on it.
    const WORDS: usize = 32;

    /// Creates the marks of no pages.
    pub const fn none() -> Self {
        Self {
            words: [[0; 8]; Self::WORDS],
            pages: Pages { first: 0, end: 0 },
        }
    }

    /// Reads the marks of the first of `pages`, as many as there is room for, and returns the pages
    /// that are left.
    ///
    /// `read` fills its second argument with bytes of the bitmap, from the byte on that its first
    /// argument says. The bitmap has all of them: none is after the mark of the last page.
    pub fn read<E>(
        &mut self,
        pages: Pages,
        read: impl FnOnce(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Pages, E> {
        let room = word_of(pages.first).saturating_add(Self::WORDS as u64 * 64);
        let end = pages.end.min(room);
        let start = word_of(pages.first) / 8;
        let length = end.div_ceil(8).saturating_sub(start);

        self.pages = Pages { end, ..pages };
        let bytes = self.words.as_flattened_mut();
        read(start, bytes.get_mut(..length as usize).unwrap_or_default())?;
        self.forget_others();
        Ok(Pages {
            first: end,
            end: pages.end,
        })
    }

    /// Returns the pages that these are the marks of.
    pub const fn pages(&self) -> Pages {
        self.pages
    }

    /// Clears the marks of what is not one of the pages.
    fn forget_others(&mut self) {
        let Pages { first, end } = self.pages;
        let last = end.saturating_sub(1);
        let words_before_last = last.saturating_sub(word_of(first)) / 64;
        let mut keep = |index: u64, ours: u64| {
            let word = self.words.get_mut(index as usize);
            word.into_iter()
                .for_each(|word| *word = (u64::from_le_bytes(*word) & ours).to_le_bytes());
        };

        keep(0, u64::MAX << (first & 63));
        keep(words_before_last, u64::MAX >> (63 - (last & 63)));
    }

    /// Returns the marks in words, each with the page that has its mark in the lowest bit.
    fn words(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut next = word_of(self.pages.first);

        self.words.iter().map_while(move |word| {
            let page = next;
            next = page.saturating_add(64);
            (page < self.pages.end).then(|| (page, u64::from_le_bytes(*word)))
        })
    }

    /// Returns whether none of the pages is marked.
    pub fn are_clear(&self) -> bool {
        self.words().all(|(_, word)| word == 0)
    }

    /// Returns how many runs of marked pages there are.
    pub fn runs(&self) -> u64 {
        let mut last = 0;

        self.words().fold(0, |runs: u64, (_, word)| {
            let begins = word & !(word << 1 | last);
            last = word >> 63;
            runs.saturating_add(begins.count_ones().into())
        })
    }

    /// Calls `visit` for each run of marked pages, in order.
    pub fn for_each_run(&self, mut visit: impl FnMut(Pages)) {
        let mut run = None;
        let mut last = 0;

        for (page, word) in self.words() {
            // Set where a mark differs from the one before: where a run begins, or has ended.
            let mut edges = word ^ (word << 1 | last);
            last = word >> 63;
            while edges != 0 {
                let edge = page.wrapping_add(u64::from(edges.trailing_zeros()));
                edges &= edges.wrapping_sub(1);
                match run.take() {
                    None => run = Some(edge),
                    Some(first) => visit(Pages { first, end: edge }),
                }
            }
        }
        if let Some(first) = run {
            let end = self.pages.end;
            visit(Pages { first, end });
        }
    }
}

/// Returns the first of the pages that have their marks in the same 64-bit word as `page`.
const fn word_of(page: u64) -> u64 {
    page & !63
}

/// Returns whether none of `pages` is marked, reading as [`Marks::read`] does.
pub fn are_clear<E>(
    mut pages: Pages,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<bool, E> {
    let mut marks = Marks::none();

    while pages.count() != 0 {
        pages = marks.read(pages, &mut read)?;
        if !marks.are_clear() {
            return Ok(false);
        }
    }
    Ok(true)
}
