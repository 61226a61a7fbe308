// SPDX-License-Identifier: GPL-2.0-only

//! Decisions of KVM/arm64 about memslots with `KVM_MEM_USERFAULT`.
//!
//! Two questions of `mmu.c` are answered here: how large a stage 2 mapping may be while some pages
//! of its slot are marked, and what to invalidate once a change of the slot's flags is visible.
//! Locks, VMAs and page tables stay in C. An answer can make a mapping smaller or name something
//! to invalidate, nothing else: C takes the smaller of the size that it found and the answer. So a
//! bug in this file can break a promise of userfault but cannot map what C would not have mapped.
//!
//! The answers come from [`size`] and [`commit`], and [`marks`] finds marked pages in a bitmap.
//! They know plain values only: they use nothing of the kernel, no `unsafe` code and no operation
//! that can panic. The functions below and [`bitmap`] turn what C passes into the types of those
//! modules.
//!
//! C header: [`arch/arm64/kvm/userfault.h`](srctree/arch/arm64/kvm/userfault.h)

use kernel::{
    bindings,
    page::PAGE_SIZE,
    prelude::*,
    sync::barrier::{
        smp_mb,
        Read, //
    }, //
};

// The root of this crate is among the C files, its modules are in a folder.
#[path = "userfault/bitmap.rs"]
pub mod bitmap;
#[path = "userfault/commit.rs"]
mod commit;
#[path = "userfault/marks.rs"]
pub mod marks;
#[path = "userfault/size.rs"]
mod size;
#[path = "userfault/slot.rs"]
pub mod slot;

#[cfg(CONFIG_KVM_ARM64_USERFAULT_KUNIT_TEST)]
#[path = "userfault/kunit.rs"]
mod kunit;

use crate::{
    commit::{
        Change,
        Invalidation, //
    },
    size::{
        MapSize,
        Sizes, //
    },
};

/// The sizes of stage 2 mappings of this kernel, as far as they matter here.
const SIZES: Sizes = Sizes::new(MapSize::new(PAGE_SIZE as u64));

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

/// Returns the size, in bytes, of a stage 2 mapping of a page that is not marked.
///
/// * `bitmap`, `base_gfn`, `npages`: of a slot with `KVM_MEM_USERFAULT`, and `gfn` is the page.
/// * `size`: the size that C found for the mapping, in bytes; the answer is at most that.
///
/// May sleep. As with the mark of a single page, a mark that is set meanwhile counts only if this
/// is called after the snapshot of `mmu_invalidate_seq`.
///
/// # Safety
///
/// Always safe to call.
// Required to be unsafe due to the `#[export]` annotation.
#[export]
pub unsafe extern "C" fn kvm_userfault_map_size(
    bitmap: *const u8,
    base_gfn: u64,
    npages: u64,
    gfn: u64,
    size: u64,
) -> u64 {
    let slot = slot::Slot::new(slot::Gfn(base_gfn), npages);
    let bitmap = bitmap::Bitmap::new(bitmap);
    let is_clear = |count| {
        let Some(pages) = slot.block(slot::Gfn(gfn), count) else {
            return false;
        };
        let read = |start, bytes: &mut [u8]| bitmap.read(start, bytes);
        // A bitmap that cannot be read may have any mark.
        let is_clear = marks::are_clear(pages, read) == Ok(true);

        // As in kvm_slot_test_userfault(): whoever sees a mark clear must see what the VMM did
        // before it. C looks at the host's page tables next.
        smp_mb(Read);
        is_clear
    };
    SIZES.limit(MapSize::new(size), is_clear).bytes()
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
        Invalidation::Marked => {
            bindings::kvm_userfault_invalidation_KVM_USERFAULT_INVALIDATE_MARKED
        }
    }
}

/// Unmaps the marked pages of a slot from stage 2, and returns whether that was possible.
///
/// It is not if the bitmap cannot be read: then any page may be marked, and C has to unmap the
/// whole slot.
///
/// * `bitmap`, `base_gfn`, `npages`: of a slot with `KVM_MEM_USERFAULT`.
///
/// Takes mmu_lock for each run of pages, so it must not be held. May sleep.
///
/// # Safety
///
/// `kvm` must point to a valid `struct kvm`, whose `slots_lock` is held.
#[export]
pub unsafe extern "C" fn kvm_userfault_unmap_marked(
    kvm: *mut bindings::kvm,
    bitmap: *const u8,
    base_gfn: u64,
    npages: u64,
) -> bool {
    let slot = slot::Slot::new(slot::Gfn(base_gfn), npages);
    let bitmap = bitmap::Bitmap::new(bitmap);
    let skip = |page| {
        // SAFETY: `kvm` is valid by the safety requirements.
        let gfn = unsafe { bindings::kvm_userfault_skip_unmapped(kvm, slot.gfn(page).0) };
        gfn.saturating_sub(base_gfn)
    };
    let read = |start, bytes: &mut [u8]| bitmap.read(start, bytes);
    let unmap = |pages: slot::Pages| {
        let gfn = slot.gfn(pages.first).0;
        // SAFETY: `kvm` is valid by the safety requirements.
        unsafe { bindings::kvm_userfault_unmap(kvm, gfn, pages.count()) };
    };
    commit::unmap_marked(slot.pages(), skip, read, unmap).is_ok()
}
