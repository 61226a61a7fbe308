// SPDX-License-Identifier: GPL-2.0-only

//! What a committed change of a memslot leaves to be invalidated.

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
}

/// Returns what to invalidate after `change`, where [`None`] is a change of an unknown kind.
///
/// An enable must remove what was mapped before it: a mapping does not know about marked pages.
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
        Some(Change::FlagsOnly) if is_userfault && !was_userfault => Invalidation::Slot,
        Some(Change::FlagsOnly) => Invalidation::Nothing,
        None => Invalidation::Slot,
    }
}
