// SPDX-License-Identifier: GPL-2.0-only
//! A machine: its slot, its vCPUs, how it boots, and its state.

use std::fs::{self, File};
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use kvm_bindings::*;
use kvm_ioctls::{Kvm, VcpuFd, VmFd, reg_size};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::pe::PE;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Bus;
use crate::fdt;
use crate::gic::Gic;
use crate::layout::*;
use crate::memory::{Backing, Memory};
use crate::state::{Registers, State};
use crate::userfault::{self, KVM_MEM_USERFAULT, Marks};

const SLOT: u32 = 0;

const GUEST_MEMFD_FLAG_MMAP: u64 = 1 << 0;
const GUEST_MEMFD_FLAG_INIT_SHARED: u64 = 1 << 1;

/// The name that the state has a vCPU's MP state under; no register of KVM is zero.
const MP_STATE: u64 = 0;

/// PSTATE with exceptions masked at EL1, and the registers that the boot protocol names.
const PSTATE_EL1H_MASKED: u64 = 0x3c5;
const REGISTER_X0: u64 = core_register(offset_of!(kvm_regs, regs.regs));
const REGISTER_PC: u64 = core_register(offset_of!(kvm_regs, regs.pc));
const REGISTER_PSTATE: u64 = core_register(offset_of!(kvm_regs, regs.pstate));

/// The id of a 64-bit register, given its place in `struct kvm_regs`.
const fn core_register(offset: usize) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | (KVM_REG_ARM_CORE as u64) | (offset as u64 / 4)
}

/// What a machine's memory is to be.
pub enum Kind {
    Anonymous,
    Private(File),
    GuestMemfd,
}

pub struct Vm {
    fd: VmFd,
    gic: Gic,
    pub memory: Memory,
    /// The thread of a vCPU holds its lock while it runs.
    pub vcpus: Vec<Arc<Mutex<VcpuFd>>>,
    pub bus: Arc<Bus>,
    /// Whether KVM has userfault.
    pub userfault: bool,
}

/// Opens KVM, with a word for those who have none.
pub fn open_kvm() -> Result<Kvm> {
    Kvm::new().context(
        "opening /dev/kvm: it takes a kernel with KVM that was booted at EL2, and permission to use it",
    )
}

impl Vm {
    /// Makes a machine without a slot.
    pub fn new(config: Config, kind: Kind) -> Result<Self> {
        config.check()?;
        let kvm = open_kvm()?;
        let fd = kvm.create_vm().context("creating a VM")?;
        let backing = match kind {
            Kind::Anonymous => Backing::Anonymous,
            Kind::Private(file) => Backing::Private(file),
            Kind::GuestMemfd => Backing::GuestMemfd(create_guest_memfd(&fd, config)?),
        };
        let memory = Memory::new(config, backing)?;
        let vcpus = (0..config.vcpus as u64)
            .map(|vcpu| Ok(Arc::new(Mutex::new(fd.create_vcpu(vcpu).context("creating a vCPU")?))))
            .collect::<Result<Vec<_>>>()?;
        let mut preferred = kvm_vcpu_init::default();
        fd.get_preferred_target(&mut preferred)
            .context("the kind of vCPU that the host prefers")?;
        for (vcpu, handle) in vcpus.iter().enumerate() {
            let mut init = preferred;
            init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
            if vcpu > 0 {
                init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
            }
            handle.lock().unwrap().vcpu_init(&init).context("initialising a vCPU")?;
        }
        let gic = Gic::new(&fd, config.vcpus)?;
        let bus = Arc::new(Bus::new(interrupt(&fd)?));
        Ok(Self { fd, gic, memory, vcpus, bus, userfault: userfault::supported(&kvm) })
    }

    /// Creates the slot or changes its flags. Where marks are given, vCPUs exit for marked pages.
    ///
    /// To replace one bitmap by another the flag has to be cleared in between.
    pub fn set_slot(&self, marks: Option<&Marks>, log_dirty: bool) -> Result<()> {
        let mut region = self.region();
        region.memory_size = self.memory.config().slot_bytes() as u64;
        if log_dirty {
            region.flags |= KVM_MEM_LOG_DIRTY_PAGES;
        }
        if let Some(marks) = marks {
            region.flags |= KVM_MEM_USERFAULT;
            // userfault_bitmap, which kvm-bindings does not name yet.
            region.pad2[0] = marks.address();
        }
        self.set_region(region)
    }

    /// Deletes the slot, so that the next one begins with the largest mappings.
    pub fn delete_slot(&self) -> Result<()> {
        self.set_region(kvm_userspace_memory_region2 { flags: 0, ..self.region() })
    }

    fn region(&self) -> kvm_userspace_memory_region2 {
        let mut region = kvm_userspace_memory_region2 {
            slot: SLOT,
            guest_phys_addr: RAM,
            userspace_addr: self.memory.host_address(),
            ..Default::default()
        };
        if let Some(file) = self.memory.guest_memfd() {
            region.flags |= KVM_MEM_GUEST_MEMFD;
            region.guest_memfd = file.as_raw_fd() as u32;
        }
        region
    }

    fn set_region(&self, region: kvm_userspace_memory_region2) -> Result<()> {
        // SAFETY: The slot's memory is mapped as long as the machine lives, and so is a bitmap: who
        // gives one keeps it until the flag is cleared or the process ends.
        unsafe { self.fd.set_user_memory_region2(region) }.context("changing the memory slot")
    }

    /// Returns the pages that were written since the last call, as words of a bitmap.
    pub fn dirty(&self) -> Result<Vec<u64>> {
        self.fd
            .get_dirty_log(SLOT, self.memory.config().slot_bytes())
            .context("reading the dirty log")
    }

    /// Tells KVM where to record the time that is stolen from each vCPU, if it can.
    pub fn record_stolen_time(&self) -> Result<()> {
        for (vcpu, handle) in self.vcpus.iter().enumerate() {
            let address = self.memory.config().stolen_time(vcpu);
            let attribute = kvm_device_attr {
                group: KVM_ARM_VCPU_PVTIME_CTRL,
                attr: u64::from(KVM_ARM_VCPU_PVTIME_IPA),
                addr: &raw const address as u64,
                flags: 0,
            };
            let vcpu = handle.lock().unwrap();
            if vcpu.has_device_attr(&attribute).is_ok() {
                vcpu.set_device_attr(&attribute).context("stolen time")?;
            }
        }
        Ok(())
    }

    /// Loads a kernel and its initramfs, and points the first vCPU at it.
    pub fn load_linux(&self, image: &Path, initrd: &Path, command_line: &str) -> Result<()> {
        let guest = self.memory.guest();
        let config = self.memory.config();
        let mut file = File::open(image).context(format!("opening {}", image.display()))?;
        let kernel = PE::load(guest, Some(GuestAddress(RAM)), &mut file, None)
            .context(format!("loading {}", image.display()))?;
        let content = fs::read(initrd).context(format!("reading {}", initrd.display()))?;
        // At the end of memory, the tree below the initramfs.
        let end = RAM + config.ram;
        let start = (end - content.len() as u64) & !0xffff;
        let tree = fdt::tree(config, command_line, start..start + content.len() as u64)
            .context("making the device tree")?;
        let tree_address = (start - tree.len() as u64) & !0xffff;
        ensure!(
            tree_address >= kernel.kernel_end + (16 << 20),
            "the guest's memory is too small for its kernel and its initramfs"
        );
        guest.write_slice(&content, GuestAddress(start)).context("loading the initramfs")?;
        guest.write_slice(&tree, GuestAddress(tree_address)).context("loading the device tree")?;

        let vcpu = self.vcpus[0].lock().unwrap();
        for (register, value) in [
            (REGISTER_PSTATE, PSTATE_EL1H_MASKED),
            (REGISTER_PC, kernel.kernel_load.0),
            (REGISTER_X0, tree_address),
        ] {
            vcpu.set_one_reg(register, &value.to_le_bytes())
                .context("setting up the first vCPU")?;
        }
        Ok(())
    }

    /// Saves all but the memory, while no vCPU runs.
    pub fn save(&self, identity: u64) -> Result<State> {
        Ok(State {
            identity,
            config: self.memory.config(),
            vcpus: self
                .vcpus
                .iter()
                .map(|vcpu| save_vcpu(&vcpu.lock().unwrap()))
                .collect::<Result<_>>()?,
            gic: self.gic.save()?,
            serial: self.bus.save(),
        })
    }

    /// Loads the state of a machine into a new one.
    pub fn load(&self, state: &State) -> Result<()> {
        for (vcpu, registers) in self.vcpus.iter().zip(&state.vcpus) {
            load_vcpu(&vcpu.lock().unwrap(), registers)?;
        }
        self.gic.load(&state.gic)?;
        self.bus.load(&state.serial, interrupt(&self.fd)?)
    }
}

/// Makes memory that only KVM allocates, and that this process may map.
fn create_guest_memfd(vm: &VmFd, config: Config) -> Result<File> {
    let request = kvm_create_guest_memfd {
        size: config.slot_bytes() as u64,
        flags: GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
        ..Default::default()
    };
    let fd = vm.create_guest_memfd(request).context("creating a guest_memfd that can be mapped")?;
    // SAFETY: KVM has just made the descriptor, for nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Makes the eventfd that raises the serial port's interrupt.
fn interrupt(vm: &VmFd) -> Result<EventFd> {
    let event =
        EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).context("creating an eventfd")?;
    vm.register_irqfd(&event, SERIAL_SPI).context("registering the serial port's interrupt")?;
    Ok(event)
}

fn save_vcpu(vcpu: &VcpuFd) -> Result<Registers> {
    let mut list = RegList::new(500).context("a list of registers")?;
    vcpu.get_reg_list(&mut list).context("listing a vCPU's registers")?;
    let mp_state = vcpu.get_mp_state().context("reading a vCPU's MP state")?.mp_state;
    let mut registers = vec![(MP_STATE, mp_state.into())];
    for id in list.as_slice() {
        let mut bytes = [0; 16];
        vcpu.get_one_reg(*id, &mut bytes[..reg_size(*id)])
            .context(format!("reading register {id:#x}"))?;
        registers.push((*id, u128::from_le_bytes(bytes)));
    }
    Ok(registers)
}

fn load_vcpu(vcpu: &VcpuFd, registers: &Registers) -> Result<()> {
    for (id, value) in registers {
        if *id == MP_STATE {
            let mp_state = kvm_mp_state { mp_state: *value as u32 };
            vcpu.set_mp_state(mp_state).context("setting a vCPU's MP state")?;
        } else {
            vcpu.set_one_reg(*id, &value.to_le_bytes()[..reg_size(*id)])
                .context(format!("setting register {id:#x}"))?;
        }
    }
    Ok(())
}
