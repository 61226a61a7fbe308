// SPDX-License-Identifier: GPL-2.0-only

//! What guest code asks of firmware and of the interrupt controller.

use crate::*;
use core::arch::asm;

impl Guest {
    /// Calls firmware by SMCCC and returns the first result.
    #[inline(always)]
    pub fn call_firmware(&self, function: u32) -> u64 {
        let mut result = u64::from(function);
        // SAFETY: In the guest, see `guest`. At EL2 there is no HVC.
        unsafe {
            asm!(
                "mrs {level}, CurrentEL",
                "cmp {level}, #(2 << 2)",
                "b.eq 2f",
                "hvc #0",
                "b 3f",
                "2: smc #0",
                "3:",
                level = out(reg) _,
                inout("x0") result,
                inout("x1") 0_u64 => _,
                inout("x2") 0_u64 => _,
                inout("x3") 0_u64 => _,
                out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _,
                out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _,
                out("x15") _, out("x16") _, out("x17") _,
            );
        }
        result
    }

    /// Returns the number of the interrupt that the GIC has for this vCPU, or 1023 if it has none.
    ///
    /// It is not taken.
    #[inline(always)]
    pub fn pending_interrupt(&self) -> u64 {
        let mut value = 1_u64;
        // SAFETY: In the guest, see `guest`. Interrupts are masked.
        unsafe {
            asm!(
                "msr ICC_IGRPEN1_EL1, {value}",
                "isb",
                "mrs {value}, ICC_HPPIR1_EL1",
                value = inout(reg) value,
            );
        }
        value
    }
}
