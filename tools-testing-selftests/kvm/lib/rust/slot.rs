// SPDX-License-Identifier: GPL-2.0-only

//! Memory slots.

use crate::{
    bindings,
    errno::Errno,
    vm::{
        host_page_size,
        VmInner, //
    },
    Bitmap,
    Mapping,
    Region, //
};
use std::{
    ops::Range,
    ptr,
    sync::Arc, //
};

/// What the memory of a slot is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Anonymous memory in pages.
    Anonymous,
    /// Anonymous memory that the kernel is asked to back by transparent huge pages.
    AnonymousThp,
    /// Shared memory.
    Shmem,
}

impl Backing {
    /// Returns libkvm's name for it.
    pub(crate) fn source(self) -> bindings::vm_mem_backing_src_type {
        match self {
            Self::Anonymous => bindings::vm_mem_backing_src_type_VM_MEM_SRC_ANONYMOUS,
            Self::AnonymousThp => bindings::vm_mem_backing_src_type_VM_MEM_SRC_ANONYMOUS_THP,
            Self::Shmem => bindings::vm_mem_backing_src_type_VM_MEM_SRC_SHMEM,
        }
    }

    /// Returns the size of the pages that it is made of, in bytes.
    pub fn page_size(self) -> usize {
        // SAFETY: Any type of memory that libkvm knows may be asked for.
        unsafe { bindings::get_backing_src_pagesz(self.source()) }
    }
}

/// A memory slot of a VM, mapped in the guest at its guest physical address.
pub struct Slot {
    vm: Arc<VmInner>,
    id: u32,
    gpa: u64,
    pages: usize,
    host: *mut u8,
}

// SAFETY: `host` points to memory that is mapped for as long as the VM is there and that this type
// accesses by volatile operations only; the rest can be sent.
unsafe impl Send for Slot {}
// SAFETY: As above; the methods that change the slot itself are system calls.
unsafe impl Sync for Slot {}

impl Slot {
    /// Wraps a slot that libkvm has added.
    pub(crate) fn new(vm: Arc<VmInner>, id: u32, gpa: u64, pages: usize) -> Self {
        // SAFETY: The VM has the slot, so libkvm knows the address and where its memory is.
        let host = unsafe { bindings::addr_gpa2hva(vm.raw(), gpa) }.cast();
        Self {
            vm,
            id,
            gpa,
            pages,
            host,
        }
    }

    /// Returns the number of host pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Returns the guest address of a page.
    pub fn gpa(&self, page: usize) -> u64 {
        self.gpa + (page * host_page_size()) as u64
    }

    /// Returns all guest addresses of the slot.
    pub fn range(&self) -> Range<u64> {
        self.gpa..self.gpa(self.pages)
    }

    /// Returns which page a guest address is in.
    pub fn page_of(&self, gpa: u64) -> usize {
        (gpa - self.gpa) as usize / host_page_size()
    }

    /// Returns the slot's description as KVM has it.
    pub fn region(&self) -> Region {
        // SAFETY: The VM has the slot, so libkvm returns a valid pointer.
        unsafe { (*bindings::memslot2region(self.vm.raw(), self.id)).region }
    }

    /// Sets the slot's flags, with the given bitmap where they include userfault.
    pub fn set_flags(&self, flags: u32, bitmap: Option<&Bitmap>) -> Result<(), Errno> {
        self.set_region(&Region {
            flags,
            userfault_bitmap: bitmap.map_or(0, Bitmap::address),
            ..self.region()
        })
    }

    /// Sets the slot's description, and keeps it as the slot's own if KVM takes it.
    pub fn set_region(&self, region: &Region) -> Result<(), Errno> {
        self.vm.set_region(region)?;
        // SAFETY: The VM has the slot, so libkvm returns a valid pointer, and no reference to what
        // it points to lives longer than an expression of this file.
        unsafe { (*bindings::memslot2region(self.vm.raw(), self.id)).region = *region };
        Ok(())
    }

    /// Returns the stage 2 mappings of the slot, or skips the case where nothing shows them.
    pub fn mappings(&self) -> Vec<Mapping> {
        self.vm.stage2().within(self.range())
    }

    /// Returns the host address of a page.
    pub(crate) fn host_address(&self, page: usize) -> u64 {
        self.word(page, 0) as u64
    }

    /// Returns the host address of a word of the slot.
    fn word(&self, page: usize, index: usize) -> *mut u64 {
        let offset = page * host_page_size() + index * size_of::<u64>();
        assert!(offset < self.pages * host_page_size(), "outside the slot");
        // SAFETY: The offset is inside the slot's memory.
        unsafe { self.host.add(offset) }.cast()
    }

    /// Reads a word of a page.
    pub fn read(&self, page: usize, index: usize) -> u64 {
        // SAFETY: The address is valid and aligned; the guest may access it at the same time, as
        // another machine would, which is what volatile is for.
        unsafe { ptr::read_volatile(self.word(page, index)) }
    }

    /// Writes a word of a page.
    pub fn write(&self, page: usize, index: usize, value: u64) {
        // SAFETY: As for [`Slot::read`].
        unsafe { ptr::write_volatile(self.word(page, index), value) }
    }

    /// Fills a page.
    pub fn fill(&self, page: usize, content: &[u8]) {
        assert_eq!(content.len(), host_page_size());
        let target = self.word(page, 0).cast();
        // SAFETY: The page belongs to the slot and does not overlap the content. The guest may
        // access it at the same time and see any mix, which is no concern of this process.
        unsafe { ptr::copy_nonoverlapping(content.as_ptr(), target, content.len()) }
    }

    /// Drops a page from the host, so that the next access finds it zero and unmapped.
    pub fn discard(&self, page: usize) {
        let address = self.word(page, 0).cast();
        // SAFETY: The page belongs to the slot, whose content nothing else relies on.
        let ret =
            unsafe { bindings::madvise(address, host_page_size(), bindings::MADV_DONTNEED as i32) };
        Errno::check(ret).expect("madvise(MADV_DONTNEED) failed");
    }
}
