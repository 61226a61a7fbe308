// SPDX-License-Identifier: GPL-2.0-only

//! Decisions of KVM/arm64 about memslots with `KVM_MEM_USERFAULT`.
//!
//! Two questions of `mmu.c` are answered here: how large a stage 2 mapping may be while some pages
//! of its slot are marked, and what to invalidate once a change of the slot's flags is visible.
//! Locks, VMAs and page tables stay in C. An answer can make a mapping smaller or name something
//! to invalidate, nothing else: C takes the smaller of the size that it found and the answer. So a
//! bug in this file can break a promise of userfault but cannot map what C would not have mapped.
//!
//! The answers come from [`size`] and [`commit`], which know plain values only: they use nothing of
//! the kernel, no `unsafe` code and no operation that can panic. The functions below turn what C
//! passes into the types of those modules.
//!
//! C header: [`arch/arm64/kvm/userfault.h`](srctree/arch/arm64/kvm/userfault.h)

use kernel::{
    bindings,
    page::PAGE_SIZE,
    prelude::*, //
};

#[path = "userfault/commit.rs"]
mod commit;
#[path = "userfault/size.rs"]
mod size;

#[cfg(CONFIG_KVM_ARM64_USERFAULT_KUNIT_TEST)]
#[path = "userfault/kunit.rs"]
mod kunit;

use crate::{
    commit::{
        Change,
        Invalidation, //
    },
    size::MapSize, //
};

/// The smallest stage 2 mapping of this kernel.
const PAGE: MapSize = MapSize::new(PAGE_SIZE as u64);

impl Change {
    /// Decodes the kind of change, or returns [`None`] for one that this file does not know.
    fn from_c(change: bindings::kvm_userfault_change) -> Option<Self> {
        match change {
            bindings::kvm_userfault_change_KVM_USERFAULT_CREATE => Some(Self::Create),
            bindings::kvm_userfault_change_KVM_USERFAULT_DELETE => Some(Self::Delete),
            bindings::kvm_userfault_change_KVM_USERFAULT_MOVE => Some(Self::Move),
            bindings::kvm_userfault_change_KVM_USERFAULT_FLAGS_ONLY => Some(Self::FlagsOnly),
            _ => None,
        }
    }
}

/// Returns the size, in bytes, of a stage 2 mapping in a slot with `KVM_MEM_USERFAULT`.
///
/// * `size`: the size that C found for the mapping, in bytes; the answer is at most that.
///
/// # Safety
///
/// Always safe to call.
// Required to be unsafe due to the `#[export]` annotation.
#[export]
pub unsafe extern "C" fn kvm_userfault_map_size(size: u64) -> u64 {
    size::limit(MapSize::new(size), PAGE).bytes()
}

/// Returns what to invalidate after a change of a slot is visible to every fault.
///
/// * `was_userfault`, `is_userfault`: whether the slot had, and has, `KVM_MEM_USERFAULT`.
/// * `change`: the kind of change.
///
/// # Safety
///
/// Always safe to call.
// Required to be unsafe due to the `#[export]` annotation.
#[export]
pub unsafe extern "C" fn kvm_userfault_commit(
    was_userfault: bool,
    is_userfault: bool,
    change: bindings::kvm_userfault_change,
) -> bindings::kvm_userfault_invalidation {
    match commit::invalidation(was_userfault, is_userfault, Change::from_c(change)) {
        Invalidation::Nothing => {
            bindings::kvm_userfault_invalidation_KVM_USERFAULT_INVALIDATE_NOTHING
        }
        Invalidation::Slot => bindings::kvm_userfault_invalidation_KVM_USERFAULT_INVALIDATE_SLOT,
    }
}
