// SPDX-License-Identifier: GPL-2.0-only

//! KUnit tests of the decisions.

use kernel::prelude::*;

#[kunit_tests(kvm_arm64_userfault)]
mod decisions {
    use crate::{
        commit::{
            invalidation,
            Change,
            Invalidation, //
        },
        size::{
            limit,
            MapSize, //
        },
    };

    /// Page, PMD block and PUD block sizes with 4K, 16K and 64K pages.
    const GEOMETRIES: [[u64; 3]; 3] = [
        [1 << 12, 1 << 21, 1 << 30],
        [1 << 14, 1 << 25, 1 << 36],
        [1 << 16, 1 << 29, 1 << 42],
    ];

    /// A mapping in a userfault slot is a page, whatever C found.
    #[test]
    fn userfault_slot_is_mapped_by_pages() {
        for sizes in GEOMETRIES {
            let page = MapSize::new(sizes[0]);
            for size in sizes {
                assert_eq!(limit(MapSize::new(size), page), page);
            }
        }
    }

    /// An answer is never larger than what C found, even for a size that no geometry has.
    #[test]
    fn size_never_grows() {
        let page = MapSize::new(GEOMETRIES[0][0]);
        for bytes in [0, 1, page.bytes() - 1, u64::MAX] {
            let found = MapSize::new(bytes);
            assert!(limit(found, page) <= found);
        }
    }

    /// All inputs: only an enable of an existing slot, or an unknown change, invalidates.
    #[test]
    fn only_enable_invalidates() {
        use Change::*;
        use Invalidation::*;

        // For each change: never set, enabled, disabled, always set.
        let table = [
            (Some(Create), [Nothing, Nothing, Nothing, Nothing]),
            (Some(Delete), [Nothing, Nothing, Nothing, Nothing]),
            (Some(Move), [Nothing, Nothing, Nothing, Nothing]),
            (Some(FlagsOnly), [Nothing, Slot, Nothing, Nothing]),
            (None, [Slot, Slot, Slot, Slot]),
        ];

        for (change, expected) in table {
            let flags = [(false, false), (false, true), (true, false), (true, true)];
            for ((was, is), expected) in flags.into_iter().zip(expected) {
                assert_eq!(invalidation(was, is, change), expected);
            }
        }
    }
}
