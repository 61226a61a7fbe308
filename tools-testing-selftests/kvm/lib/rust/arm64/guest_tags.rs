// SPDX-License-Identifier: GPL-2.0-only

//! Guest code that uses the tags of FEAT_MTE.

use crate::*;
use core::arch::asm;

/// The tag that [`write_tags`] writes.
pub const TAG: u8 = 5;

guest_code! {
    /// As [`read_pages`](crate::guest::read_pages), with the tag of each page in place of a word.
    pub fn read_tags(guest: Guest, base: Gva, pages: u64, stride: u64) {
        enable_tags(&guest);
        guest.for_each_page(base, pages, stride, |page, address| {
            guest.sync(page, read_tag(&guest, address));
        })
    }

    /// Reads a word, writes it, and gives the first granule of each page the tag [`TAG`].
    ///
    /// The host sees an exit after each of the three.
    pub fn write_tags(guest: Guest, base: Gva, pages: u64, stride: u64) {
        enable_tags(&guest);
        guest.sync(0, guest.read(base));
        guest.write(base, 1);
        guest.sync(1, 0);
        guest.for_each_page(base, pages, stride, |page, address| {
            write_tag(&guest, address, TAG);
            if page.wrapping_add(1) == pages {
                guest.sync(2, 0);
            }
        })
    }
}

/// Makes the memory that libkvm maps tagged, and tags accessible.
#[inline(always)]
fn enable_tags(_guest: &Guest) {
    // Attribute 4 is libkvm's for all memory: Tagged Normal Write-Back. SCTLR_EL1.ATA is bit 43.
    // SAFETY: In the guest, see `guest`. The memory stays cacheable as it was.
    unsafe {
        asm!(
            "mrs {tmp}, mair_el1",
            "bfi {tmp}, {tagged}, #32, #8",
            "msr mair_el1, {tmp}",
            "mrs {tmp}, sctlr_el1",
            "orr {tmp}, {tmp}, #(1 << 43)",
            "msr sctlr_el1, {tmp}",
            "isb",
            "tlbi vmalle1",
            "dsb nsh",
            "isb",
            tmp = out(reg) _,
            tagged = in(reg) 0xf0u64,
        )
    }
}

/// Reads the tag of an address.
#[inline(always)]
fn read_tag(_guest: &Guest, address: Gva) -> u64 {
    let mut value = address.0;
    // SAFETY: In the guest, see `guest`.
    unsafe { asm!(".inst 0xd9600020 // ldg x0, [x1]", inout("x0") value, in("x1") address.0) };
    (value >> 56) & 0xf
}

/// Writes the tag of an address.
#[inline(always)]
fn write_tag(_guest: &Guest, address: Gva, tag: u8) {
    let tagged = address.0 | (u64::from(tag) << 56);
    // SAFETY: In the guest, see `guest`.
    unsafe { asm!(".inst 0xd9200820 // stg x0, [x1]", in("x0") tagged, in("x1") address.0) };
}
