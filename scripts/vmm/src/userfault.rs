// SPDX-License-Identifier: GPL-2.0-only
//! KVM userfault, as a VMM uses it. Start reading here.
//!
//! A VMM that does not have a guest's memory yet marks its pages, one bit a page, in a bitmap of
//! its own, and gives the bitmap to KVM with the memory slot ([`Vm::set_slot`]). Then:
//!
//! 1. a vCPU touches a marked page and leaves `KVM_RUN` ([`run`]);
//! 2. the VMM finds the page's content and fills the page ([`Pager::supply`]);
//! 3. the VMM clears the bit, with a store-release ([`Marks::clear`]), and runs the vCPU again.
//!
//! Nothing else is needed: no ioctl, no wake-up and no lock that vCPUs share. What is easy to get
//! wrong is said where it is done right:
//!
//! * A page is filled **once**. Whoever fills it after its bit was cleared destroys what the guest
//!   wrote meanwhile: see [`Pager::supply`].
//! * Marks stop vCPUs, and nobody else. KVM's own accesses (stolen time, tables of an ITS) and a
//!   VMM's devices read and write marked pages. Here userfaultfd serves the first kind, or the VMM
//!   supplies these pages before the vCPUs run; the only device, a serial port, has no DMA.
//! * `exit_reason` says something about a failed `KVM_RUN` only when its errno is `EFAULT`: see
//!   [`run`].
//!
//! [`Vm::set_slot`]: crate::vm::Vm::set_slot
//! [`Pager::supply`]: crate::pager::Pager::supply

use std::ffi::c_ulong;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{FileOffset, MmapRegion};

use crate::bus::Bus;
use crate::layout;
use crate::stats::Stats;

/// The capability's number on the series' base tree. Firecracker's kernels have it as 245, which is
/// `KVM_CAP_ARM_SEA_TO_USER` on others: a VMM that asks for 245 gets a wrong answer.
const KVM_CAP_USERFAULT: c_ulong = 252;
/// The flag of `kvm_userspace_memory_region2`; the bitmap's address is its first reserved word.
pub const KVM_MEM_USERFAULT: u32 = 1 << 3;
/// What a `KVM_EXIT_MEMORY_FAULT` has in its flags for a marked page.
const KVM_MEMORY_EXIT_FLAG_USERFAULT: u64 = 1 << 4;

/// Says whether KVM has userfault.
pub fn supported(kvm: &Kvm) -> bool {
    kvm.check_extension_raw(KVM_CAP_USERFAULT) > 0
}

/// A bitmap of the pages of a slot, in memory that other processes can share.
pub struct Marks {
    region: MmapRegion,
    pages: usize,
}

impl Marks {
    /// Makes a bitmap without marks.
    pub fn new(pages: usize) -> Result<Self> {
        // SAFETY: The name is a C string, and memfd_create() takes nothing else by address.
        let fd = unsafe {
            libc::memfd_create(c"marks".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("creating the bitmap");
        }
        // SAFETY: The descriptor is new, so nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(Self::bytes(pages) as u64).context("sizing the bitmap")?;
        // Whoever shares it cannot take it away from the VMM, or from KVM.
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
        // SAFETY: The descriptor is open, and the call takes numbers only.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
            return Err(io::Error::last_os_error()).context("sealing the bitmap");
        }
        Self::open(file, pages)
    }

    /// Makes a bitmap in which every page is marked.
    pub fn all(pages: usize) -> Result<Self> {
        let marks = Self::new(pages)?;
        marks.set(0..pages);
        Ok(marks)
    }

    /// Maps the bitmap that another process made.
    pub fn open(file: File, pages: usize) -> Result<Self> {
        let region = MmapRegion::from_file(FileOffset::new(file, 0), Self::bytes(pages))
            .context("mapping the bitmap")?;
        Ok(Self { region, pages })
    }

    /// Whole words, of which KVM reads the first pages / 8 bytes.
    fn bytes(pages: usize) -> usize {
        pages.div_ceil(64) * 8
    }

    /// The file that [`Marks::open`] takes.
    pub fn file(&self) -> &File {
        self.region.file_offset().expect("the bitmap is mapped from a file").file()
    }

    /// The number of pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// The address that KVM is given.
    pub fn address(&self) -> u64 {
        self.region.as_ptr() as u64
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: The mapping is page aligned, as long as that, and lives as long as `self`. All
        // that access it, KVM and other processes included, do so atomically.
        unsafe {
            std::slice::from_raw_parts(self.region.as_ptr().cast(), Self::bytes(self.pages) / 8)
        }
    }

    /// Marks pages.
    pub fn set(&self, pages: Range<usize>) {
        for (word, mask) in masks(pages) {
            self.words()[word].fetch_or(mask, Ordering::Relaxed);
        }
    }

    /// Clears the marks of pages that have been filled.
    ///
    /// The release orders the fill before it: a vCPU that sees the bit clear sees the content.
    /// Where all of a block becomes clear, KVM may map the block.
    pub fn clear(&self, pages: Range<usize>) {
        for (word, mask) in masks(pages) {
            self.words()[word].fetch_and(!mask, Ordering::Release);
        }
    }

    /// Clears bits and returns the runs of those that this call has cleared, so that of several
    /// threads one gets each page.
    pub fn take(&self, pages: Range<usize>) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (word, mask) in masks(pages) {
            let mut taken = self.words()[word].fetch_and(!mask, Ordering::AcqRel) & mask;
            while taken != 0 {
                let page = word * 64 + taken.trailing_zeros() as usize;
                taken &= taken - 1;
                match runs.last_mut() {
                    Some(run) if run.end == page => run.end += 1,
                    _ => runs.push(page..page + 1),
                }
            }
        }
        runs
    }

    /// Says whether a page is marked.
    pub fn is_set(&self, page: usize) -> bool {
        self.words()[page / 64].load(Ordering::Acquire) & (1 << (page % 64)) != 0
    }

    /// Counts the marks.
    pub fn count(&self) -> usize {
        self.words().iter().map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum()
    }

    /// The bitmap as words, as `KVM_GET_DIRTY_LOG` has it.
    pub fn to_words(&self) -> Vec<u64> {
        self.words().iter().map(|word| word.load(Ordering::Relaxed)).collect()
    }

    /// Replaces the bitmap.
    pub fn load_words(&self, words: &[u64]) {
        for (word, value) in self.words().iter().zip(words) {
            word.store(*value, Ordering::Relaxed);
        }
    }
}

/// The words that hold a range of pages, and the bits of the range in each.
fn masks(pages: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    let Range { start, end } = pages;
    let words = if start < end { start / 64..end.div_ceil(64) } else { 0..0 };
    words.map(move |word| {
        let low = start.saturating_sub(word * 64);
        let high = (end - word * 64).min(64);
        (word, (u64::MAX >> (64 - (high - low))) << low)
    })
}

/// Gets pages for a vCPU that touched a mark.
pub trait Demand: Send {
    /// Returns when the page is there, or may be: the vCPU exits again if it is not.
    fn page(&mut self, page: usize) -> Result<()>;
}

/// Why a vCPU no longer runs.
#[derive(Debug, Eq, PartialEq)]
pub enum Stop {
    /// Somebody asked for it.
    Asked,
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset, which is what it does when something is wrong.
    Reset,
}

/// Runs a vCPU until `stop` is set or the guest ends: the loop of the whole thing.
pub fn run(
    vcpu: &mut VcpuFd,
    demand: &mut dyn Demand,
    bus: &Bus,
    stats: &Stats,
    stop: &AtomicBool,
) -> Result<Stop> {
    while !stop.load(Ordering::Acquire) {
        // The crate looks at exit_reason only where KVM_RUN succeeded or failed with EFAULT (or
        // EHWPOISON). After any other errno, EINTR above all, it is that of an earlier exit.
        match vcpu.run() {
            // Other flags may come to say what the access was.
            Ok(VcpuExit::MemoryFault { flags, gpa, .. })
                if flags & KVM_MEMORY_EXIT_FLAG_USERFAULT != 0 =>
            {
                stats.exits.fetch_add(1, Ordering::Relaxed);
                demand.page(layout::page_of(gpa))?;
            }
            Ok(VcpuExit::MemoryFault { flags, gpa, size }) => {
                bail!(
                    "a fault at {gpa:#x}, {size:#x} bytes, flags {flags:#x}, that is not for a mark"
                )
            }
            Ok(VcpuExit::MmioRead(address, data)) => bus.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => bus.write(address, data)?,
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => return Ok(Stop::PowerOff),
            Ok(VcpuExit::SystemEvent(..)) => return Ok(Stop::Reset),
            Ok(other) => bail!("an exit that nobody expects: {other:?}"),
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {}
            Err(error) => bail!("KVM_RUN: {error}"),
        }
    }
    // What the last exit began, a read of a device for one, ends when the vCPU is entered again: so
    // its registers are worth saving only after this.
    vcpu.set_kvm_immediate_exit(1);
    let left = vcpu.run().map(|exit| format!("{exit:?}"));
    vcpu.set_kvm_immediate_exit(0);
    match left {
        Err(error) if error.errno() == libc::EINTR => Ok(Stop::Asked),
        other => bail!("a vCPU that was to leave at once: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_cover_a_range() {
        for start in 0..200 {
            for end in start..200 {
                let bits: Vec<usize> = masks(start..end)
                    .flat_map(|(word, mask)| {
                        (0..64)
                            .filter(move |bit| mask >> bit & 1 != 0)
                            .map(move |bit| word * 64 + bit)
                    })
                    .collect();
                assert_eq!(bits, (start..end).collect::<Vec<_>>());
            }
        }
        assert_eq!(masks(64..64).count(), 0);
    }

    #[test]
    fn marks_are_set_and_cleared() {
        let marks = Marks::new(130).unwrap();
        marks.set(0..130);
        assert_eq!(marks.count(), 130);
        marks.clear(63..65);
        assert!(marks.is_set(62) && !marks.is_set(63) && !marks.is_set(64) && marks.is_set(65));
        assert_eq!(marks.take(60..70), [60..63, 65..70]);
        assert_eq!(marks.take(60..70), []);
        assert_eq!(marks.count(), 130 - 10);
    }

    #[test]
    fn another_mapping_sees_the_marks() {
        let marks = Marks::new(70).unwrap();
        let other = Marks::open(marks.file().try_clone().unwrap(), 70).unwrap();
        marks.set(3..4);
        assert!(other.is_set(3));
        other.file().set_len(0).unwrap_err();
        other.clear(3..4);
        assert_eq!(marks.count(), 0);
    }

    #[test]
    fn each_page_is_taken_once() {
        let marks = Marks::new(1000).unwrap();
        marks.set(0..1000);
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..1000).map(|page| marks.take(page..page + 1).len()).sum::<usize>()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 1000);
    }
}
