// SPDX-License-Identifier: GPL-2.0-only
//! The GICv3 that KVM emulates: how it is made, saved and loaded.

use anyhow::{Context, Result};
use kvm_bindings::*;
use kvm_ioctls::{DeviceFd, VmFd};

use crate::layout::*;
use crate::state::Registers;

/// Interrupts: 32 of each vCPU, 32 that are shared.
const INTERRUPTS: u32 = 64;

/// Offset and bytes of the distributor's registers, those of shared interrupts only where each has
/// a field. Of the pairs that set and clear, the one that sets is enough: a new GIC has all clear.
const DISTRIBUTOR: [(u32, u32); 9] = [
    (0x0000, 4),               // GICD_CTLR
    (0x0010, 4),               // GICD_STATUSR
    (0x0084, 4),               // GICD_IGROUPR
    (0x0104, 4),               // GICD_ISENABLER
    (0x0204, 4),               // GICD_ISPENDR
    (0x0304, 4),               // GICD_ISACTIVER
    (0x0420, 32),              // GICD_IPRIORITYR
    (0x0c08, 8),               // GICD_ICFGR
    (0x6000 + 32 * 8, 32 * 8), // GICD_IROUTER
];

/// Those of a redistributor. Without an ITS there are no LPIs, and no tables of theirs in memory.
const REDISTRIBUTOR: [(u32, u32); 9] = [
    (0x0000, 4),    // GICR_CTLR
    (0x0010, 4),    // GICR_STATUSR
    (0x0014, 4),    // GICR_WAKER
    (0x1_0080, 4),  // GICR_IGROUPR0
    (0x1_0100, 4),  // GICR_ISENABLER0
    (0x1_0200, 4),  // GICR_ISPENDR0
    (0x1_0300, 4),  // GICR_ISACTIVER0
    (0x1_0400, 32), // GICR_IPRIORITYR
    (0x1_0c00, 8),  // GICR_ICFGR
];

/// Op0, Op1, CRn, CRm and Op2 of a CPU interface's register.
type SystemRegister = [u64; 5];

/// Its bits 10:8 are the number of bits of a priority, less one.
const ICC_CTLR_EL1: SystemRegister = [3, 0, 12, 12, 4];

const CPU_INTERFACE: [SystemRegister; 7] = [
    [3, 0, 12, 12, 5], // ICC_SRE_EL1
    ICC_CTLR_EL1,
    [3, 0, 12, 12, 6], // ICC_IGRPEN0_EL1
    [3, 0, 12, 12, 7], // ICC_IGRPEN1_EL1
    [3, 0, 4, 6, 0],   // ICC_PMR_EL1
    [3, 0, 12, 8, 3],  // ICC_BPR0_EL1
    [3, 0, 12, 12, 3], // ICC_BPR1_EL1
];

/// ICC_AP0R<n>_EL1 and ICC_AP1R<n>_EL1. Priorities of 5 bits have one of each, those of 6 two and
/// those of 7 four.
fn active_priorities(bits: u64) -> impl Iterator<Item = SystemRegister> {
    let count = 1 << bits.saturating_sub(5);
    (0..count).flat_map(|n| [[3, 0, 12, 8, 4 + n], [3, 0, 12, 9, n]])
}

pub struct Gic {
    device: DeviceFd,
    vcpus: usize,
}

impl Gic {
    /// Makes the GIC of a machine whose vCPUs are there.
    pub fn new(vm: &VmFd, vcpus: usize) -> Result<Self> {
        let mut device =
            kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, fd: 0, flags: 0 };
        let device = vm
            .create_device(&mut device)
            .context("creating a GICv3, which the host may not have")?;
        let gic = Self { device, vcpus };
        gic.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &INTERRUPTS)?;
        gic.set(
            KVM_DEV_ARM_VGIC_GRP_ADDR,
            u64::from(KVM_VGIC_V3_ADDR_TYPE_DIST),
            &GIC_DISTRIBUTOR,
        )?;
        gic.set(
            KVM_DEV_ARM_VGIC_GRP_ADDR,
            u64::from(KVM_VGIC_V3_ADDR_TYPE_REDIST),
            &GIC_REDISTRIBUTORS,
        )?;
        gic.set(KVM_DEV_ARM_VGIC_GRP_CTRL, u64::from(KVM_DEV_ARM_VGIC_CTRL_INIT), &0u64)?;
        Ok(gic)
    }

    /// Saves the GIC while no vCPU runs.
    pub fn save(&self) -> Result<Registers> {
        self.names()?.into_iter().map(|name| Ok((name.0, self.get(name)?))).collect()
    }

    /// Loads what [`Gic::save`] returned, into a new GIC.
    pub fn load(&self, registers: &Registers) -> Result<()> {
        for (name, value) in registers {
            let (group, attribute) = Name(*name).attribute();
            if group == KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS {
                self.set(group, attribute, &(*value as u64))?;
            } else {
                self.set(group, attribute, &(*value as u32))?;
            }
        }
        Ok(())
    }

    /// All registers, in the order in which they are loaded.
    fn names(&self) -> Result<Vec<Name>> {
        let words = |ranges: &[(u32, u32)]| -> Vec<u32> {
            ranges.iter().flat_map(|(offset, bytes)| (*offset..offset + bytes).step_by(4)).collect()
        };
        let mut names = Vec::new();
        for offset in words(&DISTRIBUTOR) {
            names.push(Name::new(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0, offset.into()));
        }
        names.push(Name::new(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, 0, 32));
        for vcpu in 0..self.vcpus as u64 {
            for offset in words(&REDISTRIBUTOR) {
                names.push(Name::new(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, vcpu, offset.into()));
            }
            names.push(Name::new(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, vcpu, 0));
            let control = self.get(Name::of_cpu_interface(vcpu, ICC_CTLR_EL1))? as u64;
            let active = active_priorities(((control >> 8) & 7) + 1);
            for register in CPU_INTERFACE.into_iter().chain(active) {
                names.push(Name::of_cpu_interface(vcpu, register));
            }
        }
        Ok(names)
    }

    fn set<T>(&self, group: u32, attr: u64, value: &T) -> Result<()> {
        let attribute = kvm_device_attr { group, attr, addr: value as *const T as u64, flags: 0 };
        self.device
            .set_device_attr(&attribute)
            .context(format!("setting {attr:#x} of the GIC's group {group}"))
    }

    fn get(&self, name: Name) -> Result<u128> {
        let (group, attr) = name.attribute();
        // Large enough for each register; those of 32 bits leave the rest at zero.
        let mut value = 0u64;
        let mut attribute = kvm_device_attr { group, attr, addr: &raw mut value as u64, flags: 0 };
        // SAFETY: KVM writes a word of at most 64 bits to `value`, which outlives the call.
        unsafe { self.device.get_device_attr(&mut attribute) }
            .context(format!("reading {attr:#x} of the GIC's group {group}"))?;
        Ok(value.into())
    }
}

/// A register's name in the state: its group, the vCPU's affinity and the offset.
#[derive(Clone, Copy)]
struct Name(u64);

impl Name {
    /// vCPUs are few, so the number of one is its affinity.
    fn new(group: u32, vcpu: u64, offset: u64) -> Self {
        Self((u64::from(group) << 48) | (vcpu << 32) | offset)
    }

    fn of_cpu_interface(vcpu: u64, [op0, op1, crn, crm, op2]: SystemRegister) -> Self {
        let register = (op0 << 14) | (op1 << 11) | (crn << 7) | (crm << 3) | op2;
        Self::new(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, vcpu, register)
    }

    /// The group and the attribute that KVM knows the register by.
    fn attribute(self) -> (u32, u64) {
        ((self.0 >> 48) as u32, self.0 & 0xffff_ffff_ffff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_bits_of_priority_have_more_registers() {
        let last = |bits| active_priorities(bits).last();
        assert_eq!(last(5), Some([3, 0, 12, 9, 0]));
        assert_eq!(last(6), Some([3, 0, 12, 9, 1]));
        assert_eq!(last(7), Some([3, 0, 12, 9, 3]));
    }
}
