// SPDX-License-Identifier: GPL-2.0-only

//! Memory of this process that guests are given, or that KVM reads bitmaps from.

use crate::*;
use std::{
    any::Any,
    ffi::{
        c_int,
        c_void, //
    },
    fs::{
        self,
        File, //
    },
    ops::Range,
    os::{
        fd::{
            AsRawFd,
            FromRawFd, //
        },
        unix::fs::FileExt, //
    },
    ptr::{
        self,
        NonNull, //
    },
    slice,
    sync::{
        atomic::{
            AtomicU64,
            Ordering, //
        },
        Arc,
        Mutex,
        MutexGuard, //
    },
    thread,
    time::Duration, //
};

/// What memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Anonymous memory in pages.
    Anonymous,
    /// Anonymous memory that the kernel is asked to back by transparent huge pages.
    AnonymousThp,
    /// Anonymous memory of the default huge page size of hugetlbfs.
    AnonymousHugetlb,
    /// Anonymous memory of another size of hugetlbfs, of so many bytes.
    OtherHugetlb(Bytes),
    /// Shared memory.
    Shmem,
    /// Shared memory that the kernel is asked to back by transparent huge pages.
    ShmemThp,
    /// Shared memory of the default huge page size of hugetlbfs.
    SharedHugetlb,
    /// A guest_memfd that is mapped in this process, too.
    GuestMemfd,
}

impl Backing {
    fn is_hugetlb(self) -> bool {
        matches!(
            self,
            Self::AnonymousHugetlb | Self::OtherHugetlb(_) | Self::SharedHugetlb
        )
    }

    /// Returns how many pages of the host one of its pages is, or [`None`] where the kernel has no
    /// such memory.
    pub fn huge_pages(self) -> Option<usize> {
        let size = match self {
            Self::AnonymousThp | Self::ShmemThp => {
                let folder = "/sys/kernel/mm/transparent_hugepage";
                let size = fs::read_to_string(format!("{folder}/hpage_pmd_size"));
                let size = size.ok()?.trim().parse::<usize>().ok()?;
                if self == Self::ShmemThp {
                    // The page cache does not have all sizes.
                    let kilobytes = size >> 10;
                    let control = format!("{folder}/hugepages-{kilobytes}kB/shmem_enabled");
                    fs::metadata(control).ok()?;
                }
                size
            }
            Self::AnonymousHugetlb | Self::SharedHugetlb => meminfo("Hugepagesize:")? << 10,
            Self::OtherHugetlb(size) => size.0 as usize,
            Self::Anonymous | Self::Shmem | Self::GuestMemfd => page_size(),
        };
        Some(size / page_size())
    }

    /// As [`Backing::huge_pages`], or skips the case where so many huge pages are not to be had.
    pub fn need_huge_pages(self, count: usize) -> usize {
        let pages = self
            .huge_pages()
            .unwrap_or_else(|| ktap::skip(format!("no {self:?} in this kernel")));
        if self.is_hugetlb() && free_hugetlb(Bytes::of_pages(pages)) < count {
            ktap::skip(format!(
                "fewer than {count} free hugetlb pages (nr_hugepages)"
            ));
        }
        pages
    }

    /// As [`Backing::need_huge_pages`], or skips the case where they are too much memory.
    pub fn need_many_huge_pages(self, count: usize) -> usize {
        let pages = self.need_huge_pages(count);
        if Bytes::of_pages(pages * count) > Bytes(256 << 20) {
            ktap::skip("huge pages are too large for that many");
        }
        pages
    }

    /// Returns the sizes of hugetlbfs, but the default, of which there is a free page.
    pub fn other_hugetlb() -> impl Iterator<Item = Self> {
        let default = Self::AnonymousHugetlb.huge_pages().map(Bytes::of_pages);
        let shifts = page_size().trailing_zeros()..u64::BITS;
        let sizes = shifts.map(|shift| Bytes(1 << shift));
        let is_free = move |size: &Bytes| Some(*size) != default && free_hugetlb(*size) != 0;
        sizes.filter(is_free).map(Self::OtherHugetlb)
    }
}

/// Returns a number of /proc/meminfo.
fn meminfo(name: &str) -> Option<usize> {
    let text = fs::read_to_string("/proc/meminfo").expect("cannot read /proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Returns how many pages of a size hugetlbfs has that nobody else is to get.
fn free_hugetlb(size: Bytes) -> usize {
    let folder = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", size.0 >> 10);
    let count = |name| {
        let number = fs::read_to_string(format!("{folder}/{name}"));
        number.map_or(0, |number| number.trim().parse().expect("not a number"))
    };
    usize::saturating_sub(count("free_hugepages"), count("resv_hugepages"))
}

/// What may be done with the pages of an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    None,
    /// Reading.
    Read,
    /// Reading and writing.
    ReadWrite,
    /// The same, and this process has tags of FEAT_MTE there.
    Tagged,
}

impl Access {
    fn protection(self) -> c_int {
        (match self {
            Self::None => bindings::PROT_NONE,
            Self::Read => bindings::PROT_READ,
            Self::ReadWrite => bindings::PROT_READ | bindings::PROT_WRITE,
            Self::Tagged => bindings::PROT_READ | bindings::PROT_WRITE | bindings::PROT_MTE,
        }) as c_int
    }
}

/// What the kernel is asked to do with pages of an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Advice {
    /// Drop them from this mapping.
    DontNeed = bindings::MADV_DONTNEED,
    /// Make them a huge page.
    Collapse = bindings::MADV_COLLAPSE,
    /// Share them with other pages of the same content.
    Mergeable = bindings::MADV_MERGEABLE,
}

/// Pages of memory, with a page behind them that can never be accessed, if it is not somebody
/// else's memory.
///
/// Whoever has an area keeps it mapped. Everything in it is accessed by atomics, as guests, KVM and
/// other processes may do so at the same time, and by those of one size, which Rust asks for.
#[derive(Clone)]
pub struct Area(Arc<Mapping>);

struct Mapping {
    backing: Backing,
    start: NonNull<u8>,
    len: usize,
    /// What has to be unmapped in the end, if that is not for somebody else to do.
    reserved: Option<(NonNull<u8>, usize)>,
    /// Who unmaps it otherwise, and is kept for that.
    owner: Option<Arc<dyn Any + Send + Sync>>,
    /// The file that is mapped, and from where on.
    file: Mutex<Option<File>>,
    file_start: u64,
}

// SAFETY: The memory belongs to the process, and all access to it is atomic.
unsafe impl Send for Mapping {}
// SAFETY: As above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Some((start, len)) = self.reserved {
            // SAFETY: The range is this mapping's, and nothing refers to it any more.
            unsafe { bindings::munmap(start.as_ptr().cast(), len) };
        }
    }
}

/// Calls mmap().
///
/// # Safety
///
/// What is at a fixed address must be the caller's to replace.
unsafe fn mmap(
    address: *mut u8,
    len: usize,
    access: Access,
    flags: u32,
    file: Option<(&File, u64)>,
) -> Result<NonNull<u8>, Errno> {
    let (fd, offset) = file.map_or((-1, 0), |(file, offset)| (file.as_raw_fd(), offset as i64));
    let (access, flags) = (access.protection(), flags as c_int);
    // SAFETY: By this function's own requirement.
    let ret = unsafe { bindings::mmap(address.cast(), len, access, flags, fd, offset) };
    if ret as isize == -1 {
        return Err(Errno::last());
    }
    Ok(NonNull::new(ret.cast()).expect("mmap returned NULL"))
}

/// Returns the address where user space ends.
#[track_caller]
pub fn end_of_user_space() -> Hva {
    let flags = bindings::MAP_PRIVATE | bindings::MAP_ANONYMOUS | bindings::MAP_FIXED_NOREPLACE;
    let ends_at = |bits: &u32| {
        let last = ((1_usize << bits) - page_size()) as *mut u8;
        // SAFETY: This replaces nothing.
        let page = unsafe { mmap(last, page_size(), Access::None, flags, None) };
        matches!(page, Ok(_) | Err(Errno::EEXIST))
    };
    Hva(1 << (36..56).rev().find(ends_at).expect("there is no end"))
}

impl Area {
    /// Maps memory of `pages` pages, none of which is there yet.
    #[track_caller]
    pub fn new(backing: Backing, pages: usize) -> Self {
        let anonymous = bindings::MAP_PRIVATE | bindings::MAP_ANONYMOUS;
        match backing {
            Backing::Anonymous | Backing::AnonymousThp => {
                // There may be more of it than there is memory.
                Self::map(backing, pages, anonymous | bindings::MAP_NORESERVE, None)
            }
            Backing::AnonymousHugetlb => {
                Self::map(backing, pages, anonymous | bindings::MAP_HUGETLB, None)
            }
            Backing::OtherHugetlb(size) => {
                let size = size.0.trailing_zeros() << bindings::MAP_HUGE_SHIFT;
                let flags = anonymous | bindings::MAP_HUGETLB | size;
                Self::map(backing, pages, flags, None)
            }
            Backing::Shmem | Backing::ShmemThp => Self::of_memfd(backing, pages, 0),
            Backing::SharedHugetlb => Self::of_memfd(backing, pages, bindings::MFD_HUGETLB),
            Backing::GuestMemfd => panic!("a guest_memfd belongs to a VM: see Vm::guest_memfd()"),
        }
    }

    #[track_caller]
    fn of_memfd(backing: Backing, pages: usize, flags: u32) -> Self {
        // SAFETY: The name is a C string.
        let fd = unsafe { bindings::memfd_create(c"kvm_selftest".as_ptr(), flags) };
        let fd = Errno::check(fd).expect("memfd_create failed");
        // SAFETY: The file descriptor is new and has no other owner.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(Bytes::of_pages(pages).0)
            .expect("cannot set the size of the memfd");
        Self::of_file(backing, file, Bytes(0), pages)
    }

    /// Maps a file, from `start` on.
    #[track_caller]
    pub(crate) fn of_file(backing: Backing, file: File, start: Bytes, pages: usize) -> Self {
        Self::map(backing, pages, bindings::MAP_SHARED, Some((file, start.0)))
    }

    #[track_caller]
    fn map(backing: Backing, pages: usize, flags: u32, file: Option<(File, u64)>) -> Self {
        let huge = backing.huge_pages();
        // Of hugetlb the kernel maps whole huge pages, whatever it is asked for.
        let is_whole = !backing.is_hugetlb() || huge.is_some_and(|huge| pages % huge == 0);
        assert!(is_whole, "{pages} pages are not whole huge pages");
        let align = huge.unwrap_or(1);
        let total = pages.saturating_add(align + 1);
        let bytes = |pages| Bytes::of_pages(pages).0 as usize;
        let (len, align, total) = (bytes(pages), bytes(align), bytes(total));
        let nothing = bindings::MAP_PRIVATE | bindings::MAP_ANONYMOUS | bindings::MAP_NORESERVE;
        let mapped = file.as_ref().map(|(file, start)| (file, *start));
        // SAFETY: The first is new memory, at an address that the kernel chooses. The second is
        // inside of it: it is `pages` pages, as was checked, and begins within the first `align`.
        let (reserved, start) = unsafe {
            let reserved = mmap(ptr::null_mut(), total, Access::None, nothing, None)
                .expect("cannot reserve addresses");
            let start = reserved.as_ptr();
            let start = start.add(start.align_offset(align));
            let flags = flags | bindings::MAP_FIXED;
            let start =
                mmap(start, len, Access::ReadWrite, flags, mapped).unwrap_or_else(|error| {
                    panic!("cannot map {pages} pages of {backing:?}: {error:?}")
                });
            (reserved, start)
        };
        let (file, file_start) = file.map_or((None, 0), |(file, start)| (Some(file), start));
        let area = Self(Arc::new(Mapping {
            backing,
            start,
            len,
            reserved: Some((reserved, total)),
            owner: None,
            file: Mutex::new(file),
            file_start,
        }));
        match backing {
            Backing::AnonymousThp | Backing::ShmemThp => area
                .madvise(0..pages, bindings::MADV_HUGEPAGE)
                .expect("MADV_HUGEPAGE failed"),
            Backing::Anonymous | Backing::Shmem => {
                // A kernel without huge pages does not know this.
                let _ = area.madvise(0..pages, bindings::MADV_NOHUGEPAGE);
            }
            _ => {}
        }
        area
    }

    /// Wraps memory that is unmapped by somebody else.
    ///
    /// # Safety
    ///
    /// It must be mapped and writable for as long as its owner is there, and there may be no
    /// references to it.
    pub(crate) unsafe fn of_others(
        start: NonNull<u8>,
        len: usize,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self(Arc::new(Mapping {
            backing: Backing::Anonymous,
            start,
            len,
            reserved: None,
            owner: Some(owner),
            file: Mutex::new(None),
            file_start: 0,
        }))
    }

    /// Returns whether this is who unmaps the memory, and is kept for that.
    pub(crate) fn is_owned_by<T>(&self, owner: &T) -> bool {
        let is_this = |other| ptr::addr_eq(Arc::as_ptr(other), owner);
        self.0.owner.as_ref().is_some_and(is_this)
    }

    /// Maps a page that has no struct page for KVM, as drivers map theirs (VM_PFNMAP): that of a
    /// perf event.
    ///
    /// Skips the case where there is none for this user.
    #[track_caller]
    pub fn of_perf_event() -> Self {
        let event = bindings::perf_event_attr {
            type_: bindings::perf_type_id_PERF_TYPE_SOFTWARE,
            config: bindings::perf_sw_ids_PERF_COUNT_SW_DUMMY.into(),
            size: size_of::<bindings::perf_event_attr>() as u32,
            ..Default::default()
        };
        let (call, any, none) = (bindings::SYS_perf_event_open.into(), -1, -1);
        // SAFETY: The kernel reads the description, which has its size.
        let fd = unsafe { bindings::syscall(call, &raw const event, 0, any, none, 0_u64) };
        let fd = match Errno::check(fd as i32) {
            Err(error @ (Errno::EACCES | Errno::ENOSYS | Errno::EPERM)) => {
                ktap::skip(format!("no perf events for this user: {error:?}"))
            }
            other => other.expect("perf_event_open failed"),
        };
        // SAFETY: The file descriptor is new and has no other owner.
        let file = unsafe { File::from_raw_fd(fd) };
        Self::of_file(Backing::Shmem, file, Bytes(0), 1)
    }

    /// Maps the same file once more, at another address.
    #[track_caller]
    pub fn alias(&self) -> Self {
        let file = self.file();
        let file = file.as_ref().expect("the memory is not shared");
        let file = file
            .try_clone()
            .expect("cannot duplicate the file descriptor");
        let start = Bytes(self.0.file_start);
        Self::of_file(Backing::Shmem, file, start, self.pages())
    }

    pub(crate) fn file(&self) -> MutexGuard<'_, Option<File>> {
        self.0.file.lock().expect("another thread has failed")
    }

    /// Returns what it is made of.
    pub fn backing(&self) -> Backing {
        self.0.backing
    }

    /// Returns where the memory begins in its file.
    pub(crate) fn file_start(&self) -> Bytes {
        Bytes(self.0.file_start)
    }

    /// Closes the file, which stays mapped.
    pub fn close_file(&self) {
        *self.file() = None;
    }

    /// Returns the number of bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Returns the number of pages.
    pub fn pages(&self) -> usize {
        self.len() / page_size()
    }

    /// Returns the address of a byte, or of the end.
    #[track_caller]
    pub fn at(&self, offset: usize) -> Hva {
        Hva(self.pointer(offset, 0) as u64)
    }

    #[track_caller]
    fn pointer(&self, offset: usize, len: usize) -> *mut u8 {
        let is_inside = offset <= self.len() && len <= self.len() - offset;
        assert!(is_inside, "outside the area");
        // SAFETY: The offset is inside the mapping.
        unsafe { self.0.start.as_ptr().add(offset) }
    }

    /// Returns a word of a page.
    #[track_caller]
    pub fn word(&self, page: Page, index: usize) -> &AtomicU64 {
        const SIZE: usize = size_of::<u64>();
        let first = page.offset().0 as usize / SIZE;
        let offset = first
            .checked_add(index)
            .and_then(|index| index.checked_mul(SIZE));
        let start = self.pointer(offset.expect("outside the area"), SIZE);
        // SAFETY: The word is inside the mapping, and aligned as pages are.
        unsafe { AtomicU64::from_ptr(start.cast()) }
    }

    /// Writes each page's number to its first word, so that there is memory for it.
    pub fn fill(&self) {
        for page in pages(0..self.pages()) {
            self.word(page, 0).store(page.into(), Ordering::Relaxed);
        }
    }

    /// Fills a page.
    #[track_caller]
    pub fn fill_page(&self, page: Page, content: &[u8]) {
        assert_eq!(content.len(), page_size(), "not a page");
        const SIZE: usize = size_of::<u64>();
        let start = self.pointer(page.offset().0 as usize, content.len()).cast();
        // SAFETY: The page is inside the mapping, and aligned. All accesses are atomic.
        let words = unsafe { slice::from_raw_parts::<AtomicU64>(start, content.len() / SIZE) };
        for (word, content) in words.iter().zip(content.chunks_exact(SIZE)) {
            let content = u64::from_ne_bytes(content.try_into().expect("a chunk is a word"));
            word.store(content, Ordering::Relaxed);
        }
    }

    /// Returns where pages begin, and their size in bytes, to have the kernel change them.
    #[track_caller]
    fn range(&self, pages: Range<usize>) -> (*mut c_void, usize) {
        let len = Bytes::of_pages(pages.len()).0 as usize;
        let start = Page(pages.start).offset().0 as usize;
        (self.pointer(start, len).cast(), len)
    }

    /// Changes what may be done with the pages.
    ///
    /// This process ends if it does anything else.
    #[track_caller]
    pub fn protect(&self, access: Access) {
        self.protect_pages(0..self.pages(), access);
    }

    /// As [`Area::protect`], for some of them.
    #[track_caller]
    pub fn protect_pages(&self, pages: Range<usize>, access: Access) {
        let (start, len) = self.range(pages);
        // SAFETY: The range is inside the mapping, where nothing but atomics is accessed. An access
        // that is not allowed ends the process.
        let ret = unsafe { bindings::mprotect(start, len, access.protection()) };
        Errno::check(ret).expect("mprotect failed");
    }

    #[track_caller]
    fn madvise(&self, pages: Range<usize>, advice: u32) -> Result<(), Errno> {
        let (start, len) = self.range(pages);
        // SAFETY: The range is inside the mapping, and nothing relies on what is in there.
        Errno::check(unsafe { bindings::madvise(start, len, advice as c_int) }).map(|_| ())
    }

    /// Asks the kernel to do something with pages.
    #[track_caller]
    pub fn advise(&self, pages: Range<usize>, advice: Advice) -> Result<(), Errno> {
        self.madvise(pages, advice as u32)
    }

    /// Has the kernel make huge pages of the memory, or skips the case where it has none to give.
    #[track_caller]
    pub fn collapse(&self) {
        match self.advise(0..self.pages(), Advice::Collapse) {
            Ok(()) => {}
            Err(error @ (Errno::EAGAIN | Errno::EBUSY | Errno::ENOMEM)) => {
                ktap::skip(format!("the host has no huge page to give: {error:?}"))
            }
            Err(error) => panic!("MADV_COLLAPSE: {error:?}"),
        }
    }

    /// Drops a page from this mapping.
    ///
    /// The next access finds it unmapped, and empty if the memory is private.
    #[track_caller]
    pub fn drop_page(&self, page: Page) {
        let dropped = self.advise(page.0..page.0 + 1, Advice::DontNeed);
        assert_eq!(dropped, Ok(()), "MADV_DONTNEED");
    }

    /// Punches pages out of the file, so that the next access finds them unmapped and empty.
    #[track_caller]
    pub fn punch(&self, pages: Range<usize>) {
        let file = self.file();
        let file = file.as_ref().expect("the memory is no file");
        let mode = bindings::FALLOC_FL_PUNCH_HOLE | bindings::FALLOC_FL_KEEP_SIZE;
        let start = self.0.file_start + Bytes::of_pages(pages.start).0;
        let len = Bytes::of_pages(pages.len()).0;
        // SAFETY: The call takes numbers only, and nothing relies on what is in the file.
        let ret = unsafe {
            bindings::fallocate(file.as_raw_fd(), mode as c_int, start as i64, len as i64)
        };
        Errno::check(ret).expect("cannot punch a hole");
    }

    /// Cuts the file off after some pages.
    ///
    /// This process ends if it accesses what is gone.
    #[track_caller]
    pub fn truncate(&self, pages: usize) {
        let len = self.0.file_start + Bytes::of_pages(pages).0;
        let file = self.file();
        let file = file.as_ref().expect("the memory is no file");
        file.set_len(len).expect("cannot truncate the file");
    }

    /// Puts new shared memory in the place of pages, as a mapping of its own.
    #[track_caller]
    pub fn replace(&self, pages: Range<usize>) {
        let flags = bindings::MAP_SHARED | bindings::MAP_ANONYMOUS | bindings::MAP_FIXED;
        let (start, len) = self.range(pages);
        // SAFETY: The range is inside the mapping, to which there are no references but atomics.
        unsafe { mmap(start.cast(), len, Access::ReadWrite, flags, None) }.expect("mmap failed");
    }

    /// Returns the sum of some fields that smaps has for the memory, in bytes.
    fn smaps(&self, names: &[&str]) -> usize {
        let text = fs::read_to_string("/proc/self/smaps").expect("cannot read smaps");
        let (start, end) = (self.at(0).0, self.at(self.len()).0);
        let (mut inside, mut sum) = (false, 0);
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(first), second) = (words.next(), words.next()) else {
                continue;
            };
            if let Some((from, to)) = first.split_once('-') {
                let hex = |text| u64::from_str_radix(text, 16).expect("not an address in smaps");
                inside = hex(from) < end && start < hex(to);
            } else if inside && names.contains(&first) {
                let kilobytes = second.and_then(|number| number.parse::<usize>().ok());
                sum += kilobytes.expect("not a number in smaps") << 10;
            }
        }
        sum
    }

    /// Returns which page of the host a page is, if it is there, or skips the case where this user
    /// is not told.
    #[track_caller]
    pub fn frame(&self, page: Page) -> Option<u64> {
        let entry = self.pointer(page.offset().0 as usize, page_size()) as usize / page_size();
        let mut pagemap = [0; 8];
        File::open("/proc/self/pagemap")
            .and_then(|file| file.read_exact_at(&mut pagemap, entry as u64 * 8))
            .expect("cannot read pagemap");
        let pagemap = u64::from_ne_bytes(pagemap);
        let (frame, is_present) = (pagemap & ((1 << 55) - 1), pagemap >> 63 != 0);
        if is_present && frame == 0 {
            ktap::skip("/proc/self/pagemap does not tell this user where a page is");
        }
        is_present.then_some(frame)
    }

    /// Returns whether a page is there, if only in the file that the memory is mapped from.
    #[track_caller]
    pub fn has_page(&self, page: Page) -> bool {
        let (start, len) = self.range(page.0..page.0 + 1);
        let mut there = 0;
        // SAFETY: The range is inside the mapping, and there is room for what is said of a page.
        let result = unsafe { bindings::mincore(start, len, &mut there) };
        Errno::check(result).expect("mincore failed");
        there & 1 != 0
    }

    /// Has memory of a page that is taken out of service come back when the case ends, or skips the
    /// case where that cannot be done.
    #[track_caller]
    fn take_out(&self, page: Page, how: u32) -> Result<(), Errno> {
        const UNPOISON: &str = "/sys/kernel/debug/hwpoison/unpoison-pfn";
        let what = format!("cannot unpoison a page: {UNPOISON}");
        ktap::need(fs::metadata(UNPOISON), what);
        let frame = format!("{:#x}", self.frame(page).expect("there is no page"));
        // This process may be killed before the call returns.
        ktap::at_end_if_done(UNPOISON, &frame);
        self.madvise(page.0..page.0 + 1, how)?;
        ktap::at_end(UNPOISON, Some(&frame));
        Ok(())
    }

    /// Takes the memory of a page for broken until the case ends, or skips it where that cannot be
    /// undone then.
    #[track_caller]
    pub fn poison(&self, page: Page) {
        // The kernel tells whoever has the page mapped.
        // SAFETY: The handler does nothing.
        let before = unsafe { bindings::signal(bindings::SIGBUS as c_int, Some(ignore)) };
        let poisoned = self.take_out(page, bindings::MADV_HWPOISON);
        // Whoever accesses it from now on is not to try for ever.
        // SAFETY: This is what was there before.
        unsafe { bindings::signal(bindings::SIGBUS as c_int, before) };
        assert_eq!(poisoned, Ok(()), "MADV_HWPOISON");
    }

    /// Has the kernel move a page to other memory, and skips the case as [`Area::poison`] does.
    ///
    /// The page may be in use, so that it stays where it is.
    #[track_caller]
    pub fn move_page(&self, page: Page) -> Result<(), Errno> {
        self.take_out(page, bindings::MADV_SOFT_OFFLINE)
    }

    /// Returns whether all of it is in huge pages, as the kernel says.
    pub fn is_huge(&self) -> bool {
        let names = [
            "AnonHugePages:",
            "ShmemPmdMapped:",
            "Private_Hugetlb:",
            "Shared_Hugetlb:",
        ];
        self.smaps(&names) == self.len()
    }

    /// Has the kernel write all of it to swap, or skips the case where there is no room.
    #[track_caller]
    pub fn swap_out(&self) {
        if meminfo("SwapFree:").unwrap_or(0) << 10 < self.len() {
            ktap::skip("no room in swap (/proc/swaps)");
        }
        // The kernel passes over pages that wait in the list of a CPU which has touched them. It
        // empties the list of the CPU where it is asked.
        let swapped = || self.smaps(&["Swap:"]);
        for _ in 0..100 {
            sys::on_each_cpu(|| {
                let asked = self.madvise(0..self.pages(), bindings::MADV_PAGEOUT);
                assert_eq!(asked, Ok(()), "MADV_PAGEOUT");
            });
            if swapped() >= self.len() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("{} of {} bytes are in swap", swapped(), self.len());
    }
}
