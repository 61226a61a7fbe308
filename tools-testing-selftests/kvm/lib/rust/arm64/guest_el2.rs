// SPDX-License-Identifier: GPL-2.0-only

//! What guest code may do that is a hypervisor, L1, and runs a guest of its own, L2.
//!
//! L1 is at EL2 with HCR_EL2.{E2H,TGE} = {1,1}, where libkvm starts a vCPU that has EL2. L2 is
//! another function of the program, at EL1, and is guest code like any other: it has the stage 1
//! of L1, a part of its stack and no way back. An exception that either of them takes reaches the
//! host as an [`Exit::Exception`](crate::Exit::Exception).
//!
//! What is said in [`guest`](crate::guest) about accesses holds for registers as well: to change
//! them is the guest's own problem.

use crate::*;
use core::arch::asm;

/// What L2 has, as bits of HCR_EL2: a stage 2, the one of [`Guest::set_stage2`].
pub const STAGE2: u64 = 1 << 0;

/// What L2 has, as bits of HCR_EL2: FEAT_NV2, so that its accesses to registers of EL2 are
/// accesses to the page of [`Guest::set_vncr`].
pub const NV2: u64 = (1 << 42) | (1 << 45);

/// HCR_EL2.{E2H,RW}: L1 stays what it is, and L2 is of 64 bits.
const HCR: u64 = (1 << 34) | (1 << 31);

/// PSTATE of L2: EL1h, all interrupts masked.
const PSTATE: u64 = 0x3c5;

/// The number of L2's address bits, of which one table translates the upper ones.
const IPA_BITS: u64 = 36;

impl Guest {
    /// Gives L2 a stage 2 that is a [`L2Table`](crate::L2Table) of the given granule.
    #[inline(always)]
    pub fn set_stage2(&self, table: Gpa, granule: u64) {
        let granule = match granule {
            4096 => 0,
            16384 => 2,
            _ => 1,
        };
        // T0SZ; SL0, for the table's level; IRGN0, ORGN0, SH0: cached and shared; TG0; PS: 36 bits.
        let caching = (1 << 8) | (1 << 10) | (3 << 12);
        let vtcr = (64 - IPA_BITS) | (1 << 6) | caching | (granule << 14) | (1 << 16);
        // VMID 1.
        let vttbr = table.0 | (1 << 48);
        // SAFETY: In the guest, see the module's documentation.
        unsafe {
            asm!(
                "msr vtcr_el2, {vtcr}",
                "msr vttbr_el2, {vttbr}",
                "isb",
                vtcr = in(reg) vtcr,
                vttbr = in(reg) vttbr,
            )
        }
    }

    /// Gives L2, after [`Guest::set_stage2`], a VMID that it has on this vCPU only.
    #[inline(always)]
    pub fn use_own_vmid(&self) {
        // SAFETY: In the guest, see the module's documentation.
        unsafe {
            asm!(
                "mrs {vttbr}, vttbr_el2",
                "mrs {number}, mpidr_el1",
                "and {number}, {number}, #0xf",
                "add {vttbr}, {vttbr}, {number}, lsl #48",
                "msr vttbr_el2, {vttbr}",
                "isb",
                vttbr = out(reg) _,
                number = out(reg) _,
            )
        }
    }

    /// Returns whether L1's CPU has a granule of 64K for [`Guest::set_stage2`].
    #[inline(always)]
    pub fn has_stage2_granule_of_64k(&self) -> bool {
        let features: u64;
        // SAFETY: In the guest, see the module's documentation.
        unsafe { asm!("mrs {}, id_aa64mmfr0_el1", out(reg) features) };
        (features >> 36) & 0xf >= 2
    }

    /// Has L1's CPU set the access flag in the stage 2 of [`Guest::set_stage2`], and returns
    /// whether it can.
    #[inline(always)]
    pub fn let_cpu_set_access_flag(&self) -> bool {
        let features: u64;
        // SAFETY: In the guest, see the module's documentation. The bit is VTCR_EL2.HA.
        unsafe {
            asm!(
                "mrs {features}, id_aa64mmfr1_el1",
                "mrs {vtcr}, vtcr_el2",
                "orr {vtcr}, {vtcr}, #(1 << 21)",
                "msr vtcr_el2, {vtcr}",
                "isb",
                features = out(reg) features,
                vtcr = out(reg) _,
            )
        }
        features & 0xf != 0
    }

    /// Tells L1's CPU the virtual address at which L1 has the registers of an L2 with [`NV2`].
    #[inline(always)]
    pub fn set_vncr(&self, address: Gva) {
        // SAFETY: In the guest, see the module's documentation.
        unsafe {
            asm!(
                "msr S3_4_C2_C2_0, {address}", // VNCR_EL2
                "isb",
                address = in(reg) address.0,
            )
        }
    }

    /// Has the CPU translate an address by L1's own tables, and returns the guest physical address,
    /// or what PAR_EL1 has if there is none.
    #[inline(always)]
    pub fn translate(&self, address: Gva) -> u64 {
        // SAFETY: In the guest, see the module's documentation.
        unsafe { asm!("at s1e1r, {}", "isb", in(reg) address.0) }
        self.translated()
    }

    /// As [`Guest::translate`], by AT S1E2R.
    #[inline(always)]
    pub fn translate_for_el2(&self, address: Gva) -> u64 {
        // SAFETY: In the guest, see the module's documentation.
        unsafe { asm!("at s1e2r, {}", "isb", in(reg) address.0) }
        self.translated()
    }

    /// As [`Guest::translate`], for an L2 whose stage 1 is off: by what [`Guest::set_stage2`] has.
    ///
    /// HCR_EL2 stays as it is for L2.
    #[inline(always)]
    pub fn translate_for_l2(&self, address: Gva) -> u64 {
        // SAFETY: In the guest, see the module's documentation. The register is SCTLR_EL12.
        unsafe {
            asm!(
                "msr S3_5_C1_C0_0, xzr",
                "msr hcr_el2, {hcr}",
                "isb",
                "at s12e1r, {address}",
                "isb",
                hcr = in(reg) HCR | STAGE2,
                address = in(reg) address.0,
            )
        }
        self.translated()
    }

    /// Returns what was translated last.
    #[inline(always)]
    fn translated(&self) -> u64 {
        let par: u64;
        // SAFETY: In the guest, see the module's documentation.
        unsafe { asm!("mrs {}, par_el1", out(reg) par) };
        if par & 1 == 0 {
            par & 0x000f_ffff_ffff_f000
        } else {
            par
        }
    }

    /// Lets L1 enter L2, which `has` what is said and starts at `entry` with the given arguments.
    #[inline(always)]
    pub fn enter_l2(&self, has: u64, entry: Entry, base: Gva, first: u64, second: u64) -> ! {
        // With E2H set, EL2 reaches its own registers by the names of EL1, and those of EL1 by
        // names with EL12, which the assembler does not know: SCTLR, CPACR, TTBR0, TCR, MAIR and
        // VBAR.
        //
        // SAFETY: In the guest, see the module's documentation.
        unsafe {
            asm!(
                "mrs x9, sctlr_el1",
                "msr S3_5_C1_C0_0, x9",
                "mrs x9, cpacr_el1",
                "msr S3_5_C1_C0_2, x9",
                "mrs x9, ttbr0_el1",
                "msr S3_5_C2_C0_0, x9",
                "mrs x9, tcr_el1",
                "msr S3_5_C2_C0_2, x9",
                "mrs x9, mair_el1",
                "msr S3_5_C10_C2_0, x9",
                "mrs x9, vbar_el1",
                "msr S3_5_C12_C0_0, x9",
                "sub x9, sp, #8192",
                "msr sp_el1, x9",
                "msr elr_el2, {entry}",
                "msr spsr_el2, {pstate}",
                "msr hcr_el2, {hcr}",
                "isb",
                "eret",
                entry = in(reg) entry,
                pstate = in(reg) PSTATE,
                hcr = in(reg) HCR | has,
                in("x0") 0,
                in("x1") base.0,
                in("x2") first,
                in("x3") second,
                in("x9") 0, // None of the above is here.
                options(noreturn),
            )
        }
    }

    /// Reads TPIDR_EL2, a register that has no effect on anything.
    #[inline(always)]
    pub fn read_tpidr_el2(&self) -> u64 {
        let value;
        // SAFETY: In the guest, see the module's documentation.
        unsafe { asm!("mrs {}, tpidr_el2", out(reg) value) }
        value
    }

    /// Writes TPIDR_EL2.
    #[inline(always)]
    pub fn write_tpidr_el2(&self, value: u64) {
        // SAFETY: In the guest, see the module's documentation.
        unsafe { asm!("msr tpidr_el2, {}", in(reg) value) }
    }
}

/// Where TPIDR_EL2 is in the page of [`Guest::set_vncr`], in words.
pub const TPIDR_EL2_WORD: usize = 0x90 / 8;
