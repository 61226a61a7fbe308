// SPDX-License-Identifier: GPL-2.0-only

//! What the marks of a memslot with `KVM_MEM_USERFAULT` allow.
//!
//! `mmu.c` asks how large a stage 2 mapping may be while some pages of its slot are marked, and
//! which pages to take away when the flag is set. Locks, VMAs and page tables stay in C, and so
//! does the mark of the page that a fault is about. An answer can only make a mapping smaller or
//! name what to unmap: a bug in this crate can break a promise of userfault, but cannot map what C
//! would not have mapped.
//!
//! The answers come from [`size`], [`chunk`], [`marks`] and [`slot`], which have no pointer and no
//! `unsafe` code, and never panic. The functions below turn what C passes into their types. A type
//! that cannot be made of it, like a bitmap that cannot be read, gives the answer that holds
//! whatever the marks are.
//!
//! C header: [`arch/arm64/kvm/userfault/userfault.h`](srctree/arch/arm64/kvm/userfault/userfault.h)

use kernel::{
    bindings,
    num::casts::{
        u32_as_usize,
        usize_as_u64, //
    },
    page::PAGE_SIZE,
    prelude::*,
    uaccess::UserSlice, //
};

mod chunk;
mod marks;
mod size;
mod slot;

use crate::{
    chunk::Chunk,
    marks::{
        Byte,
        ByteCount,
        UserBitmap, //
    },
    size::Sizes,
    slot::{
        Gfn,
        PageCount,
        Slot, //
    },
};

/// The sizes of this host.
const SIZES: Sizes = Sizes::new(
    ByteCount(usize_as_u64(PAGE_SIZE)),
    ByteCount(usize_as_u64(bindings::PMD_SIZE)),
);

/// Room for the marks of a block, in words, wherever in a byte the first is.
const BLOCK_WORDS: usize = bindings::PMD_SIZE / PAGE_SIZE / u32_as_usize(usize::BITS) + 1;

/// Where a bitmap is.
struct VmmBitmap(UserPtr);

impl VmmBitmap {
    /// Takes the address of a bitmap.
    fn new(address: *const u8) -> Self {
        Self(UserPtr::from_ptr(address.cast_mut().cast()))
    }
}

impl UserBitmap for VmmBitmap {
    fn read(&self, first: Byte, count: ByteCount, words: &mut [usize]) -> Option<()> {
        let first = usize::try_from(first.0).ok()?;
        let count = usize::try_from(count.0).ok()?;
        let bytes = words.as_mut_bytes().get_mut(..count)?;
        UserSlice::new(self.0.wrapping_byte_add(first), count)
            .reader()
            .read_slice(bytes)
            .ok()
    }
}

/// Returns how large a mapping may be, in bytes: a page or a block.
///
/// * `bitmap`, `base_gfn`, `npages`: a slot with `KVM_MEM_USERFAULT`.
/// * `gfn`: the page to map, which is not marked.
///
/// Reads user memory, so this may sleep. The marks count as the page's own does if they are read
/// after the same snapshot of `mmu_invalidate_seq`.
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
) -> u64 {
    let slot = Slot::new(Gfn(base_gfn), PageCount(npages));
    let words = &mut [0; BLOCK_WORDS];

    SIZES
        .largest(slot, Gfn(gfn), &VmmBitmap::new(bitmap), words)
        .0
}

/// Reads the marks of a chunk of a slot.
///
/// * `cursor`: C has set the slot, and this sets the chunk.
/// * `gfn`, `npages`: the pages of the chunk.
///
/// Returns 0, or `-EFAULT` if the marks cannot be read: all of the pages may be marked then.
///
/// Reads user memory, so this may sleep.
///
/// # Safety
///
/// `cursor` must point to an initialised cursor that nobody else uses meanwhile.
#[export]
pub unsafe extern "C" fn kvm_userfault_next_chunk(
    cursor: *mut bindings::kvm_userfault_cursor,
    gfn: u64,
    npages: u64,
) -> c_int {
    // SAFETY: By the safety requirements `cursor` is initialised, and used by nobody else.
    let cursor = unsafe { &mut *cursor };
    let bitmap = VmmBitmap::new(cursor.bitmap);
    let (first, count) = (Gfn(gfn), PageCount(npages));

    // Without pages this is no chunk to go on with.
    cursor.chunk_npages = 0;

    let slot = Slot::new(Gfn(cursor.base_gfn), PageCount(cursor.npages));
    if slot
        .and_then(|slot| Chunk::read(slot, first, count, &bitmap, &mut cursor.marks))
        .is_none()
    {
        return EFAULT.to_errno();
    }

    cursor.chunk_gfn = gfn;
    cursor.chunk_npages = npages;
    cursor.next_gfn = gfn;
    0
}

/// Finds the next run of marked pages in a chunk.
///
/// * `cursor`: has the chunk that [`kvm_userfault_next_chunk`] has read last, and gets the run.
///
/// Returns 1 if there is one, 0 if there is none, and `-EINVAL` for a cursor without a chunk: all
/// of the pages may be marked then.
///
/// C may have `mmu_lock`, so this must not sleep.
///
/// # Safety
///
/// `cursor` must point to an initialised cursor that nobody else uses meanwhile.
#[export]
pub unsafe extern "C" fn kvm_userfault_next_run(
    cursor: *mut bindings::kvm_userfault_cursor,
) -> c_int {
    // SAFETY: By the safety requirements `cursor` is initialised, and used by nobody else.
    let cursor = unsafe { &mut *cursor };
    let (first, count) = (Gfn(cursor.chunk_gfn), PageCount(cursor.chunk_npages));
    let next = Gfn(cursor.next_gfn);

    let slot = Slot::new(Gfn(cursor.base_gfn), PageCount(cursor.npages));
    let Some(chunk) =
        slot.and_then(|slot| Chunk::resume(slot, first, count, next, &mut cursor.marks))
    else {
        return EINVAL.to_errno();
    };
    let Some(run) = chunk.next_run() else {
        return 0;
    };

    cursor.run_gfn = run.first.0;
    cursor.run_npages = run.count.0;
    cursor.next_gfn = run.end.0;
    1
}
