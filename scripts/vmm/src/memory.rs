// SPDX-License-Identifier: GPL-2.0-only
//! The guest's memory, and the ways to fill a page of it.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use userfaultfd::{Error as UffdError, Event, Uffd, UffdBuilder};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

use crate::layout::{Config, RAM, page_size};
use crate::stats::Stats;

/// What the guest's memory is mapped from.
pub enum Backing {
    Anonymous,
    /// A private mapping of a file: what nobody has written is the file's.
    Private(File),
    /// A guest_memfd of KVM.
    GuestMemfd(File),
}

/// The memory of a slot, mapped into this process.
#[derive(Clone)]
pub struct Memory {
    guest: GuestMemoryMmap,
    config: Config,
    is_guest_memfd: bool,
}

impl Memory {
    pub fn new(config: Config, backing: Backing) -> Result<Self> {
        let (flags, file, is_guest_memfd) = match backing {
            Backing::Anonymous => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None, false),
            Backing::Private(file) => (libc::MAP_PRIVATE, Some(file), false),
            Backing::GuestMemfd(file) => (libc::MAP_SHARED, Some(file), true),
        };
        let file = file.map(|file| FileOffset::new(file, 0));
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = flags | libc::MAP_NORESERVE;
        let mapping = MmapRegion::build(file, config.slot_bytes(), protection, flags)
            .context("mapping the guest's memory")?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(RAM))
            .context("the guest's memory does not fit into its address space")?;
        let guest = GuestMemoryMmap::from_regions(vec![region]).context("the guest's memory")?;
        Ok(Self { guest, config, is_guest_memfd })
    }

    /// The memory as the loaders want it.
    pub fn guest(&self) -> &GuestMemoryMmap {
        &self.guest
    }

    pub fn config(&self) -> Config {
        self.config
    }

    /// The guest_memfd that it is mapped from.
    pub fn guest_memfd(&self) -> Option<&File> {
        let region = self.guest.find_region(GuestAddress(RAM)).filter(|_| self.is_guest_memfd)?;
        region.file_offset().map(FileOffset::file)
    }

    /// Where the slot is in this process.
    pub fn host_address(&self) -> u64 {
        self.guest.get_host_address(GuestAddress(RAM)).expect("the slot begins there") as u64
    }

    /// Reads whole pages.
    pub fn read(&self, first: usize, buffer: &mut [u8]) -> Result<()> {
        self.guest.read_slice(buffer, page_address(first)).context("reading the guest's memory")
    }

    /// Writes whole pages.
    pub fn write(&self, first: usize, content: &[u8]) -> Result<()> {
        self.guest.write_slice(content, page_address(first)).context("filling the guest's memory")
    }

    /// Drops anonymous pages: they are not there until somebody fills them.
    pub fn drop_pages(&self, pages: Range<usize>) -> Result<()> {
        self.advise(pages, libc::MADV_DONTNEED).context("dropping pages")
    }

    /// Reads pages of a file in.
    fn populate(&self, pages: Range<usize>) -> Result<()> {
        self.advise(pages, libc::MADV_POPULATE_READ).context("reading the snapshot")
    }

    /// Asks for huge pages, now.
    pub fn collapse(&self) -> std::io::Result<()> {
        self.advise(0..self.config.ram as usize / page_size(), libc::MADV_COLLAPSE)
    }

    fn advise(&self, pages: Range<usize>, advice: i32) -> std::io::Result<()> {
        let address = self.host_address() as usize + pages.start * page_size();
        assert!(pages.end <= self.config.pages());
        // SAFETY: The range is inside of the mapping of the guest's memory, which Rust has no
        // references to.
        match unsafe { libc::madvise(address as *mut _, pages.len() * page_size(), advice) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

fn page_address(page: usize) -> GuestAddress {
    GuestAddress(RAM + (page * page_size()) as u64)
}

/// How a page gets into the guest's memory.
pub enum Fill {
    /// By UFFDIO_COPY, which is atomic for all that touch the page, wakes those who wait for it, and
    /// works on the memory of another process. The address is the slot's.
    Uffd(Arc<Uffd>, u64),
    /// By writing it. Whoever touches the page without a mark meanwhile sees half of it.
    Write(Memory),
    /// By nothing: in a private mapping of the snapshot the mark is all that is in the way. What KVM
    /// wrote to a marked page stays, as nothing is copied over it.
    InPlace(Memory),
}

impl Fill {
    /// Says whether pages have to be read before they can be put.
    pub fn needs_content(&self) -> bool {
        !matches!(self, Fill::InPlace(_))
    }

    /// Fills pages.
    pub fn put(&self, pages: Range<usize>, content: &[u8]) -> Result<()> {
        let first = pages.start;
        match self {
            Fill::InPlace(memory) => memory.populate(pages),
            Fill::Write(memory) => memory.write(first, content),
            Fill::Uffd(uffd, base) => {
                let mut done = 0;
                while done < content.len() {
                    let target = *base as usize + first * page_size() + done;
                    let rest = &content[done..];
                    // SAFETY: UFFDIO_COPY writes to pages that nobody has, and only where they are
                    // registered.
                    let copied = unsafe {
                        uffd.copy(rest.as_ptr().cast(), target as *mut _, rest.len(), true)
                    };
                    match copied {
                        Ok(bytes) => done += bytes,
                        Err(UffdError::PartiallyCopied(bytes)) if (bytes as isize) > 0 => {
                            done += bytes
                        }
                        // The mapping is being changed, by a fork for one.
                        Err(UffdError::PartiallyCopied(_)) => std::thread::yield_now(),
                        Err(UffdError::CopyFailed(errno)) => {
                            bail!("UFFDIO_COPY to page {first}: {errno}")
                        }
                        Err(error) => bail!("UFFDIO_COPY to page {first}: {error}"),
                    }
                }
                Ok(())
            }
        }
    }
}

/// Registers the guest's memory with userfaultfd, for faults that the kernel takes as well: KVM's
/// own accesses are such. That needs privilege, or access to /dev/userfaultfd. The crate's default is
/// a userfaultfd for user mode only, with which KVM_RUN fails with a bare EFAULT at the first page.
pub fn register(memory: &Memory) -> Result<Arc<Uffd>> {
    let uffd = UffdBuilder::new()
        .close_on_exec(true)
        .user_mode_only(false)
        .create()
        .context("userfaultfd that takes faults of the kernel")?;
    uffd.register(memory.host_address() as *mut _, memory.config().slot_bytes())
        .context("registering the guest's memory with userfaultfd")?;
    Ok(Arc::new(uffd))
}

/// Supplies the pages that userfaultfd asks for, as long as it is there.
pub fn serve(
    uffd: &Uffd,
    base: u64,
    stats: &Stats,
    supply: impl Fn(usize) -> Result<()>,
) -> Result<()> {
    loop {
        let event = uffd.read_event().context("reading userfaultfd")?;
        if let Some(Event::Pagefault { addr, .. }) = event {
            stats.faults.fetch_add(1, Ordering::Relaxed);
            supply((addr as u64 - base) as usize / page_size())?;
        }
    }
}
