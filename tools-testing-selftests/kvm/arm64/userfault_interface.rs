// SPDX-License-Identifier: GPL-2.0-only

//! The interface of userfault: numbers, capability, and what the calls refuse.
//!
//! A failure means that a VMM which works with another kernel would not work with this one, or
//! that a mistake of a VMM goes unnoticed.

use libkvm::{
    allow_tagged_pointers,
    fixture::{
        needs_userfault,
        Machine,
        GPA,
        SLOT, //
    },
    guest,
    host_page_size,
    ktap,
    test_main,
    Area,
    Backing,
    BareVm,
    Bitmap,
    Errno,
    Region,
    Region1,
    Vm,
    KVM_CAP_USERFAULT,
    KVM_MEMORY_EXIT_FLAG_USERFAULT,
    KVM_MEM_USERFAULT, //
};
use std::mem::{
    offset_of,
    size_of, //
};

/// The numbers that VMMs are built with never change, and the capability says that they work.
fn numbers_are_as_deployed() {
    assert_eq!(KVM_MEM_USERFAULT, 1 << 3);
    assert_eq!(KVM_MEMORY_EXIT_FLAG_USERFAULT, 1 << 4);
    assert_eq!(size_of::<Region>(), 160);
    assert_eq!(offset_of!(Region, userfault_bitmap), 48);

    let machine = Machine::new(Backing::Anonymous, 16);
    assert_eq!(machine.vm.capability(KVM_CAP_USERFAULT), 1);
    let enabled = machine.vm.enable_capability(KVM_CAP_USERFAULT, 0);
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

    // Tagged pointers are refused even by a kernel that takes them elsewhere.
    if let Err(error) = allow_tagged_pointers() {
        ktap::diagnostic(&format!("no tagged pointers in this kernel: {error:?}"));
    }
    let bad = [
        bitmap.address() | (1 << 56),
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

/// Describes a slot of its own memory that has the flag.
fn userfault_region(memory: &Area, userfault_bitmap: u64) -> Region {
    Region {
        slot: SLOT,
        flags: KVM_MEM_USERFAULT,
        guest_phys_addr: GPA,
        memory_size: memory.len() as u64,
        userspace_addr: memory.address(),
        userfault_bitmap,
        ..Default::default()
    }
}

/// A bad bitmap is refused for a new slot too, and no slot is left behind.
fn bad_bitmap_creates_no_slot() {
    let (vm, _) = Vm::new(1, 16, guest::read_pages);
    let memory = Area::new(16);
    let region = userfault_region(&memory, u64::MAX);
    assert_eq!(vm.set_region(&region), Err(Errno::EINVAL));
    let gone = Region {
        memory_size: 0,
        ..region
    };
    assert_eq!(
        vm.set_region(&gone),
        Err(Errno::EINVAL),
        "deleted what was not there"
    );
}

/// Without the flag the field is not looked at, nor is it when a slot is deleted.
fn field_is_ignored_where_it_has_no_meaning() {
    let mut machine = Machine::new(Backing::Anonymous, 16);
    machine.fill();
    let set = machine.slot.set_region(&Region {
        userfault_bitmap: u64::MAX,
        ..machine.slot.region()
    });
    assert_eq!(set, Ok(()));
    machine.read_all();

    let deleted = machine.vm.set_region(&Region {
        flags: KVM_MEM_USERFAULT,
        memory_size: 0,
        userfault_bitmap: u64::MAX,
        ..machine.slot.region()
    });
    assert_eq!(deleted, Ok(()));
    assert_eq!(machine.vm.set_region(&machine.slot.region()), Ok(()));
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
    assert_eq!(machine.run(), machine.userfault(0));

    machine.disable();
    machine.enable(&clear);
    machine.read_all();
}

/// A slot moves with its flag and its bitmap; it cannot take another bitmap on the way.
fn moved_slot_keeps_its_bitmap() {
    let mut machine = Machine::new(Backing::Anonymous, 16);
    let (bitmap, other) = (Bitmap::marked(16), Bitmap::new(16));
    machine.fill();
    machine.enable(&bitmap);

    let moved = Region {
        guest_phys_addr: GPA + (16 * host_page_size()) as u64,
        ..machine.slot.region()
    };
    let refused = machine.vm.set_region(&Region {
        userfault_bitmap: other.address(),
        ..moved
    });
    assert_eq!(refused, Err(Errno::EINVAL));
    assert_eq!(machine.run(), machine.userfault(0));

    assert_eq!(machine.vm.set_region(&moved), Ok(()));
    assert_eq!(
        machine.vm.set_region(&machine.slot.region()),
        Ok(()),
        "moved back"
    );
    assert_eq!(machine.run(), machine.userfault(0));
    bitmap.clear(0);
    machine.read(0..1);
    assert_eq!(machine.run(), machine.userfault(1));
}

/// A VM whose memory the host cannot take away does not get the flag.
fn protected_vm_is_refused() {
    let vm = match BareVm::protected() {
        Ok(vm) => vm,
        Err(error) => ktap::skip(format!("no protected VMs on this host: {error:?}")),
    };
    let memory = Area::new(16);
    let bitmap = Bitmap::new(16);
    let region = userfault_region(&memory, bitmap.address());
    assert_eq!(vm.set_region(&region), Err(Errno::EPERM));
    let plain = Region { flags: 0, ..region };
    assert_eq!(vm.set_region(&plain), Ok(()));
    assert_eq!(vm.set_region(&region), Err(Errno::EPERM), "set later");
}

test_main! {
    needs: needs_userfault,
    cases: [
        numbers_are_as_deployed,
        first_version_of_the_call_refuses_the_flag,
        bad_bitmap_is_refused,
        bad_bitmap_creates_no_slot,
        field_is_ignored_where_it_has_no_meaning,
        bitmap_is_not_replaced_in_place,
        moved_slot_keeps_its_bitmap,
        protected_vm_is_refused,
    ]
}
