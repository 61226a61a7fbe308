// SPDX-License-Identifier: GPL-2.0-only

//! Error numbers of system calls.

use std::io;

/// An error number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(i32);

impl Errno {
    /// Operation not permitted.
    pub const EPERM: Self = Self(1);
    /// Interrupted by a signal.
    pub const EINTR: Self = Self(4);
    /// No such device or address.
    pub const ENXIO: Self = Self(6);
    /// Bad file descriptor.
    pub const EBADF: Self = Self(9);
    /// Bad address.
    pub const EFAULT: Self = Self(14);
    /// What is new overlaps something that exists.
    pub const EEXIST: Self = Self(17);
    /// Invalid argument.
    pub const EINVAL: Self = Self(22);

    /// Returns the error of the system call that has just failed in this thread.
    pub fn last() -> Self {
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
}

impl std::fmt::Debug for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.0))
    }
}
