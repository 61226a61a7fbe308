// SPDX-License-Identifier: GPL-2.0-only

//! What code may do that runs in the guest.
//!
//! Guest code is a function of the test program itself: libkvm loads the program's ELF file into
//! the guest's memory and starts the vCPU at the function. So it may call functions and read
//! constants of the program, but none of its state is there: statics have the values of the file,
//! and nothing that needs the operating system works.
//!
//! [`guest_code!`](crate::guest_code) puts such functions together in a section, and the program is
//! not built if one of them calls what is not there and not libkvm's for guests: a panic, an
//! allocation, the C library. Calls by pointers that are in data, as of a `dyn`, are not looked at.
//! So index nothing, and calculate by `wrapping_` or `checked_` functions.
//!
//! Whatever a guest does, it does by its [`Guest`], which no code of the host has. Addresses are
//! the guest's own: an access goes nowhere but into the guest's memory, and an address without
//! memory is the guest's own problem. That is why accesses are safe.

use crate::*;
use core::ptr;

/// What only guest code has: the first argument of its entry point.
#[repr(transparent)]
pub struct Guest(u64);

/// The type of the entry points of guest code, which takes what
/// [`Vcpu::set_args`](crate::Vcpu::set_args) has set.
pub type Entry = extern "C" fn(Guest, Gva, u64, u64) -> !;

/// Defines guest code: functions of type [`Entry`], which the host so has no way to call.
///
/// They have no attributes but documentation: one that names a function has the host call it.
#[macro_export]
macro_rules! guest_code {
    ($(
        $(#[doc = $doc:literal])*
        $visible:vis fn $name:ident(
            $guest:ident: Guest, $base:ident: Gva, $first:ident: u64, $second:ident: u64 $(,)?
        ) $body:block
    )+) => {$(
        $(#[doc = $doc])*
        #[allow(unsafe_code)] // The section counts as such, and nothing else does.
        #[link_section = "guest_code"]
        $visible extern "C" fn $name(
            guest: $crate::Guest, base: $crate::Gva, first: u64, second: u64,
        ) -> ! {
            #[forbid(unsafe_code)]
            #[inline(always)]
            fn body($guest: $crate::Guest, $base: $crate::Gva, $first: u64, $second: u64) -> ! {
                $body
            }
            body(guest, base, first, second)
        }
    )+};
}

impl Guest {
    /// Reads a word.
    #[inline(always)]
    pub fn read(&self, address: Gva) -> u64 {
        // SAFETY: In the guest, see the module's documentation.
        unsafe { ptr::read_volatile(address.0 as *const u64) }
    }

    /// Writes a word.
    #[inline(always)]
    pub fn write(&self, address: Gva, value: u64) {
        // SAFETY: In the guest, see the module's documentation.
        unsafe { ptr::write_volatile(address.0 as *mut u64, value) }
    }

    /// Hands two values to the host, which sees an [`Exit::Sync`](crate::Exit::Sync), and goes on
    /// when the host runs the vCPU again.
    #[inline(always)]
    pub fn sync(&self, first: u64, second: u64) {
        // SAFETY: The number of arguments is right, and ucall() is made to be called by guests.
        unsafe { bindings::ucall(bindings::UCALL_SYNC.into(), 2, first, second) }
    }

    /// Ends the guest: the host sees an [`Exit::Done`](crate::Exit::Done).
    #[inline(always)]
    pub fn done(&self) -> ! {
        loop {
            // SAFETY: The number of arguments is right, and ucall() is made to be called by guests.
            unsafe { bindings::ucall(bindings::UCALL_DONE.into(), 0) }
        }
    }

    /// Calls a function for each of `pages` pages from `base` on, `stride` bytes apart, over and
    /// over, with the page's number and its address.
    #[inline(always)]
    pub fn for_each_page(&self, base: Gva, pages: u64, stride: u64, visit: impl Fn(u64, Gva)) -> ! {
        loop {
            let (mut page, mut address) = (0, base);
            while page < pages {
                visit(page, address);
                page = page.wrapping_add(1);
                address = address + Bytes(stride);
            }
        }
    }
}

guest_code! {
    /// Reads the first word of `pages` pages from `base` on, `stride` bytes apart, and hands the
    /// host each page's number and the word.
    ///
    /// Starts over at the end.
    pub fn read_pages(guest: Guest, base: Gva, pages: u64, stride: u64) {
        guest.for_each_page(base, pages, stride, |page, address| {
            guest.sync(page, guest.read(address));
        })
    }

    /// Writes each page's number to its first word, and hands it to the host.
    ///
    /// Starts over at the end.
    pub fn write_pages(guest: Guest, base: Gva, pages: u64, stride: u64) {
        guest.for_each_page(base, pages, stride, |page, address| {
            guest.write(address, page);
            guest.sync(page, page);
        })
    }

    /// Reads the first word of each page over and over and calls the host only when one is zero,
    /// with the page's number.
    pub fn hunt_zero(guest: Guest, base: Gva, pages: u64, stride: u64) {
        guest.for_each_page(base, pages, stride, |page, address| {
            if guest.read(address) == 0 {
                guest.sync(page, 0);
            }
        })
    }

    /// As [`hunt_zero`], and copies the third word of each page to the second where they differ.
    pub fn hunt_zero_and_copy(guest: Guest, base: Gva, pages: u64, stride: u64) {
        guest.for_each_page(base, pages, stride, |page, address| {
            if guest.read(address) == 0 {
                guest.sync(page, 0);
            }
            let (copy, word) = (address + Bytes(8), guest.read(address + Bytes(16)));
            if guest.read(copy) != word {
                guest.write(copy, word);
            }
        })
    }
}
