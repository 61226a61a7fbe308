// SPDX-License-Identifier: GPL-2.0-only

//! The interrupt controller whose tables are in the guest's memory, where KVM reads and writes
//! them.

use crate::*;
use std::{
    fs::File,
    os::fd::{
        AsRawFd,
        FromRawFd,
        RawFd, //
    },
    sync::Arc, //
};

// SAFETY: It takes what api.rst has for it, in which there is no address of this process.
const SIGNAL_MSI: Ioctl<bindings::kvm_msi> = unsafe { Ioctl::new(bindings::LIBKVM_SIGNAL_MSI) };

/// An ITS, and the GICv3 with one redistributor that it goes with.
pub struct Its {
    vm: Arc<VmInner>,
    its: File,
    gic: RawFd,
}

impl Vm {
    /// Adds an ITS, or skips the case where the VM has no GICv3.
    #[track_caller]
    pub fn add_its(&mut self) -> Its {
        let raw = self.raw_for_tables();
        let vm = Arc::clone(self.inner());
        // SAFETY: The pointer is valid and used by nobody else, and the file descriptor of the ITS
        // is new and has no other owner. That of the GIC is the VM's.
        unsafe {
            if !(*raw).arch.has_gic {
                ktap::skip("guests have no GICv3 here");
            }
            let its = File::from_raw_fd(bindings::vgic_its_setup(raw));
            let gic = (*raw).arch.gic_fd;
            Its { vm, its, gic }
        }
    }
}

impl Its {
    /// Writes a register of the ITS.
    #[track_caller]
    pub fn set(&self, register: u32, value: u64) {
        let group = bindings::KVM_DEV_ARM_VGIC_GRP_ITS_REGS;
        set_attribute(self.its.as_raw_fd(), group, register, &value).unwrap_or_else(|error| {
            panic!("cannot set the ITS's register {register:#x}: {error:?}")
        });
    }

    /// Lets the GIC have interrupts for vCPUs.
    #[track_caller]
    pub fn enable_distributor(&self) {
        let group = bindings::KVM_DEV_ARM_VGIC_GRP_DIST_REGS;
        let (register, value) = (bindings::GICD_CTLR, bindings::GICD_CTLR_ENABLE_SS_G1);
        let set = set_attribute(self.gic, group, register, &value);
        set.expect("cannot enable the distributor");
    }

    /// Writes the parts of a register of the redistributor.
    #[track_caller]
    pub fn set_redistributor<const N: usize>(&self, register: u32, parts: [u32; N]) {
        let group = bindings::KVM_DEV_ARM_VGIC_GRP_REDIST_REGS;
        for (register, part) in (register..).step_by(4).zip(parts) {
            set_attribute(self.gic, group, register, &part).unwrap_or_else(|error| {
                panic!("cannot set the redistributor's register {register:#x}: {error:?}")
            });
        }
    }

    fn control(fd: RawFd, what: u32) -> Result<(), Errno> {
        set_attribute(fd, bindings::KVM_DEV_ARM_VGIC_GRP_CTRL, what, &0_u64)
    }

    /// Has KVM write the ITS's tables.
    pub fn save_tables(&self) -> Result<(), Errno> {
        Self::control(self.its.as_raw_fd(), bindings::KVM_DEV_ARM_ITS_SAVE_TABLES)
    }

    /// Has KVM read the ITS's tables.
    pub fn restore_tables(&self) -> Result<(), Errno> {
        let what = bindings::KVM_DEV_ARM_ITS_RESTORE_TABLES;
        Self::control(self.its.as_raw_fd(), what)
    }

    /// Has KVM write which LPIs are pending.
    pub fn save_pending_tables(&self) -> Result<(), Errno> {
        Self::control(self.gic, bindings::KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES)
    }

    /// Signals an event of a device, and returns whether the ITS has an interrupt for it.
    #[track_caller]
    pub fn signal(&self, device: u32, event: u32) -> bool {
        let mut msi = bindings::kvm_msi {
            address_lo: bindings::LIBKVM_GITS_TRANSLATER,
            data: event,
            flags: bindings::KVM_MSI_VALID_DEVID,
            devid: device,
            ..Default::default()
        };
        let signalled = SIGNAL_MSI.call(self.vm.fd(), &mut msi);
        signalled.expect("KVM_SIGNAL_MSI failed") != 0
    }
}
