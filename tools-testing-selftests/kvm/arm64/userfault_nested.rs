// SPDX-License-Identifier: GPL-2.0-only

//! What `KVM_MEM_USERFAULT` promises when the guest is a hypervisor.
//!
//! The VMM knows nothing of the guest L2 that its guest L1 runs: it marks pages of L1, and exits
//! name pages of L1, whoever touched them. A failure of a case means that L2, or the CPU on behalf
//! of L1, runs on memory that is not there yet, or that the VMM is asked for the wrong page.

use libkvm::{
    guest,
    guest_el2,
    host_page_size,
    ktap,
    system_capability,
    test_main,
    Backing,
    Bitmap,
    Exit,
    L2Table,
    Mapping,
    Slot,
    Vcpu,
    Vm,
    KVM_CAP_USERFAULT,
    KVM_MEM_USERFAULT, //
};
use std::ops::Range;

/// The slot that is tested, at an address of L1 that is aligned for any block.
const SLOT: u32 = 1;
const GPA: u64 = 2 << 30;

/// Where the one who accesses it has the slot: L2 in its physical addresses, and L1, for registers
/// of L2, in its virtual addresses. Not the same, so that exits with the wrong one are noticed.
const ELSEWHERE: u64 = 1 << 30;

/// The slot with the stage 2 that L1 has for L2.
const TABLE_SLOT: u32 = 2;
const TABLE_GPA: u64 = 3 << 30;

/// The guest code of L1: runs an L2 that reads the last word of each page.
extern "C" fn run_reader(pages: u64, page_size: u64, _: u64) -> ! {
    let base = ELSEWHERE.wrapping_add(page_size).wrapping_sub(8);
    guest_el2::set_stage2(TABLE_GPA, page_size);
    guest_el2::enter_l2(guest_el2::STAGE2, guest::read_pages, base, pages, page_size)
}

/// What the L2 of [`run_register_user`] has done with TPIDR_EL2.
const READ: u64 = 0;
const WRITTEN: u64 = 1;

/// The guest code of an L2 that believes it is a hypervisor: reads TPIDR_EL2 and adds one to it.
extern "C" fn use_register(_: u64, _: u64, _: u64) -> ! {
    loop {
        let value = guest_el2::read_tpidr_el2();
        guest::sync(READ, value);
        let value = value.wrapping_add(1);
        guest_el2::write_tpidr_el2(value);
        guest::sync(WRITTEN, value);
    }
}

/// The guest code of L1: runs an L2 whose registers of EL2 are in memory at the given address.
extern "C" fn run_register_user(vncr: u64, _: u64, _: u64) -> ! {
    guest_el2::set_vncr(vncr);
    guest_el2::enter_l2(guest_el2::NV2, use_register, 0, 0, 0)
}

/// The page of the slot with L2's registers, and where TPIDR_EL2 is, in bytes from the page's
/// start to the registers and in words to TPIDR_EL2. Registers take 4K, whatever the size of a
/// page is.
const REGISTERS: usize = 1;

fn registers_offset() -> usize {
    host_page_size() - 4096
}

fn register_word() -> usize {
    registers_offset() / size_of::<u64>() + guest_el2::TPIDR_EL2_WORD
}

/// A VM with a slot, and a vCPU whose L2 accesses it.
struct Machine {
    vm: Vm,
    vcpu: Vcpu,
    slot: Slot,
}

impl Machine {
    /// Returns a machine whose L2 reads all pages one after the other.
    fn with_reader(backing: Backing, pages: usize) -> Self {
        let (mut vm, mut vcpus) = Vm::new(1, 2 * pages + 1, run_reader);
        let slot = vm.add_slot(backing, SLOT, GPA, pages);
        // In L2's stage 1, which is L1's, L2 has the slot where L1's stage 2 has it.
        vm.map(ELSEWHERE, ELSEWHERE, pages);
        let table = L2Table::new(&mut vm, TABLE_SLOT, TABLE_GPA);
        table.map(0..ELSEWHERE, 0);
        table.map(ELSEWHERE..GPA, GPA);
        let mut vcpu = vcpus.remove(0);
        vcpu.set_args([pages as u64, host_page_size() as u64, 0]);
        Self { vm, vcpu, slot }
    }

    /// Returns a machine whose L2 has its registers in the slot.
    fn with_registers(backing: Backing) -> Self {
        let pages = 3;
        let (mut vm, mut vcpus) = Vm::new(1, 2 * pages, run_register_user);
        let slot = vm.add_slot(backing, SLOT, GPA, pages);
        // VNCR_EL2 is a virtual address of L1.
        vm.map(ELSEWHERE, GPA, pages);
        let mut vcpu = vcpus.remove(0);
        let vncr = ELSEWHERE + (REGISTERS * host_page_size() + registers_offset()) as u64;
        vcpu.set_args([vncr, 0, 0]);
        Self { vm, vcpu, slot }
    }

    /// Writes to a page its number, where the reader reads it.
    fn fill(&self, page: usize) {
        let last = host_page_size() / size_of::<u64>() - 1;
        self.slot.write(page, last, page as u64);
    }

    /// Writes to each page its number.
    fn fill_all(&self) {
        for page in 0..self.slot.pages() {
            self.fill(page);
        }
    }

    /// Lets L2 read the page that is its turn, which may not be marked and must hold its number.
    fn read(&mut self, page: usize) {
        assert_eq!(self.vcpu.run(), Exit::Sync(page as u64, page as u64));
    }

    /// Lets L2 read all pages.
    fn read_all(&mut self) {
        for page in 0..self.slot.pages() {
            self.read(page);
        }
    }

    /// Returns the exit that an access to a marked page must cause.
    fn userfault(&self, page: usize) -> Exit {
        Exit::Userfault {
            gpa: self.slot.gpa(page),
            size: host_page_size() as u64,
        }
    }

    /// Returns L2's address of a page.
    fn l2_address(&self, page: usize) -> u64 {
        self.slot.gpa(page) - GPA + ELSEWHERE
    }

    /// Returns what KVM maps of the slot for L2.
    fn shadow_mappings(&self) -> Vec<Mapping> {
        self.vm.shadow_mappings(self.l2_range())
    }

    /// Returns L2's addresses of the slot.
    fn l2_range(&self) -> Range<u64> {
        self.l2_address(0)..self.l2_address(self.slot.pages())
    }

    fn enable(&self, bitmap: &Bitmap) {
        let enabled = self.slot.set_flags(KVM_MEM_USERFAULT, Some(bitmap));
        assert_eq!(enabled, Ok(()));
    }

    fn disable(&self) {
        assert_eq!(self.slot.set_flags(0, None), Ok(()));
    }
}

/// Returns the number of pages in the block that a transparent huge page makes.
fn block_pages() -> usize {
    Backing::AnonymousThp.page_size() / host_page_size()
}

/// An access of L2 to a marked page exits with the address that L1 has for it, as often as it is
/// tried, and L2 sees the page that was supplied before the mark was cleared.
fn marked_page_of_l2_exits_with_l1_address() {
    let mut machine = Machine::with_reader(Backing::Anonymous, 19);
    let bitmap = Bitmap::marked(19);
    machine.enable(&bitmap);

    for page in 0..19 {
        let userfault = machine.userfault(page);
        assert_eq!(machine.vcpu.run(), userfault);
        assert_eq!(machine.vcpu.run(), userfault, "second try");
        machine.fill(page);
        bitmap.clear(page);
        machine.read(page);
    }
    machine.read_all();
}

/// While the flag is set, L2's memory is mapped by pages, even where both L1's and the host's are
/// blocks, so that a marked page in the block stays out.
fn block_of_l2_never_covers_a_marked_page() {
    let mut machine = Machine::with_reader(Backing::AnonymousThp, block_pages());
    machine.fill_all();
    let marked = machine.slot.pages() - 1;
    let bitmap = Bitmap::new(machine.slot.pages());
    bitmap.mark(marked);
    machine.enable(&bitmap);

    for page in 0..marked {
        machine.read(page);
    }
    let mappings = machine.shadow_mappings();
    for mapping in &mappings {
        assert!(!mapping.is_block(), "a block: {mapping:x?}");
        assert!(
            mapping.range.end <= machine.l2_address(marked),
            "the marked page: {mapping:x?}"
        );
    }
    assert!(!mappings.is_empty(), "nothing is mapped");
    assert_eq!(machine.vcpu.run(), machine.userfault(marked));
}

/// When the call that sets the flag returns, what L2 could access is gone, blocks included.
fn enable_leaves_nothing_in_shadow_stage2() {
    let mut machine = Machine::with_reader(Backing::AnonymousThp, block_pages());
    machine.fill_all();
    let bitmap = Bitmap::new(machine.slot.pages());
    let marked = [3, machine.slot.pages() - 1];
    for page in marked {
        bitmap.mark(page);
    }

    machine.read_all();
    let before = machine.shadow_mappings();
    if !before.iter().any(|mapping| mapping.is_block()) {
        ktap::skip("no transparent huge page to be had");
    }

    machine.enable(&bitmap);
    assert_eq!(machine.shadow_mappings(), []);
    for page in 0..machine.slot.pages() {
        if marked.contains(&page) {
            assert_eq!(machine.vcpu.run(), machine.userfault(page));
            bitmap.clear(page);
        }
        machine.read(page);
    }
}

/// Once a page that L2 has accessed is marked and dropped, the next access of L2 exits.
fn dropped_page_of_l2_exits() {
    let mut machine = Machine::with_reader(Backing::Anonymous, 19);
    machine.fill_all();
    let bitmap = Bitmap::new(19);
    machine.enable(&bitmap);
    machine.read_all();

    bitmap.mark(7);
    machine.slot.discard(7);
    for page in 0..19 {
        if page == 7 {
            assert_eq!(machine.vcpu.run(), machine.userfault(page));
            machine.fill(page);
            bitmap.clear(page);
        }
        machine.read(page);
    }
}

/// Checks all that is promised about a page in which the CPU has registers of L2.
fn check_vncr_page(backing: Backing) {
    let mut machine = Machine::with_registers(backing);
    let (userfault, word) = (machine.userfault(REGISTERS), register_word());
    let bitmap = Bitmap::new(machine.slot.pages());
    bitmap.mark(REGISTERS);
    machine.enable(&bitmap);

    assert_eq!(machine.vcpu.run(), userfault);
    assert_eq!(machine.vcpu.run(), userfault, "second try");
    machine.slot.write(REGISTERS, word, 100);
    bitmap.clear(REGISTERS);
    assert_eq!(machine.vcpu.run(), Exit::Sync(READ, 100));
    assert_eq!(machine.vcpu.run(), Exit::Sync(WRITTEN, 101));
    assert_eq!(machine.slot.read(REGISTERS, word), 101);

    // The page is marked and dropped.
    bitmap.mark(REGISTERS);
    machine.slot.discard(REGISTERS);
    assert_eq!(machine.vcpu.run(), userfault, "dropped");
    machine.slot.write(REGISTERS, word, 200);
    bitmap.clear(REGISTERS);
    assert_eq!(machine.vcpu.run(), Exit::Sync(READ, 200));

    // Here the next access is a write, to a page that stays as it is.
    machine.disable();
    bitmap.mark(REGISTERS);
    machine.enable(&bitmap);
    assert_eq!(machine.vcpu.run(), userfault, "enabled again");
    assert_eq!(machine.slot.read(REGISTERS, word), 200);
    bitmap.clear(REGISTERS);
    assert_eq!(machine.vcpu.run(), Exit::Sync(WRITTEN, 201));
    assert_eq!(machine.slot.read(REGISTERS, word), 201);
}

/// An access of L2 to a register that is in a marked page exits with L1's physical address, before
/// and after the page was mapped for that, and never hands L1 a fault.
fn marked_vncr_page_exits() {
    check_vncr_page(Backing::Anonymous);
}

/// The same holds where the page is one of a guest_memfd.
fn marked_vncr_page_of_guest_memfd_exits() {
    check_vncr_page(Backing::GuestMemfd);
}

/// Ends the program where the kernel or the machine does not have what it takes.
fn needs_userfault_and_el2() {
    if system_capability(KVM_CAP_USERFAULT) == 0 {
        ktap::skip_all("the kernel has no KVM_CAP_USERFAULT");
    }
    let (vm, _vcpus) = Vm::new(1, 0, run_reader);
    if !vm.has_el2() {
        ktap::skip_all("guests have no EL2 here (KVM_CAP_ARM_EL2)");
    }
}

test_main! {
    needs: needs_userfault_and_el2,
    cases: [
        marked_page_of_l2_exits_with_l1_address,
        block_of_l2_never_covers_a_marked_page,
        enable_leaves_nothing_in_shadow_stage2,
        dropped_page_of_l2_exits,
        marked_vncr_page_exits,
        marked_vncr_page_of_guest_memfd_exits,
    ]
}
