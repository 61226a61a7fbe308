// SPDX-License-Identifier: GPL-2.0-only

//! How large a stage 2 mapping may be.

use crate::{
    marks::{
        ByteCount,
        Marks,
        UserBitmap, //
    },
    slot::{
        Gfn,
        PageCount,
        Slot, //
    },
};

/// The sizes that a mapping in a slot with `KVM_MEM_USERFAULT` can have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    page: ByteCount,
    block: ByteCount,
}

impl Sizes {
    /// Creates the sizes of a host with such pages, and blocks of many pages.
    pub(crate) const fn new(page: ByteCount, block: ByteCount) -> Self {
        Self { page, block }
    }

    /// Returns how many pages a block has.
    pub(crate) const fn pages_per_block(self) -> Option<PageCount> {
        match self.block.0.checked_div(self.page.0) {
            Some(count) => Some(PageCount(count)),
            None => None,
        }
    }

    /// Returns whether a block that maps `gfn` is known to have no marked page.
    fn block_is_clear(
        self,
        slot: Option<Slot>,
        gfn: Gfn,
        bitmap: &impl UserBitmap,
        words: &mut [usize],
    ) -> Option<bool> {
        let pages = slot?.block(gfn, self.pages_per_block()?)?;
        Some(Marks::read(bitmap, pages, words)?.are_clear())
    }

    /// Returns the largest size of a mapping of `gfn` that does not take in a marked page, provided
    /// that `gfn` itself is not marked.
    ///
    /// `words` is room for the marks of a block. Where anything is not as it should be, the answer
    /// is a page.
    pub(crate) fn largest(
        self,
        slot: Option<Slot>,
        gfn: Gfn,
        bitmap: &impl UserBitmap,
        words: &mut [usize],
    ) -> ByteCount {
        match self.block_is_clear(slot, gfn, bitmap, words) {
            Some(true) => self.block,
            Some(false) | None => self.page,
        }
    }
}

#[cfg(CONFIG_KVM_ARM64_USERFAULT_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(kvm_arm64_userfault_size)]
mod tests {
    use super::*;
    use crate::marks::Byte;

    /// A bitmap all of whose words are the same, or that cannot be read.
    struct Same(Option<usize>);

    impl UserBitmap for Same {
        fn read(&self, _: Byte, _: ByteCount, words: &mut [usize]) -> Option<()> {
            words.fill(self.0.unwrap_or(0));
            self.0.map(|_| ())
        }
    }

    /// Pages and blocks with 4K, 16K and 64K pages.
    const SIZES: [Sizes; 3] = [
        Sizes::new(ByteCount(1 << 12), ByteCount(1 << 21)),
        Sizes::new(ByteCount(1 << 14), ByteCount(1 << 25)),
        Sizes::new(ByteCount(1 << 16), ByteCount(1 << 29)),
    ];

    /// A block is mapped if no page of it is known to be marked, and else a page.
    #[test]
    fn block_is_mapped_if_clear() {
        for sizes in SIZES {
            let all = sizes
                .pages_per_block()
                .and_then(|count| Slot::new(Gfn(0), count));
            let part = Slot::new(Gfn(0), PageCount(9));
            let largest = |slot, marks| sizes.largest(slot, Gfn(5), &Same(marks), &mut [0; 128]);

            assert_eq!(largest(all, Some(0)), sizes.block);
            assert_eq!(largest(all, Some(1)), sizes.page);
            assert_eq!(largest(all, None), sizes.page);
            assert_eq!(largest(part, Some(0)), sizes.page);
            assert_eq!(largest(None, Some(0)), sizes.page);
        }
    }

    /// Sizes that no host has, and too little room, give a page.
    #[test]
    fn strange_sizes_give_a_page() {
        let slot = Slot::new(Gfn(0), PageCount(1 << 20));
        for (page, block) in [(0, 1 << 21), (1 << 12, 3 << 12), (1 << 12, 1 << 25)] {
            let sizes = Sizes::new(ByteCount(page), ByteCount(block));
            let largest = sizes.largest(slot, Gfn(0), &Same(Some(0)), &mut [0; 8]);
            assert_eq!(largest, ByteCount(page));
        }
    }
}
