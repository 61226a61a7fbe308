// SPDX-License-Identifier: GPL-2.0-only

//! System calls: their errors, and the types that ioctls take.

use crate::*;
use std::{
    ffi::{
        c_int,
        c_ulong,
        c_void, //
    },
    fmt,
    fs,
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

errnos!(EACCES EAGAIN EBADF EBUSY EEXIST EFAULT EINTR EINVAL ENOMEM ENOSYS EPERM);

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
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.0))
    }
}

/// An ioctl whose argument is a `T`, which the kernel reads and may write.
pub(crate) struct Ioctl<T>(u32, PhantomData<T>);

impl<T> Ioctl<T> {
    /// Takes the request of an ioctl.
    ///
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

/// An ioctl whose argument is a number.
pub(crate) struct Number(u32);

impl Number {
    /// Takes the request of an ioctl.
    ///
    /// # Safety
    ///
    /// The request must take a number, and [`call`](Self::call) be given files that KVM has made or
    /// /dev/kvm.
    pub(crate) const unsafe fn new(request: u32) -> Self {
        Self(request)
    }

    /// Calls the ioctl and returns what it returned.
    pub(crate) fn call(&self, fd: RawFd, argument: u64) -> Result<i32, Errno> {
        // SAFETY: By `Self::new()` the request takes a number.
        Errno::check(unsafe { bindings::ioctl(fd, self.0 as c_ulong, argument) })
    }
}

// SAFETY: This takes what api.rst has for it. KVM reads a value at the address, which is valid.
const SET_DEVICE_ATTR: Ioctl<bindings::kvm_device_attr> =
    unsafe { Ioctl::new(bindings::LIBKVM_SET_DEVICE_ATTR) };

/// Sets an attribute of a device or vCPU, whose type in api.rst is `T`.
pub(crate) fn set_attribute<T>(fd: RawFd, group: u32, attr: u32, value: &T) -> Result<(), Errno> {
    let mut attribute = bindings::kvm_device_attr {
        group,
        attr: attr.into(),
        addr: ptr::from_ref(value) as u64,
        ..Default::default()
    };
    SET_DEVICE_ATTR.call(fd, &mut attribute).map(|_| ())
}

/// A signal handler.
pub(crate) extern "C" fn ignore(_signal: c_int) {}

extern "C" {
    fn memcmp(first: *const c_void, second: *const c_void, len: usize) -> c_int;
}

/// What Rust's standard library compares by.
///
/// The C library has it in one object with memcmp(), which libkvm has too.
///
/// # Safety
///
/// There must be `len` bytes at both addresses.
#[no_mangle]
unsafe extern "C" fn bcmp(first: *const c_void, second: *const c_void, len: usize) -> c_int {
    // SAFETY: By this function's own requirement.
    unsafe { memcmp(first, second, len) }
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

/// Calls a function on each CPU that this thread may run on, one after the other.
pub(crate) fn on_each_cpu(mut call: impl FnMut()) {
    let size = size_of::<bindings::cpu_set_t>();
    let mut all = bindings::cpu_set_t::default();
    // SAFETY: The set is as large as is said.
    let got = unsafe { bindings::sched_getaffinity(0, size, &mut all) };
    Errno::check(got).expect("sched_getaffinity failed");
    let run_on = |cpus: &bindings::cpu_set_t| {
        // SAFETY: As above.
        let set = unsafe { bindings::sched_setaffinity(0, size, cpus) };
        Errno::check(set).expect("sched_setaffinity failed");
    };
    for (index, word) in all.__bits.iter().enumerate() {
        for bit in (0..u64::BITS).filter(|bit| (word >> bit) & 1 != 0) {
            let mut one = bindings::cpu_set_t::default();
            one.__bits[index] = 1 << bit;
            run_on(&one);
            call();
        }
    }
    run_on(&all);
}

/// Returns whether the host is asked to protect guests' memory from itself, and so does not have
/// their stage 2 in its hands.
///
/// No capability tells.
pub(crate) fn is_protected_host() -> bool {
    fs::read_to_string("/proc/cmdline")
        .expect("cannot read /proc/cmdline")
        .contains("kvm-arm.mode=protected")
}
