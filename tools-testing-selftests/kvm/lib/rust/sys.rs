// SPDX-License-Identifier: GPL-2.0-only

//! System calls: their errors, and the ioctls of KVM and userfaultfd with the types they take.

use crate::bindings;
use std::{
    ffi::c_ulong,
    fmt,
    io,
    marker::PhantomData,
    os::fd::RawFd,
    ptr, //
};

/// An error number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident)+) => {
        impl Errno {
            $(
                #[doc = concat!("`", stringify!($name), "`.")]
                pub const $name: Self = Self(bindings::$name as i32);
            )+
        }
    };
}

errnos!(EAGAIN EBADF EEXIST EFAULT EINTR EINVAL ENODATA ENOENT EPERM);

impl Errno {
    /// Returns the error of the system call that has just failed in this thread.
    pub(crate) fn last() -> Self {
        Self(io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }

    /// Turns the result of a system call into a [`Result`].
    pub(crate) fn check(ret: i32) -> Result<i32, Self> {
        if ret < 0 {
            Err(Self::last())
        } else {
            Ok(ret)
        }
    }

    /// As [`Errno::check`], for calls that return an address.
    pub(crate) fn check_address(ret: *mut std::ffi::c_void) -> Result<*mut u8, Self> {
        if ret as isize == -1 {
            Err(Self::last())
        } else {
            Ok(ret.cast())
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.0))
    }
}

/// An ioctl whose argument is a `T`, which the kernel reads and may write.
pub(crate) struct Ioctl<T>(u32, PhantomData<T>);

impl<T> Ioctl<T> {
    /// # Safety
    ///
    /// The request must take a pointer to a `T`, and whatever addresses a `T` holds, the kernel
    /// must not write there, or whoever fills it in must know that it may.
    pub(crate) const unsafe fn new(request: u32) -> Self {
        Self(request, PhantomData)
    }

    /// Calls the ioctl and returns what it returned.
    pub(crate) fn call(&self, fd: RawFd, argument: &mut T) -> Result<i32, Errno> {
        // SAFETY: By `Self::new()` the argument is what the request takes.
        Errno::check(unsafe { bindings::ioctl(fd, self.0 as c_ulong, ptr::from_mut(argument)) })
    }
}

/// Calls an ioctl whose argument is a number.
pub(crate) fn ioctl_number(fd: RawFd, request: Number, argument: u64) -> Result<i32, Errno> {
    // SAFETY: The request takes a number, as its type says.
    Errno::check(unsafe { bindings::ioctl(fd, request as c_ulong, argument) })
}

/// The ioctls whose argument is a number.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Number {
    CheckExtension = bindings::LIBKVM_CHECK_EXTENSION,
    CreateVm = bindings::LIBKVM_CREATE_VM,
    ResetDirtyRings = bindings::LIBKVM_RESET_DIRTY_RINGS,
    Run = bindings::LIBKVM_RUN,
}

/// Returns the size of the host's pages, in bytes.
pub fn page_size() -> usize {
    // SAFETY: Always safe to call.
    (unsafe { bindings::getpagesize() }) as usize
}

/// Returns what the system says about a capability.
pub fn system_capability(capability: u32) -> u32 {
    // SAFETY: Always safe to call.
    unsafe { bindings::kvm_check_cap(capability.into()) }
}

/// Has the kernel take tagged pointers from this thread, where it knows how to.
pub fn allow_tagged_pointers() -> Result<(), Errno> {
    let (control, enable) = (
        bindings::PR_SET_TAGGED_ADDR_CTRL as i32,
        bindings::PR_TAGGED_ADDR_ENABLE as u64,
    );
    // SAFETY: The call takes numbers only.
    Errno::check(unsafe { bindings::prctl(control, enable, 0_u64, 0_u64, 0_u64) }).map(|_| ())
}

/// Returns whether this process may do what root may.
pub fn is_root() -> bool {
    // SAFETY: Always safe to call.
    unsafe { bindings::geteuid() == 0 }
}
