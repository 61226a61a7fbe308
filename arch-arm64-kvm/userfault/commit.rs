// SPDX-License-Identifier: GPL-2.0-only

//! What a committed change of a memslot leaves to be invalidated.

use crate::{
    marks::Marks,
    slot::Pages, //
};

/// The kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The slot is new.
    Create,
    /// The slot is gone.
    Delete,
    /// The slot is at another guest address.
    Move,
    /// The slot has other flags.
    FlagsOnly,
}

/// What to remove from stage 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invalidation {
    /// Every mapping stays.
    Nothing,
    /// All mappings of the slot go.
    Slot,
    /// All mappings of marked pages go.
    Marked,
}

/// Returns what to invalidate after `change`, where [`None`] is a change of an unknown kind.
///
/// An enable must remove what was mapped of marked pages before it: mappings know nothing of marks.
/// A slot that was created, moved or deleted has no mapping left from before.
///
/// A disable removes nothing. Small mappings are no error, and removing them is costly without
/// FEAT_S2FWB: every page has to be cleaned to memory first. A VMM that wants its blocks back can
/// delete the slot and create it again.
pub(crate) fn invalidation(
    was_userfault: bool,
    is_userfault: bool,
    change: Option<Change>,
) -> Invalidation {
    match change {
        Some(Change::Create | Change::Delete | Change::Move) => Invalidation::Nothing,
        Some(Change::FlagsOnly) if is_userfault && !was_userfault => Invalidation::Marked,
        Some(Change::FlagsOnly) => Invalidation::Nothing,
        None => Invalidation::Slot,
    }
}

/// Bounds how often an enable takes mmu_lock and invalidates TLBs: with more than one run for so
/// many pages, all of them go at once. Those that are not marked pay for that with a fault.
const PAGES_PER_RUN: u64 = 4;

/// Names runs of pages to unmap, so that no marked page of `pages` stays mapped.
///
/// * `skip` gets a page and returns the next one, from that on, that may be mapped.
/// * `read` reads the bitmap, see [`Marks::read`].
/// * `unmap` gets the pages to unmap.
///
/// A mark counts if it is set from before the call until its end; one that is set or cleared
/// meanwhile may count or not. Other pages are named only where there would be too many runs, see
/// [`PAGES_PER_RUN`].
pub(crate) fn unmap_marked<E>(
    mut pages: Pages,
    mut skip: impl FnMut(u64) -> u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    mut unmap: impl FnMut(Pages),
) -> Result<(), E> {
    let mut marks = Marks::none();

    while pages.count() != 0 {
        let mapped = skip(pages.first);
        if mapped > pages.first {
            pages.first = mapped;
            continue;
        }

        pages = marks.read(pages, &mut read)?;
        if marks.runs().saturating_mul(PAGES_PER_RUN) > marks.pages().count() {
            unmap(marks.pages());
        } else {
            marks.for_each_run(&mut unmap);
        }
    }
    Ok(())
}
