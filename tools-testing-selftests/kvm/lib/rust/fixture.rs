// SPDX-License-Identifier: GPL-2.0-only

//! What most userfault tests start from.

use crate::{
    guest,
    host_page_size,
    ktap,
    system_capability,
    Backing,
    Bitmap,
    Errno,
    Exit,
    Mapping,
    Slot,
    Vcpu,
    Vm,
    KVM_CAP_USERFAULT,
    KVM_MEM_USERFAULT, //
};

/// The number of the slot that is tested.
pub const SLOT: u32 = 1;

/// The guest address of the slot that is tested, aligned for any block.
pub const GPA: u64 = 1 << 30;

/// A VM with one slot, and vCPUs that run over its pages.
pub struct Machine {
    /// The VM.
    pub vm: Vm,
    /// Its vCPUs.
    pub vcpus: Vec<Vcpu>,
    /// The slot.
    pub slot: Slot,
}

impl Machine {
    /// Creates a machine with one vCPU that reads the slot's pages one after the other, over and
    /// over, see [`guest::read_pages`].
    pub fn new(backing: Backing, pages: usize) -> Self {
        Self::with_guest(backing, pages, 1, guest::read_pages)
    }

    /// Creates a machine whose vCPUs start at `entry`, with the slot's address, its number of
    /// pages and their size in bytes as arguments.
    pub fn with_guest(backing: Backing, pages: usize, vcpus: usize, entry: guest::Entry) -> Self {
        let (vm, vcpus) = Vm::new(vcpus, pages, entry);
        Self::with_vm(vm, vcpus, backing, pages)
    }

    /// Creates a machine as [`Machine::with_guest`] does, of a VM that is special.
    pub fn with_vm(mut vm: Vm, mut vcpus: Vec<Vcpu>, backing: Backing, pages: usize) -> Self {
        let slot = vm.add_slot(backing, SLOT, GPA, pages);
        for vcpu in &mut vcpus {
            vcpu.set_args([GPA, pages as u64, host_page_size() as u64]);
        }
        Self { vm, vcpus, slot }
    }

    /// Creates a machine as [`Machine::new`] does, whose slot is one block of the host and has all
    /// of its memory.
    pub fn with_block() -> Self {
        let machine = Self::new(
            Backing::AnonymousThp,
            Backing::AnonymousThp.pages_per_page(),
        );
        machine.fill();
        machine
    }

    /// Writes to each page its number.
    pub fn fill(&self) {
        for page in 0..self.slot.pages() {
            self.slot.write(page, 0, page as u64);
        }
    }

    /// Runs the first vCPU to its next exit.
    pub fn run(&mut self) -> Exit {
        self.vcpus[0].run()
    }

    /// Lets the vCPU read pages, of which none may be marked and each must hold its number.
    pub fn read(&mut self, pages: std::ops::Range<usize>) {
        for page in pages {
            assert_eq!(self.run(), Exit::Sync(page as u64, page as u64));
        }
    }

    /// Lets the vCPU read all pages, as [`Machine::read`] does.
    pub fn read_all(&mut self) {
        self.read(0..self.slot.pages());
    }

    /// Returns the exit that an access to a marked page must cause.
    pub fn userfault(&self, page: usize) -> Exit {
        Exit::Userfault {
            gpa: self.slot.gpa(page),
            size: host_page_size() as u64,
        }
    }

    /// Sets the flag.
    pub fn enable(&self, bitmap: &Bitmap) {
        let flags = self.slot.region().flags | KVM_MEM_USERFAULT;
        let enabled = self.slot.set_flags(flags, Some(bitmap));
        assert_eq!(enabled, Ok(()), "setting the flag");
    }

    /// Clears the flag.
    pub fn disable(&self) {
        let flags = self.slot.region().flags & !KVM_MEM_USERFAULT;
        let disabled = self.slot.set_flags(flags, None);
        assert_eq!(disabled, Ok(()), "clearing the flag");
    }

    /// Returns the slot's stage 2 mappings, where debugfs shows them.
    pub fn mappings(&self) -> Option<Vec<Mapping>> {
        self.slot.mappings()
    }
}

/// Returns the mappings, or skips the case where nothing shows them.
pub fn need_mappings(mappings: Option<Vec<Mapping>>) -> Vec<Mapping> {
    mappings.unwrap_or_else(|| {
        ktap::skip("nothing shows stage 2 (CONFIG_PTDUMP_STAGE2_DEBUGFS)") //
    })
}

/// Returns the mappings, or skips the case where nothing shows them or where none is a block.
pub fn need_block(mappings: Option<Vec<Mapping>>) -> Vec<Mapping> {
    let mappings = need_mappings(mappings);
    if !mappings.iter().any(Mapping::is_block) {
        ktap::skip("no transparent huge page to be had");
    }
    mappings
}

/// Ends the program where the kernel does not have userfault, after having checked that it refuses
/// the flag there.
pub fn needs_userfault() {
    if system_capability(KVM_CAP_USERFAULT) != 0 {
        return;
    }
    let machine = Machine::new(Backing::Anonymous, 16);
    let set = machine
        .slot
        .set_flags(KVM_MEM_USERFAULT, Some(&Bitmap::new(16)));
    assert_eq!(set, Err(Errno::EINVAL), "accepted without the capability");
    ktap::skip_all("the kernel has no KVM_CAP_USERFAULT");
}
