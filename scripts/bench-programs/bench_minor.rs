// SPDX-License-Identifier: GPL-2.0-only

//! userfaultfd for pages that are in a file but not mapped, which the tests have no need of.

use libkvm::{
    page_size,
    Area,
    Page, //
};
use std::{
    fs::File,
    io::Read,
    os::fd::{
        AsRawFd,
        FromRawFd, //
    },
};

const SYS_USERFAULTFD: i64 = 282;
const O_CLOEXEC: i32 = 0o2000000;
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_MINOR_SHMEM: u64 = 1 << 10;
const REGISTER_MODE_MINOR: u64 = 1 << 2;
const EVENT_PAGEFAULT: u64 = 0x12;
/// struct uffdio_api, uffdio_register and uffdio_continue, as requests to a userfaultfd.
const UFFDIO_API: u64 = request(0x3f, 3);
const UFFDIO_REGISTER: u64 = request(0, 4);
const UFFDIO_CONTINUE: u64 = request(7, 4);

/// Returns the number of a request that reads and writes so many words.
const fn request(number: u64, words: u64) -> u64 {
    3 << 30 | (words * 8) << 16 | 0xaa << 8 | number
}

extern "C" {
    fn syscall(number: i64, ...) -> i64;
    fn ioctl(fd: i32, request: u64, argument: *mut u64) -> i32;
}

/// A userfaultfd for an area of shared memory.
pub struct Minor {
    file: File,
    base: u64,
}

impl Minor {
    /// Registers an area, or returns nothing where that is not possible.
    pub fn new(area: &Area) -> Option<Self> {
        // SAFETY: The system call takes flags only.
        let fd = unsafe { syscall(SYS_USERFAULTFD, O_CLOEXEC) };
        if fd < 0 {
            return None;
        }
        let minor = Self {
            // SAFETY: The file descriptor is new and has no other owner.
            file: unsafe { File::from_raw_fd(fd as i32) },
            base: area.at(0).0,
        };
        let api = &mut [UFFD_API, UFFD_FEATURE_MINOR_SHMEM, 0];
        let range = &mut [minor.base, area.len() as u64, REGISTER_MODE_MINOR, 0];
        (minor.call(UFFDIO_API, api) && minor.call(UFFDIO_REGISTER, range)).then_some(minor)
    }

    fn call<const WORDS: usize>(&self, request: u64, argument: &mut [u64; WORDS]) -> bool {
        // SAFETY: The requests above take as many words.
        unsafe { ioctl(self.file.as_raw_fd(), request, argument.as_mut_ptr()) == 0 }
    }

    /// Returns the next page that a thread waits for.
    pub fn wait(&self) -> Page {
        let mut message = [0; 32];
        let count = (&self.file)
            .read(&mut message)
            .expect("cannot read the userfaultfd");
        let word = |n: usize| u64::from_ne_bytes(std::array::from_fn(|byte| message[n * 8 + byte]));
        assert!(count == 32 && word(0) & 0xff == EVENT_PAGEFAULT);
        Page((word(2) - self.base) as usize / page_size())
    }

    /// Maps a page and wakes whoever waits for it.
    pub fn resume(&self, page: Page) {
        let start = self.base + page.offset().0;
        // That it is mapped already is no error.
        self.call(UFFDIO_CONTINUE, &mut [start, page_size() as u64, 0, 0]);
    }
}
