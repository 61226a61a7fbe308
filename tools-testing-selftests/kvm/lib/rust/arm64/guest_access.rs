// SPDX-License-Identifier: GPL-2.0-only

//! Guest code that accesses memory in each way that the architecture has.

use crate::*;
use core::arch::asm;

/// A way to access the first word of a page, which holds [`BEFORE`], as the last word of the page
/// before holds 0.
pub struct Way {
    /// What it is called.
    pub name: &'static str,
    /// What it tells the host.
    pub loaded: u64,
    /// What it leaves there.
    pub left: u64,
}

/// What each page holds before: RET, so that a page can be called as a function.
pub const BEFORE: u64 = 0xd65f_03c0;

/// What stores write.
pub const STORED: u64 = 0x1122_3344_5566_7788;

const fn way(name: &'static str, loaded: u64, left: u64) -> Way {
    Way { name, loaded, left }
}

/// The ways in which [`access_in_all_ways`] accesses pages, all of which exit if they are marked.
#[rustfmt::skip]
pub const WAYS: [Way; 16] = [
    way("load", BEFORE, BEFORE),
    way("load that begins in the page before", BEFORE << 32, BEFORE),
    way("store", 0, STORED),
    way("store that begins in the page before", 0, STORED >> 32),
    way("exclusives", BEFORE, BEFORE + 1),
    way("atomic add", BEFORE, BEFORE + 1),
    way("compare and swap", BEFORE, STORED),
    way("swap", BEFORE, STORED),
    way("load of a pair", BEFORE, BEFORE),
    way("store of a pair", 0, STORED),
    way("load of a vector", BEFORE, BEFORE),
    way("store of a vector", 0, STORED),
    way("cleaning the cache", BEFORE, BEFORE),
    way("cleaning and invalidating the cache", BEFORE, BEFORE),
    way("zeroing by cache maintenance", 0, 0),
    way("instruction fetch", 0, BEFORE),
];

guest_code! {
    /// Accesses the first word of page n in the nth of [`WAYS`], and hands the host n and what it
    /// has loaded.
    ///
    /// Starts over at the end.
    pub fn access_in_all_ways(guest: Guest, base: Gva, pages: u64, stride: u64) {
        guest.for_each_page(base, pages, stride, |page, address| {
            guest.sync(page, access(&guest, page, address));
        })
    }

    /// Loads the word that has its one half in a page and the other in the next, hands the host 0
    /// and what it has loaded, stores [`STORED`] there and hands it 1.
    ///
    /// Starts over at the end.
    pub fn access_a_seam(guest: Guest, base: Gva, _pages: u64, stride: u64) {
        let seam = base + Bytes(stride.wrapping_sub(4));
        loop {
            guest.sync(0, load(&guest, seam));
            store(&guest, seam, STORED);
            guest.sync(1, STORED);
        }
    }

    /// Prefetches the first word of each page and has the MMU translate its address, neither of
    /// which exits, and hands the host the page's number.
    ///
    /// Starts over at the end.
    pub fn touch_without_access(guest: Guest, base: Gva, pages: u64, stride: u64) {
        guest.for_each_page(base, pages, stride, |page, address| {
            touch(&guest, address);
            guest.sync(page, 0);
        })
    }

    /// Loads the first words of each page as a vector of FEAT_SVE, hands the host the page's number
    /// and the first of them, stores it in all, and does so again.
    ///
    /// Starts over at the end.
    pub fn access_by_sve(guest: Guest, base: Gva, pages: u64, stride: u64) {
        enable_sve(&guest);
        guest.for_each_page(base, pages, stride, |page, address| {
            guest.sync(page, load_by_sve(&guest, address));
            store_by_sve(&guest, address, STORED);
            guest.sync(page, STORED);
        })
    }
}

/// Loads a word that need not be aligned.
#[inline(always)]
fn load(_guest: &Guest, address: Gva) -> u64 {
    let value;
    // SAFETY: In the guest, see `guest`.
    unsafe { asm!("ldr {}, [{}]", out(reg) value, in(reg) address.0) };
    value
}

/// Stores a word that need not be aligned.
#[inline(always)]
fn store(_guest: &Guest, address: Gva, value: u64) {
    // SAFETY: In the guest, see `guest`.
    unsafe { asm!("str {}, [{}]", in(reg) value, in(reg) address.0) };
}

/// Prefetches a word in each way and has the MMU translate its address.
#[inline(always)]
fn touch(_guest: &Guest, address: Gva) {
    // SAFETY: In the guest, see `guest`.
    unsafe {
        asm!(
            "prfm pldl1keep, [{0}]",
            "prfm pstl1keep, [{0}]",
            "prfm plil1keep, [{0}]",
            "at s1e1r, {0}",
            in(reg) address.0,
        );
    }
}

/// Lets EL1 use SVE, by CPACR_EL1.ZEN.
#[inline(always)]
fn enable_sve(_guest: &Guest) {
    // SAFETY: In the guest, see `guest`.
    unsafe {
        asm!(
            "mrs {0}, cpacr_el1",
            "orr {0}, {0}, #(3 << 16)",
            "msr cpacr_el1, {0}",
            "isb",
            out(reg) _,
        );
    }
}

/// Loads a vector and returns its first word.
#[inline(always)]
fn load_by_sve(_guest: &Guest, address: Gva) -> u64 {
    let value;
    // SAFETY: In the guest, see `guest`. All registers that are written are named: z0 is v0 for
    // Rust, which has nothing in the rest of it, as it does not use SVE.
    unsafe {
        asm!(
            ".arch_extension sve",
            "ptrue p0.d",
            "ld1d z0.d, p0/z, [{address}]",
            "fmov {value}, d0",
            address = in(reg) address.0,
            value = out(reg) value,
            out("v0") _,
            out("p0") _,
        );
    }
    value
}

/// Stores a word in all of a vector.
#[inline(always)]
fn store_by_sve(_guest: &Guest, address: Gva, value: u64) {
    // SAFETY: As above.
    unsafe {
        asm!(
            ".arch_extension sve",
            "ptrue p0.d",
            "dup z0.d, {value}",
            "st1d z0.d, p0, [{address}]",
            address = in(reg) address.0,
            value = in(reg) value,
            out("v0") _,
            out("p0") _,
        );
    }
}

/// Returns whether the CPU has FEAT_LSE.
#[inline(always)]
fn has_lse(_guest: &Guest) -> bool {
    let features: u64;
    // SAFETY: In the guest, at EL1 or EL2, see `guest`.
    unsafe { asm!("mrs {}, id_aa64isar0_el1", out(reg) features) };
    (features >> 20) & 0xf >= 2
}

/// Returns how many bytes DC ZVA zeroes.
#[inline(always)]
fn zeroed_at_once(_guest: &Guest) -> u64 {
    let features: u64;
    // SAFETY: In the guest, see `guest`.
    unsafe { asm!("mrs {}, dczid_el0", out(reg) features) };
    if features & 0x10 == 0 {
        4 << (features & 0xf)
    } else {
        0
    }
}

/// Accesses a word in a way and returns what the way is to tell.
#[inline(always)]
fn access(guest: &Guest, way: u64, address: Gva) -> u64 {
    let mut loaded = 0;
    // Ends in the page, and begins in the one before.
    let straddling = address + Bytes(4_u64.wrapping_neg());
    let (address, straddling) = (address.0, straddling.0);
    // Where the CPU has no atomics, exclusives do the same.
    let (way, swapped) = match way {
        5 if !has_lse(guest) => (4, None),
        6 | 7 if !has_lse(guest) => (4, Some(STORED)),
        way => (way, None),
    };
    // SAFETY: In the guest, see `guest`. All registers that are written are named, and memory is
    // taken for changed.
    unsafe {
        match way {
            0 => asm!("ldr {}, [{}]", out(reg) loaded, in(reg) address),
            1 => asm!("ldr {}, [{}]", out(reg) loaded, in(reg) straddling),
            2 => asm!("str {}, [{}]", in(reg) STORED, in(reg) address),
            3 => asm!("str {}, [{}]", in(reg) STORED, in(reg) straddling),
            4 => asm!(
                "2: ldaxr {loaded}, [{address}]",
                "add {new}, {loaded}, #1",
                "cmp {swapped}, #0",
                "csel {new}, {new}, {swapped}, eq",
                "stlxr {status:w}, {new}, [{address}]",
                "cbnz {status:w}, 2b",
                loaded = out(reg) loaded,
                new = out(reg) _,
                address = in(reg) address,
                swapped = in(reg) swapped.unwrap_or(0),
                status = out(reg) _,
            ),
            5 => asm!(
                ".arch_extension lse",
                "ldadd {}, {}, [{}]",
                in(reg) 1_u64,
                out(reg) loaded,
                in(reg) address,
            ),
            6 => {
                loaded = BEFORE;
                asm!(
                    ".arch_extension lse",
                    "cas {}, {}, [{}]",
                    inout(reg) loaded,
                    in(reg) STORED,
                    in(reg) address,
                );
            }
            7 => asm!(
                ".arch_extension lse",
                "swp {}, {}, [{}]",
                in(reg) STORED,
                out(reg) loaded,
                in(reg) address,
            ),
            8 => asm!("ldp {}, {}, [{}]", out(reg) loaded, out(reg) _, in(reg) address),
            9 => asm!("stp {0}, {0}, [{1}]", in(reg) STORED, in(reg) address),
            10 => asm!(
                "ldr q0, [{}]",
                "fmov {}, d0",
                in(reg) address,
                out(reg) loaded,
                out("v0") _,
            ),
            11 => asm!(
                "fmov d0, {}",
                "str q0, [{}]",
                in(reg) STORED,
                in(reg) address,
                out("v0") _,
            ),
            // An emulator that has no cache does nothing here. There the load exits in its place.
            12 => asm!("dc cvac, {1}", "ldr {0}, [{1}]", out(reg) loaded, in(reg) address),
            13 => asm!("dc civac, {1}", "ldr {0}, [{1}]", out(reg) loaded, in(reg) address),
            14 if zeroed_at_once(guest) != 0 => asm!("dc zva, {}", in(reg) address),
            14 => asm!("str xzr, [{}]", in(reg) address),
            _ => asm!("blr {}", in(reg) address, out("x30") _),
        }
    }
    loaded
}
