// SPDX-License-Identifier: GPL-2.0-only

//! userfaultfd, for comparison with userfault and for what that leaves to it.

use crate::*;
use std::{
    fs::File,
    io::Read,
    os::fd::{
        AsRawFd,
        FromRawFd, //
    },
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
    thread,
    time::Duration, //
};

/// A userfaultfd for pages of an area that are missing.
pub struct Uffd {
    file: File,
    area: Area,
}

// SAFETY: Each is the argument that userfaultfd.rst has for the request. The copy goes to the area
// that is registered.
const API: Ioctl<bindings::uffdio_api> = unsafe { Ioctl::new(bindings::LIBKVM_UFFDIO_API) };
const REGISTER: Ioctl<bindings::uffdio_register> =
    unsafe { Ioctl::new(bindings::LIBKVM_UFFDIO_REGISTER) };
const COPY: Ioctl<bindings::uffdio_copy> = unsafe { Ioctl::new(bindings::LIBKVM_UFFDIO_COPY) };

impl Uffd {
    /// Registers an area, to be filled by [`Uffd::copy`], or skips the case where this user may not
    /// do that for accesses of the kernel too.
    #[track_caller]
    pub fn new(area: &Area) -> Self {
        Self::register(area, 0)
    }

    /// As [`Uffd::new`], for accesses of user mode only, which anybody may have.
    #[track_caller]
    pub fn user_mode_only(area: &Area) -> Self {
        Self::register(area, bindings::LIBKVM_UFFD_USER_MODE_ONLY)
    }

    #[track_caller]
    fn register(area: &Area, flags: u32) -> Self {
        let flags = flags | bindings::O_CLOEXEC | bindings::O_NONBLOCK;
        // SAFETY: The system call takes flags only.
        let fd = unsafe { bindings::syscall(bindings::SYS_userfaultfd.into(), flags) };
        let fd = match Errno::check(fd as i32) {
            Err(error @ (Errno::ENOSYS | Errno::EPERM)) => {
                ktap::skip(format!("no userfaultfd for this user: {error:?}"))
            }
            other => other.expect("userfaultfd failed"),
        };
        let uffd = Self {
            // SAFETY: The file descriptor is new and has no other owner.
            file: unsafe { File::from_raw_fd(fd) },
            area: area.clone(),
        };
        let mut api = bindings::uffdio_api {
            api: bindings::LIBKVM_UFFD_API.into(),
            ..Default::default()
        };
        API.call(fd, &mut api).expect("UFFDIO_API failed");
        let mut register = bindings::uffdio_register {
            range: bindings::uffdio_range {
                start: area.at(0).0,
                len: area.len() as u64,
            },
            mode: bindings::LIBKVM_UFFDIO_REGISTER_MODE_MISSING.into(),
            ..Default::default()
        };
        let registered = REGISTER.call(fd, &mut register);
        registered.expect("UFFDIO_REGISTER failed");
        uffd
    }

    /// Returns the page that a thread waits for, or [`None`] if there was none for a while.
    #[track_caller]
    pub fn wait(&self, timeout: Duration) -> Option<Page> {
        let mut poll = bindings::pollfd {
            fd: self.file.as_raw_fd(),
            events: bindings::POLLIN as i16,
            revents: 0,
        };
        // SAFETY: There is one entry, as is said.
        if unsafe { bindings::poll(&mut poll, 1, timeout.as_millis() as i32) } <= 0 {
            return None;
        }
        // The kernel copies whole messages only; another reader may have been faster.
        let mut message = [0; size_of::<bindings::uffd_msg>()];
        if (&self.file).read(&mut message).ok()? != message.len() {
            return None;
        }
        // SAFETY: The kernel has filled in a message, and any content is a valid one.
        let message: bindings::uffd_msg = unsafe { std::mem::transmute(message) };
        let event = u32::from(message.event);
        assert_eq!(event, bindings::LIBKVM_UFFD_EVENT_PAGEFAULT);
        // SAFETY: This member is the one for the event.
        let address = unsafe { message.arg.pagefault.address };
        Some(Page((address - self.area.at(0).0) as usize / page_size()))
    }

    /// Has pages filled as they are asked for while something is done, and returns what that has
    /// returned and which pages were asked for.
    #[track_caller]
    pub fn serve<T>(
        &self,
        content: impl Fn(Page) -> Vec<u8> + Sync,
        something: impl FnOnce() -> T,
    ) -> (T, Vec<Page>) {
        let finished = AtomicBool::new(false);
        thread::scope(|scope| {
            let handler = scope.spawn(|| {
                let mut served = Vec::new();
                while !finished.load(Ordering::Relaxed) {
                    if let Some(page) = self.wait(Duration::from_millis(20)) {
                        served.push(page);
                        self.copy(page, &content(page));
                    }
                }
                served
            });
            let done = something();
            finished.store(true, Ordering::Relaxed);
            (done, handler.join().expect("the handler has failed"))
        })
    }

    /// Runs a vCPU, does something while KVM waits for a page on its behalf, which has to supply it
    /// by [`Uffd::copy`], and returns why the vCPU stopped then.
    #[track_caller]
    pub fn run(&self, vcpu: &mut Vcpu, something: impl FnOnce(Page)) -> Exit {
        thread::scope(|scope| {
            let runner = scope.spawn(|| vcpu.run());
            let page = self.wait(Duration::from_secs(30));
            something(page.expect("KVM waits for no page"));
            runner.join().expect("the vCPU's thread has failed")
        })
    }

    /// As [`Uffd::run`], where the page, of a slot, is marked and dropped before it is supplied.
    #[track_caller]
    pub fn run_and_drop(
        &self,
        vcpu: &mut Vcpu,
        slot: &Slot,
        bitmap: &Bitmap,
        content: &[u8],
    ) -> Exit {
        self.run(vcpu, |page| {
            bitmap.mark(page);
            slot.discard(page);
            self.copy(page, content);
        })
    }

    /// Fills a page and wakes whoever waits for it.
    ///
    /// A page that is there already stays.
    #[track_caller]
    pub fn copy(&self, page: Page, content: &[u8]) {
        assert_eq!(content.len(), page_size(), "not a page");
        let start = page.offset();
        assert!(start < Bytes(self.area.len() as u64), "outside the area");
        let mut copy = bindings::uffdio_copy {
            dst: self.area.at(start.0 as usize).0,
            src: content.as_ptr() as u64,
            len: content.len() as u64,
            ..Default::default()
        };
        match COPY.call(self.file.as_raw_fd(), &mut copy) {
            Ok(_) | Err(Errno::EEXIST) => {}
            Err(error) => panic!("UFFDIO_COPY of {page:?} failed: {error:?}"),
        }
    }
}
