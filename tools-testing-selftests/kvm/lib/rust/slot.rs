// SPDX-License-Identifier: GPL-2.0-only

//! Memory slots.

use crate::{
    bindings,
    errno::Errno,
    ktap,
    vm::{
        host_page_size,
        VmInner, //
    },
    Bitmap,
    Mapping,
    Region, //
};
use std::{
    fs::File,
    ops::Range,
    os::fd::{
        AsRawFd,
        FromRawFd, //
    },
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
    /// Anonymous memory of the default huge page size of hugetlbfs.
    AnonymousHugetlb,
    /// Shared memory.
    Shmem,
    /// Shared memory of the default huge page size of hugetlbfs.
    SharedHugetlb,
    /// A guest_memfd that is mapped in this process, too. Where there is none, adding a slot skips
    /// the case.
    GuestMemfd,
}

impl Backing {
    /// Returns libkvm's name for it, or for what libkvm is to put in its place.
    pub(crate) fn source(self) -> bindings::vm_mem_backing_src_type {
        match self {
            // The guest_memfd is mapped over it.
            Self::Anonymous | Self::GuestMemfd => {
                bindings::vm_mem_backing_src_type_VM_MEM_SRC_ANONYMOUS
            }
            Self::AnonymousThp => bindings::vm_mem_backing_src_type_VM_MEM_SRC_ANONYMOUS_THP,
            Self::AnonymousHugetlb => {
                bindings::vm_mem_backing_src_type_VM_MEM_SRC_ANONYMOUS_HUGETLB
            }
            Self::Shmem => bindings::vm_mem_backing_src_type_VM_MEM_SRC_SHMEM,
            Self::SharedHugetlb => bindings::vm_mem_backing_src_type_VM_MEM_SRC_SHARED_HUGETLB,
        }
    }

    /// Returns the size of the pages that it is made of, in bytes.
    pub fn page_size(self) -> usize {
        // SAFETY: Any type of memory that libkvm knows may be asked for.
        unsafe { bindings::get_backing_src_pagesz(self.source()) }
    }

    /// Returns those of which this machine has memory at all.
    pub fn available() -> Vec<Self> {
        let all = [
            Self::Anonymous,
            Self::AnonymousThp,
            Self::AnonymousHugetlb,
            Self::Shmem,
            Self::SharedHugetlb,
        ];
        let (available, missing): (Vec<_>, Vec<_>) = all.into_iter().partition(|backing| {
            let hugetlb = matches!(backing, Self::AnonymousHugetlb | Self::SharedHugetlb);
            // A test may have two of them.
            !hugetlb || free_hugetlb_pages() > 1
        });
        for backing in missing {
            ktap::diagnostic(&format!("no {backing:?}: raise /proc/sys/vm/nr_hugepages"));
        }
        available
    }

    /// Returns how many pages of the host one of its pages is.
    pub fn pages_per_page(self) -> usize {
        self.page_size() / host_page_size()
    }
}

/// Returns how many pages of the default huge page size are free.
fn free_hugetlb_pages() -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("HugePages_Free:"));
    line.and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

/// Copies a page in large words: libkvm's memcpy(), which guests have to be able to use, takes a
/// byte after the other.
///
/// # Safety
///
/// `target` must be a page that does not overlap the content. A guest may access it at the same
/// time and see any mix, which is no concern of this process.
unsafe fn copy_page(content: &[u8], target: *mut u128) {
    const UNROLLED: usize = 4;
    let words = host_page_size() / size_of::<u128>();
    assert_eq!(content.len(), host_page_size());
    for line in (0..words).step_by(UNROLLED) {
        for word in line..line + UNROLLED {
            // SAFETY: The word is in the content, and in the page, which is aligned.
            unsafe {
                let content: *const u128 = content.as_ptr().cast();
                ptr::write_volatile(target.add(word), content.add(word).read_unaligned());
            }
        }
    }
}

/// A signal handler.
extern "C" fn ignore(_signal: i32) {}

/// A memory slot of a VM, mapped in the guest at its guest physical address.
pub struct Slot {
    vm: Arc<VmInner>,
    id: u32,
    gpa: u64,
    pages: usize,
    host: *mut u8,
    guest_memfd: Option<File>,
}

// SAFETY: `host` points to memory that is mapped for as long as the VM is there, and to which
// there is never a reference; the rest can be sent.
unsafe impl Send for Slot {}
// SAFETY: As above; the methods that change the slot itself are system calls.
unsafe impl Sync for Slot {}

impl Slot {
    /// Wraps a slot that libkvm has added, with the guest_memfd that it is bound to.
    pub(crate) fn new(
        vm: Arc<VmInner>,
        id: u32,
        gpa: u64,
        pages: usize,
        guest_memfd: Option<File>,
    ) -> Self {
        // SAFETY: The VM has the slot, so libkvm knows the address and where its memory is.
        let host = unsafe { bindings::addr_gpa2hva(vm.raw(), gpa) }.cast();
        let slot = Self {
            vm,
            id,
            gpa,
            pages,
            host,
            guest_memfd,
        };
        if let Some(file) = &slot.guest_memfd {
            slot.remap(bindings::MAP_SHARED, file.as_raw_fd());
        }
        slot
    }

    /// Maps other memory where the slot's memory is for the host.
    fn remap(&self, kind: u32, fd: i32) {
        let len = self.pages * host_page_size();
        let access = (bindings::PROT_READ | bindings::PROT_WRITE) as i32;
        let flags = (kind | bindings::MAP_FIXED) as i32;
        // SAFETY: The range belongs to the slot, nothing refers to it, and libkvm unmaps whatever
        // is there.
        let host = unsafe { bindings::mmap(self.host.cast(), len, access, flags, fd, 0) };
        assert_eq!(host.cast(), self.host, "mmap failed: {:?}", Errno::last());
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

    /// Sets the slot's flags, with the given bitmap where they include userfault. The flag for
    /// guest_memfd stays as it is.
    pub fn set_flags(&self, flags: u32, bitmap: Option<&Bitmap<'_>>) -> Result<(), Errno> {
        let region = self.region();
        self.set_region(&Region {
            flags: flags | (region.flags & bindings::KVM_MEM_GUEST_MEMFD),
            userfault_bitmap: bitmap.map_or(0, |bitmap| bitmap.address()),
            ..region
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

    /// Calls an ioctl of the VM that reads `argument`.
    pub(crate) fn ioctl<T>(&self, request: u32, argument: &T) -> Result<(), Errno> {
        self.vm.ioctl(request, argument).map(|_| ())
    }

    /// Returns the stage 2 mappings of the slot, where debugfs shows them.
    pub fn mappings(&self) -> Option<Vec<Mapping>> {
        Some(self.vm.stage2()?.within(self.range()))
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
        // SAFETY: The page belongs to the slot and does not overlap the content.
        unsafe { copy_page(content, self.word(page, 0).cast()) }
    }

    /// Fills a page of shared memory through another mapping than the one that KVM looks at.
    pub fn fill_alias(&self, page: usize, content: &[u8]) {
        // SAFETY: The VM has the slot.
        let target = unsafe { bindings::addr_gpa2alias(self.vm.raw(), self.gpa(page)) };
        assert!(!target.is_null(), "the memory is not shared");
        // SAFETY: As for [`Slot::fill`].
        unsafe { copy_page(content, target.cast()) }
    }

    /// Sets all tags of a page.
    pub fn set_tags(&self, page: usize, tag: u8) -> Result<(), Errno> {
        let mut tags = vec![tag; host_page_size() / 16];
        self.copy_tags(page, &mut tags, bindings::KVM_ARM_TAGS_TO_GUEST)
    }

    /// Returns the tags of a page, one for each 16 bytes.
    pub fn tags(&self, page: usize) -> Result<Vec<u8>, Errno> {
        let mut tags = vec![0; host_page_size() / 16];
        self.copy_tags(page, &mut tags, bindings::KVM_ARM_TAGS_FROM_GUEST)?;
        Ok(tags)
    }

    fn copy_tags(&self, page: usize, tags: &mut [u8], direction: u32) -> Result<(), Errno> {
        let mut copy = bindings::kvm_arm_copy_mte_tags {
            guest_ipa: self.gpa(page),
            length: host_page_size() as u64,
            flags: direction.into(),
            ..Default::default()
        };
        copy.addr = tags.as_mut_ptr().cast();
        self.ioctl(bindings::LIBKVM_ARM_MTE_COPY_TAGS, &copy)
    }

    /// Puts a page of shared memory in the place of a page, as a mapping of its own.
    pub fn replace_page(&self, page: usize) {
        let access = (bindings::PROT_READ | bindings::PROT_WRITE) as i32;
        let flags = (bindings::MAP_SHARED | bindings::MAP_ANONYMOUS | bindings::MAP_FIXED) as i32;
        let (address, len) = (self.word(page, 0).cast(), host_page_size());
        // SAFETY: The page belongs to the slot, nothing refers to it, and libkvm unmaps whatever
        // is there.
        let host = unsafe { bindings::mmap(address, len, access, flags, -1, 0) };
        assert_eq!(host, address, "mmap failed: {:?}", Errno::last());
    }

    /// Makes a page one that has an error that its memory cannot correct, or returns why that is
    /// not possible here.
    pub fn poison(&self, page: usize) -> Result<(), Errno> {
        let (address, advice) = (self.word(page, 0).cast(), bindings::MADV_HWPOISON as i32);
        // The kernel tells whoever has the page mapped, and libkvm would take that for a failure.
        // SAFETY: The handler does nothing, and the page belongs to the slot, whose content
        // nothing else relies on.
        let ret = unsafe {
            let before = bindings::signal(bindings::SIGBUS as i32, Some(ignore));
            let ret = bindings::madvise(address, host_page_size(), advice);
            bindings::signal(bindings::SIGBUS as i32, before);
            ret
        };
        Errno::check(ret).map(|_| ())
    }

    /// Drops a page from the host, so that the next access finds it unmapped, and empty if the
    /// memory is anonymous or a guest_memfd.
    pub fn discard(&self, page: usize) {
        let address = self.word(page, 0).cast();
        let len = host_page_size();
        let ret = match &self.guest_memfd {
            Some(file) => {
                let mode = bindings::FALLOC_FL_PUNCH_HOLE | bindings::FALLOC_FL_KEEP_SIZE;
                let (offset, len) = ((page * len) as i64, len as i64);
                // SAFETY: The page belongs to the slot, whose content nothing else relies on.
                unsafe { bindings::fallocate(file.as_raw_fd(), mode as i32, offset, len) }
            }
            // SAFETY: As above.
            None => unsafe { bindings::madvise(address, len, bindings::MADV_DONTNEED as i32) },
        };
        Errno::check(ret).expect("cannot drop the page");
    }

    /// Closes the guest_memfd that the slot is bound to, as a VMM that ends might.
    pub fn close_guest_memfd(&mut self) {
        self.guest_memfd = None;
        // A mapping keeps the file open as well.
        self.remap(bindings::MAP_PRIVATE | bindings::MAP_ANONYMOUS, -1);

        // libkvm has a file descriptor of its own.
        // SAFETY: The VM has the slot, so libkvm returns a valid pointer.
        let region = unsafe { &mut (*bindings::memslot2region(self.vm.raw(), self.id)).region };
        // SAFETY: The file descriptor is open, and libkvm does not use it again.
        drop(unsafe { File::from_raw_fd(region.guest_memfd as i32) });
        region.guest_memfd = u32::MAX;
    }
}
