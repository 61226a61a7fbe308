// SPDX-License-Identifier: GPL-2.0-only
//! Where things are in the guest's address space, and how many.

pub const GIC_DISTRIBUTOR: u64 = 0x0800_0000;
pub const GIC_DISTRIBUTOR_BYTES: u64 = 0x1_0000;
pub const GIC_REDISTRIBUTORS: u64 = 0x080a_0000;
/// Of each vCPU.
pub const GIC_REDISTRIBUTOR_BYTES: u64 = 0x2_0000;
pub const SERIAL: u64 = 0x0900_0000;
pub const SERIAL_BYTES: u64 = 0x1000;
/// The serial port's shared peripheral interrupt; KVM's irqfd has the same number.
pub const SERIAL_SPI: u32 = 0;
pub const RAM: u64 = 0x4000_0000;

/// Behind the RAM that the guest is told of, in the same slot, is where KVM writes the time that
/// was stolen from each vCPU.
pub const STOLEN_TIME_BYTES: u64 = 0x1_0000;
/// Of each vCPU.
pub const STOLEN_TIME_RECORD: u64 = 64;

pub const MAX_VCPUS: usize = 8;

/// What a guest is made of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Config {
    pub ram: u64,
    pub vcpus: usize,
}

impl Config {
    /// The bytes of the memory slot.
    pub fn slot_bytes(&self) -> usize {
        (self.ram + STOLEN_TIME_BYTES) as usize
    }

    /// The pages of the memory slot.
    pub fn pages(&self) -> usize {
        self.slot_bytes() / page_size()
    }

    /// The pages that KVM itself accesses.
    pub fn pages_of_kvm(&self) -> std::ops::Range<usize> {
        self.ram as usize / page_size()..self.pages()
    }

    /// Where KVM records a vCPU's stolen time.
    pub fn stolen_time(&self, vcpu: usize) -> u64 {
        RAM + self.ram + vcpu as u64 * STOLEN_TIME_RECORD
    }
}

/// The host's page size, which is what a bit of the bitmap stands for: 4K, 16K or 64K.
pub fn page_size() -> usize {
    static SIZE: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    // SAFETY: sysconf() has no precondition.
    *SIZE.get_or_init(|| unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize)
}

/// The page of the slot that an address of the guest is in.
pub fn page_of(gpa: u64) -> usize {
    (gpa - RAM) as usize / page_size()
}

/// The pages that a large mapping of stage 2 covers, with 4K pages.
pub const BLOCK_PAGES: usize = 512;
