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
use core::{
    arch::asm,
    ptr, //
};

/// The type of guest code: a function that takes what [`Vcpu::set_args`](crate::Vcpu::set_args)
/// has set, and never returns.
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

/// Guest code that writes to the first word of `pages` pages, each in turn, that page's number,
/// and hands it to the host. Starts over at the end.
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

/// Guest code that reads the first word of each page over and over and calls the host only when
/// one is zero, with the page's number.
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

/// Guest code that accesses the first words of pages in each way that the architecture has, a
/// page for each way, and hands the host the number of the page and the value that was there.
/// Starts over at the end. There are [`WAYS`] ways.
pub extern "C" fn access_in_all_ways(base: u64, pages: u64, stride: u64) -> ! {
    loop {
        let mut way = 0;
        while way < pages {
            let address = base.wrapping_add(way.wrapping_mul(stride));
            sync(way, access(address, way));
            way = way.wrapping_add(1);
        }
    }
}

/// The number of ways that [`access_in_all_ways`] knows.
pub const WAYS: usize = 8;

/// Accesses a word in a way and returns its value before that. The word of an instruction fetch
/// has to hold [`RET`].
#[inline(always)]
fn access(address: u64, way: u64) -> u64 {
    let value: u64;
    let (_low, _status): (u64, u64);
    // SAFETY: In the guest, see the module's documentation. All registers that are written are
    // named, and memory is taken for changed.
    unsafe {
        match way {
            0 => asm!("ldr {}, [{}]", out(reg) value, in(reg) address),
            // An unaligned access that ends in the page.
            1 => asm!("ldur {}, [{}, #-1]", out(reg) value, in(reg) address.wrapping_add(4)),
            2 => {
                value = address;
                asm!("str {}, [{}]", in(reg) value, in(reg) address);
            }
            3 => asm!(
                "2: ldaxr {value}, [{address}]",
                "stlxr {status:w}, {value}, [{address}]",
                "cbnz {status:w}, 2b",
                value = out(reg) value,
                address = in(reg) address,
                status = out(reg) _status,
            ),
            4 => asm!("ldp {}, {}, [{}]", out(reg) value, out(reg) _low, in(reg) address),
            5 => asm!(
                "ldr q0, [{}]",
                "fmov {}, d0",
                in(reg) address,
                out(reg) value,
                out("v0") _,
            ),
            // Cache maintenance needs the page to be there as well.
            6 => {
                asm!("dc civac, {}", in(reg) address);
                value = read(address);
            }
            _ => {
                let function: extern "C" fn() = core::mem::transmute(address);
                function();
                value = RET;
            }
        }
    }
    value
}

/// The instruction by which a function without any other returns.
pub const RET: u64 = 0xd65f_03c0;

/// Guest code as [`read_pages`], which hands the host the tag of each page in place of a word.
pub extern "C" fn read_tags(base: u64, pages: u64, stride: u64) -> ! {
    enable_tags();
    loop {
        let mut page = 0;
        while page < pages {
            sync(page, read_tag(base.wrapping_add(page.wrapping_mul(stride))));
            page = page.wrapping_add(1);
        }
    }
}

/// Guest code that reads a word, writes it, and gives the first granule of each page the tag
/// [`TAG`]. The host sees an exit after each of the three.
pub extern "C" fn write_tags(base: u64, pages: u64, stride: u64) -> ! {
    enable_tags();
    sync(0, read(base));
    write(base, 1);
    sync(1, 0);
    let mut page = 0;
    while page < pages {
        write_tag(base.wrapping_add(page.wrapping_mul(stride)), TAG);
        page = page.wrapping_add(1);
    }
    sync(2, 0);
    done()
}

/// The tag that [`write_tags`] writes.
pub const TAG: u8 = 5;

/// Makes the memory that libkvm maps tagged, and tags accessible.
#[inline(always)]
fn enable_tags() {
    // Attribute 4 is libkvm's for all memory: Tagged Normal Write-Back. SCTLR_EL1.ATA is bit 43.
    // SAFETY: In the guest, see the module's documentation. The memory stays cacheable as it was.
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
fn read_tag(address: u64) -> u64 {
    let mut value = address;
    // SAFETY: In the guest, see the module's documentation.
    unsafe { asm!(".inst 0xd9600020 // ldg x0, [x1]", inout("x0") value, in("x1") address) };
    (value >> 56) & 0xf
}

/// Writes the tag of an address.
#[inline(always)]
fn write_tag(address: u64, tag: u8) {
    let tagged = address | (u64::from(tag) << 56);
    // SAFETY: In the guest, see the module's documentation.
    unsafe { asm!(".inst 0xd9200820 // stg x0, [x1]", in("x0") tagged, in("x1") address) };
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

/// Calls firmware, by HVC, and returns the first of the four results.
#[inline(always)]
pub fn hvc(function: u32) -> u64 {
    let mut results = bindings::arm_smccc_res::default();
    // SAFETY: There is room for the results, and smccc_hvc() is made to be called by guests.
    unsafe { bindings::smccc_hvc(function, 0, 0, 0, 0, 0, 0, 0, &mut results) };
    results.a0
}

/// Calls firmware, by SMC, and returns the first of the four results.
#[inline(always)]
pub fn smc(function: u32) -> u64 {
    let mut results = bindings::arm_smccc_res::default();
    // SAFETY: There is room for the results, and smccc_smc() is made to be called by guests.
    unsafe { bindings::smccc_smc(function, 0, 0, 0, 0, 0, 0, 0, &mut results) };
    results.a0
}

/// Has the MMU walk the guest's own tables for an address, so that the tables are there when it is
/// accessed. Whether the page is there makes no difference.
#[inline(always)]
pub fn walk(address: u64) {
    // SAFETY: In the guest, see the module's documentation.
    unsafe { asm!("at s1e1r, {}", in(reg) address) }
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
