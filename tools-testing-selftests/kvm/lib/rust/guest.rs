// SPDX-License-Identifier: GPL-2.0-only

//! What code may do that runs in the guest.
//!
//! Guest code is a function of the test program itself: libkvm loads the program's ELF file into
//! the guest's memory and starts the vCPU at the function. So it may call functions and read
//! constants of the program, but none of its state is there: statics have the values of the file,
//! and nothing that needs the operating system works. In particular
//!
//! * nothing may panic: index nothing, and use `wrapping_` or `checked_` arithmetic;
//! * nothing may be allocated, formatted or printed, and no thread local may be used;
//! * nothing of the C library may be called, not even by copying or comparing a large value;
//! * the only ways out are the functions below that call the host.
//!
//! Addresses are the guest's own. An access goes nowhere but into the guest's memory, whatever the
//! address is, and an address without memory is the guest's own problem. That is why accesses are
//! safe functions here, of which the host must make no use.

use crate::bindings;
use core::ptr;

/// The type of guest code: a function that takes what [`Vcpu::set_args`](crate::Vcpu::set_args) has
/// set, and never returns.
pub type Entry = extern "C" fn(u64, u64, u64) -> !;

/// Guest code that reads the first word of `pages` pages from `base` on, each `stride` bytes after
/// the other, and hands the host the page's number and the word. Starts over at the end.
pub extern "C" fn read_pages(base: u64, pages: u64, stride: u64) -> ! {
    loop {
        let mut page = 0;
        while page < pages {
            sync(page, read(base.wrapping_add(page.wrapping_mul(stride))));
            page = page.wrapping_add(1);
        }
    }
}

/// Guest code that writes to the first word of `pages` pages, each in turn, that page's number, and
/// hands it to the host. Starts over at the end.
pub extern "C" fn write_pages(base: u64, pages: u64, stride: u64) -> ! {
    loop {
        let mut page = 0;
        while page < pages {
            write(base.wrapping_add(page.wrapping_mul(stride)), page);
            sync(page, page);
            page = page.wrapping_add(1);
        }
    }
}

/// Guest code that reads the first word of each page over and over and calls the host only when one
/// is zero, with the page's number.
pub extern "C" fn hunt_zero(base: u64, pages: u64, stride: u64) -> ! {
    loop {
        let mut page = 0;
        while page < pages {
            if read(base.wrapping_add(page.wrapping_mul(stride))) == 0 {
                sync(page, 0);
            }
            page = page.wrapping_add(1);
        }
    }
}

/// Reads a word.
#[inline(always)]
pub fn read(address: u64) -> u64 {
    // SAFETY: In the guest, see the module's documentation.
    unsafe { ptr::read_volatile(address as *const u64) }
}

/// Writes a word.
#[inline(always)]
pub fn write(address: u64, value: u64) {
    // SAFETY: In the guest, see the module's documentation.
    unsafe { ptr::write_volatile(address as *mut u64, value) }
}

/// Hands two values to the host, which sees an [`Exit::Sync`](crate::Exit::Sync), and goes on when
/// the host runs the vCPU again.
#[inline(always)]
pub fn sync(first: u64, second: u64) {
    // SAFETY: The number of arguments is right, and ucall() is made to be called by guests.
    unsafe { bindings::ucall(bindings::UCALL_SYNC.into(), 2, first, second) }
}

/// Ends the guest: the host sees an [`Exit::Done`](crate::Exit::Done).
#[inline(always)]
pub fn done() -> ! {
    loop {
        // SAFETY: The number of arguments is right, and ucall() is made to be called by guests.
        unsafe { bindings::ucall(bindings::UCALL_DONE.into(), 0) }
    }
}
