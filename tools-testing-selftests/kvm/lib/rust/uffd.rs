// SPDX-License-Identifier: GPL-2.0-only

//! userfaultfd, for comparison with userfault and for what it leaves to it.

use crate::{
    bindings,
    errno::Errno,
    vm::host_page_size,
    Slot, //
};
use std::{
    fs::File,
    io::Read,
    os::fd::{
        AsRawFd,
        FromRawFd, //
    },
    ptr,
    time::Duration, //
};

/// A userfaultfd that a slot's memory is registered with.
pub struct Uffd<'a> {
    file: File,
    slot: &'a Slot,
}

/// A page that a thread waits for.
pub struct Fault {
    /// The number of the page in the slot.
    pub page: usize,
}

impl<'a> Uffd<'a> {
    /// Registers pages of a slot's memory that are missing, to be filled by [`Uffd::copy`], or
    /// returns why that is not possible here.
    pub fn missing(slot: &'a Slot) -> Result<Self, Errno> {
        Self::register(slot, bindings::LIBKVM_UFFDIO_REGISTER_MODE_MISSING)
    }

    /// Registers pages of a slot's shared memory that are there but not mapped, to be mapped by
    /// [`Uffd::resume`], or returns why that is not possible here.
    pub fn minor(slot: &'a Slot) -> Result<Self, Errno> {
        Self::register(slot, bindings::LIBKVM_UFFDIO_REGISTER_MODE_MINOR)
    }

    fn register(slot: &'a Slot, mode: u32) -> Result<Self, Errno> {
        let flags = bindings::O_CLOEXEC | bindings::O_NONBLOCK;
        // SAFETY: The system call takes flags only.
        let fd = unsafe { bindings::syscall(bindings::SYS_userfaultfd.into(), flags) };
        let fd = Errno::check(fd as i32)?;
        // SAFETY: The file descriptor is new and has no other owner.
        let file = unsafe { File::from_raw_fd(fd) };
        let uffd = Self { file, slot };

        let mut api = bindings::uffdio_api {
            api: bindings::LIBKVM_UFFD_API.into(),
            ..Default::default()
        };
        uffd.ioctl(bindings::LIBKVM_UFFDIO_API, &mut api)?;
        let mut register = bindings::uffdio_register {
            range: uffd.range(0, slot.pages()),
            mode: mode.into(),
            ..Default::default()
        };
        uffd.ioctl(bindings::LIBKVM_UFFDIO_REGISTER, &mut register)?;
        Ok(uffd)
    }

    /// Returns where pages are for the host.
    fn range(&self, page: usize, pages: usize) -> bindings::uffdio_range {
        bindings::uffdio_range {
            start: self.slot.host_address(page),
            len: (pages * host_page_size()) as u64,
        }
    }

    /// Calls an ioctl of the userfaultfd.
    fn ioctl<T>(&self, request: u32, argument: &mut T) -> Result<(), Errno> {
        let fd = self.file.as_raw_fd();
        // SAFETY: The argument is of the type that the request wants.
        let ret = unsafe { bindings::ioctl(fd, request.into(), ptr::from_mut(argument)) };
        Errno::check(ret).map(|_| ())
    }

    /// Returns the next fault, or [`None`] if there was none for a while. Without a timeout it
    /// waits for ever.
    pub fn wait(&self, timeout: impl Into<Option<Duration>>) -> Option<Fault> {
        let mut poll = bindings::pollfd {
            fd: self.file.as_raw_fd(),
            events: bindings::POLLIN as i16,
            revents: 0,
        };
        let timeout = timeout
            .into()
            .map_or(-1, |timeout| timeout.as_millis() as i32);
        // SAFETY: There is one entry, as is said.
        let ready = unsafe { bindings::poll(&mut poll, 1, timeout) };
        if ready <= 0 {
            return None;
        }
        // The kernel copies whole messages only; another reader may have been faster.
        let mut message = [0; size_of::<bindings::uffd_msg>()];
        if (&self.file).read(&mut message).ok()? != message.len() {
            return None;
        }
        // SAFETY: The kernel has filled in a message, and any content is a valid one.
        let message: bindings::uffd_msg = unsafe { std::mem::transmute(message) };
        assert_eq!(
            u32::from(message.event),
            bindings::LIBKVM_UFFD_EVENT_PAGEFAULT
        );
        // SAFETY: This member is the one for the event.
        let address = unsafe { message.arg.pagefault.address };
        Some(Fault {
            page: (address - self.slot.host_address(0)) as usize / host_page_size(),
        })
    }

    /// Fills a page and wakes whoever waits for it. A page that is there already stays.
    pub fn copy(&self, page: usize, content: &[u8]) {
        assert_eq!(content.len(), host_page_size());
        let mut copy = bindings::uffdio_copy {
            dst: self.slot.host_address(page),
            src: content.as_ptr() as u64,
            len: content.len() as u64,
            ..Default::default()
        };
        match self.ioctl(bindings::LIBKVM_UFFDIO_COPY, &mut copy) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => panic!("UFFDIO_COPY of page {page} failed: {error:?}"),
        }
    }

    /// Maps a page as it is and wakes whoever waits for it. A page that is mapped already stays.
    pub fn resume(&self, page: usize) {
        let mut resume = bindings::uffdio_continue {
            range: self.range(page, 1),
            ..Default::default()
        };
        match self.ioctl(bindings::LIBKVM_UFFDIO_CONTINUE, &mut resume) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => panic!("UFFDIO_CONTINUE of page {page} failed: {error:?}"),
        }
    }
}
