// SPDX-License-Identifier: GPL-2.0-only

//! How large a stage 2 mapping may be.

/// The size of a stage 2 mapping in bytes, which C has found to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MapSize(u64);

impl MapSize {
    /// Creates a size from a number of bytes.
    pub(crate) const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns the number of bytes.
    pub(crate) const fn bytes(self) -> u64 {
        self.0
    }
}

/// Returns the size of a mapping in a slot with `KVM_MEM_USERFAULT`, at most `found`.
///
/// A mapping larger than a page could cover a marked page and let the guest access it without an
/// exit.
pub(crate) fn limit(found: MapSize, page: MapSize) -> MapSize {
    found.min(page)
}
