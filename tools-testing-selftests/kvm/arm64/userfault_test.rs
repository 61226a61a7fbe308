// SPDX-License-Identifier: GPL-2.0-only

//! What `KVM_MEM_USERFAULT` promises about one slot and one vCPU.
//!
//! A marked page exits and says so, no mapping that is made while the flag is set covers a marked
//! page, setting the flag takes away what was mapped before, and clearing it takes away nothing. A
//! failure of a case means that a VMM restoring a guest would run it on memory that is not there
//! yet, or that it pays for what it did not ask for.

use libkvm::{
    guest,
    host_page_size,
    ktap,
    system_capability,
    test_main,
    Backing,
    Bitmap,
    Errno,
    Exit,
    Region,
    Region1,
    Slot,
    Vcpu,
    Vm,
    KVM_CAP_USERFAULT,
    KVM_MEMORY_EXIT_FLAG_USERFAULT,
    KVM_MEM_USERFAULT, //
};
use std::mem::{
    offset_of,
    size_of, //
};

/// The slot that is tested, at an address that is aligned for any block.
const SLOT: u32 = 1;
const GPA: u64 = 1 << 30;

/// A VM with one slot, and a vCPU that reads its pages one after the other.
struct Machine {
    vm: Vm,
    vcpu: Vcpu,
    slot: Slot,
}

impl Machine {
    fn new(backing: Backing, pages: usize) -> Self {
        let (mut vm, mut vcpus) = Vm::new(1, pages, guest::read_pages);
        let slot = vm.add_slot(backing, SLOT, GPA, pages);
        let mut vcpu = vcpus.remove(0);
        vcpu.set_args([GPA, pages as u64, host_page_size() as u64]);
        Self { vm, vcpu, slot }
    }

    /// Returns a machine whose slot is one block of the host, all of it in memory.
    fn with_thp() -> Self {
        let machine = Self::new(Backing::AnonymousThp, block_pages());
        machine.fill();
        machine
    }

    /// Writes to each page its number.
    fn fill(&self) {
        for page in 0..self.slot.pages() {
            self.slot.write(page, 0, page as u64);
        }
    }

    /// Lets the vCPU read all pages, of which none may be marked and each must hold its number.
    fn read_all(&mut self) {
        for page in 0..self.slot.pages() as u64 {
            assert_eq!(self.vcpu.run(), Exit::Sync(page, page));
        }
    }

    /// Returns the exit that an access to a marked page must cause.
    fn userfault(&self, page: usize) -> Exit {
        Exit::Userfault {
            gpa: self.slot.gpa(page),
            size: host_page_size() as u64,
        }
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

/// The numbers that VMMs are built with never change, and the capability says that they work.
fn interface_is_as_deployed() {
    assert_eq!(KVM_MEM_USERFAULT, 1 << 3);
    assert_eq!(KVM_MEMORY_EXIT_FLAG_USERFAULT, 1 << 4);
    assert_eq!(size_of::<Region>(), 160);
    assert_eq!(offset_of!(Region, userfault_bitmap), 48);

    let machine = Machine::new(Backing::Anonymous, 16);
    assert_eq!(machine.vm.capability(KVM_CAP_USERFAULT), 1);
    let enabled = machine.vm.enable_capability(KVM_CAP_USERFAULT);
    assert_eq!(enabled, Err(Errno::EINVAL));
}

/// The first version of the call has no place for a bitmap, so it refuses the flag.
fn first_version_of_the_call_refuses_the_flag() {
    let machine = Machine::new(Backing::Anonymous, 16);
    let region = machine.slot.region();
    let set = machine.vm.set_region1(&Region1 {
        slot: region.slot,
        flags: KVM_MEM_USERFAULT,
        guest_phys_addr: region.guest_phys_addr,
        memory_size: region.memory_size,
        userspace_addr: region.userspace_addr,
    });
    assert_eq!(set, Err(Errno::EINVAL));
}

/// A bitmap that can never be one is refused, and the slot stays as it was.
fn bad_bitmap_is_refused() {
    let mut machine = Machine::new(Backing::Anonymous, 16);
    let bitmap = Bitmap::marked(16);
    machine.fill();

    let bad = [
        bitmap.address() | 1 << 56,
        u64::MAX - 1,
        u64::MAX,
        1 << 55,
        0xffff_0000_0000_0000,
    ];
    for userfault_bitmap in bad {
        let set = machine.slot.set_region(&Region {
            flags: KVM_MEM_USERFAULT,
            userfault_bitmap,
            ..machine.slot.region()
        });
        assert_eq!(set, Err(Errno::EINVAL), "bitmap at {userfault_bitmap:#x}");
    }
    machine.read_all();
}

/// A slot keeps its bitmap while it has the flag: another one is refused, the same one is fine.
fn bitmap_is_not_replaced_in_place() {
    let mut machine = Machine::new(Backing::Anonymous, 16);
    let (marked, clear) = (Bitmap::marked(16), Bitmap::new(16));
    machine.fill();
    machine.enable(&marked);

    let replaced = machine.slot.set_flags(KVM_MEM_USERFAULT, Some(&clear));
    assert_eq!(replaced, Err(Errno::EINVAL));
    machine.enable(&marked);
    assert_eq!(machine.vcpu.run(), machine.userfault(0));

    machine.disable();
    machine.enable(&clear);
    machine.read_all();
}

/// An access to a marked page exits, as often as it is tried, and sees the page that was supplied
/// before the mark was cleared.
fn marked_page_exits() {
    let mut machine = Machine::new(Backing::Anonymous, 19);
    let bitmap = Bitmap::marked(19);
    machine.enable(&bitmap);

    for page in 0..19 {
        let userfault = machine.userfault(page);
        assert_eq!(machine.vcpu.run(), userfault);
        assert_eq!(machine.vcpu.run(), userfault, "second try");
        assert!(
            machine.slot.mappings().len() <= 1,
            "more than what was let through"
        );
        machine.slot.write(page, 0, 100 + page as u64);
        bitmap.clear(page);
        assert_eq!(
            machine.vcpu.run(),
            Exit::Sync(page as u64, 100 + page as u64)
        );
    }
}

/// Each of the pages exits or not by its own bit.
fn each_page_has_its_own_bit() {
    let mut machine = Machine::new(Backing::Anonymous, 67);
    machine.fill();

    for marked in 0..67 {
        let bitmap = Bitmap::new(67);
        bitmap.mark(marked);
        machine.enable(&bitmap);
        for page in 0..67 {
            if page == marked {
                assert_eq!(machine.vcpu.run(), machine.userfault(page));
                bitmap.clear(page);
            }
            assert_eq!(machine.vcpu.run(), Exit::Sync(page as u64, page as u64));
        }
        machine.disable();
    }
}

/// While the flag is set, memory that could be mapped by a block is mapped by pages, so that a
/// marked page in the block stays out.
fn block_never_covers_a_marked_page() {
    let mut machine = Machine::with_thp();
    let marked = machine.slot.pages() - 1;
    let bitmap = Bitmap::new(machine.slot.pages());
    bitmap.mark(marked);
    machine.enable(&bitmap);

    for page in 0..marked as u64 {
        assert_eq!(machine.vcpu.run(), Exit::Sync(page, page));
    }
    let mappings = machine.slot.mappings();
    for mapping in &mappings {
        assert!(!mapping.is_block(), "a block: {mapping:x?}");
        assert!(
            mapping.range.end <= machine.slot.gpa(marked),
            "the marked page: {mapping:x?}"
        );
    }
    assert!(!mappings.is_empty(), "nothing is mapped");
    assert_eq!(machine.vcpu.run(), machine.userfault(marked));
}

/// When the call that sets the flag returns, what was mapped before is gone, blocks included.
fn enable_takes_mappings_away() {
    let mut machine = Machine::with_thp();
    let marked = 3;
    let bitmap = Bitmap::new(machine.slot.pages());
    bitmap.mark(marked);

    machine.read_all();
    let before = machine.slot.mappings();
    if !before.iter().any(|mapping| mapping.is_block()) {
        ktap::skip("no transparent huge page to be had");
    }

    machine.enable(&bitmap);
    let marked_gpa = machine.slot.gpa(marked);
    for mapping in machine.slot.mappings() {
        assert!(
            !mapping.range.contains(&marked_gpa),
            "still there: {mapping:x?}"
        );
    }
    for page in 0..marked as u64 {
        assert_eq!(machine.vcpu.run(), Exit::Sync(page, page));
    }
    assert_eq!(machine.vcpu.run(), machine.userfault(marked));
}

/// When the call that clears the flag returns, every mapping is still there, and later faults are
/// sized as in any other slot.
fn disable_keeps_mappings() {
    let mut machine = Machine::new(Backing::AnonymousThp, 2 * block_pages());
    machine.fill();
    let bitmap = Bitmap::new(machine.slot.pages());
    machine.enable(&bitmap);
    for page in 0..block_pages() as u64 {
        assert_eq!(machine.vcpu.run(), Exit::Sync(page, page));
    }
    let before = machine.slot.mappings();
    assert!(!before.is_empty(), "nothing is mapped");

    machine.disable();
    assert_eq!(machine.slot.mappings(), before);

    for page in block_pages() as u64..machine.slot.pages() as u64 {
        assert_eq!(machine.vcpu.run(), Exit::Sync(page, page));
    }
    if !machine
        .slot
        .mappings()
        .iter()
        .any(|mapping| mapping.is_block())
    {
        ktap::skip("no transparent huge page to be had");
    }
}

/// Ends the program where the kernel does not have the feature, after having checked that it
/// refuses the flag there.
fn needs_userfault() {
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

test_main! {
    needs: needs_userfault,
    cases: [
        interface_is_as_deployed,
        first_version_of_the_call_refuses_the_flag,
        bad_bitmap_is_refused,
        bitmap_is_not_replaced_in_place,
        marked_page_exits,
        each_page_has_its_own_bit,
        block_never_covers_a_marked_page,
        enable_takes_mappings_away,
        disable_keeps_mappings,
    ]
}
