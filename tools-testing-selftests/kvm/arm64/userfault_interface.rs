// SPDX-License-Identifier: GPL-2.0-only

//! The interface of userfault: numbers, capability, and what the calls refuse.
//!
//! A failure means that a VMM which works with another kernel would not work with this one, or
//! that a mistake of a VMM goes unnoticed.

use libkvm::*;

const PAGES: usize = 16;

/// Where a slot is moved to.
const ELSEWHERE: Gpa = Gpa(3 << 30);

fn machine() -> Machine {
    let machine = Machine::new(Backing::Anonymous, PAGES);
    machine.slot.fill();
    machine
}

/// Sets the flag, with a bitmap that is somewhere.
fn set_flag(slot: &Slot, bitmap: u64) -> Result<(), Errno> {
    let region = slot.region().flags(KVM_MEM_USERFAULT);
    region.bitmap_at(Hva(bitmap)).set_unguarded()
}

/// The numbers that VMMs are built with never change, and the capability says that they work.
fn numbers_are_as_deployed() {
    expect_eq!(KVM_MEM_USERFAULT, 1 << 3);
    expect_eq!(KVM_MEMORY_EXIT_FLAG_USERFAULT, 1 << 4);
    expect_eq!(Region::SIZE, 160);
    expect_eq!(Region::OFFSET_OF_USERFAULT_BITMAP, 48);

    let machine = machine();
    expect_eq!(system_capability(KVM_CAP_USERFAULT), 1);
    expect_eq!(machine.vm.capability(KVM_CAP_USERFAULT), 1);
    let enabled = machine.vm.enable_capability(KVM_CAP_USERFAULT, 0);
    expect_eq!(enabled, Err(Errno::EINVAL));
}

/// The first version of the call has no place for a bitmap, so it refuses the flag.
fn first_version_of_the_call_refuses_the_flag() {
    let machine = machine();
    let set = machine.slot.region().flags(KVM_MEM_USERFAULT).set1();
    expect_eq!(set, Err(Errno::EINVAL));
}

/// The first version of the call gives all flags anew, so it clears this one.
fn first_version_of_the_call_clears_the_flag() {
    let mut machine = machine();
    let bitmap = Bitmap::marked(PAGES);
    let _flag = machine.enable(&bitmap);
    expect_eq!(machine.run(), machine.userfault(Page(0)));
    expect_eq!(machine.slot.region().flags(0).set1(), Ok(()));
    machine.read_all();
}

/// A bitmap that can never be one is refused, and the slot stays as it was.
fn bad_bitmap_is_refused() {
    let mut machine = machine();
    let bitmap = Bitmap::marked(PAGES);

    // Tagged pointers are refused even by a kernel that takes them elsewhere.
    if let Err(error) = allow_tagged_pointers() {
        ktap::diagnostic(&format!("no tagged pointers in this kernel: {error:?}"));
    }
    let bad = [
        bitmap.address().0 | (1 << 56),
        u64::MAX - 1,
        u64::MAX,
        1 << 55,
        0xffff_0000_0000_0000,
    ];
    for address in bad {
        let set = set_flag(&machine.slot, address);
        expect_eq!(set, Err(Errno::EINVAL), "{address:#x}");
    }
    machine.read_all();
}

/// A bitmap may end where user space does, and not a byte behind.
fn bitmap_ends_in_user_space() {
    let machine = machine();
    let set = |address| set_flag(&machine.slot, address);
    let clear = || machine.slot.region().flags(0).set();
    // 16 pages have two bytes.
    let ends_at = |bits: &u32| {
        let accepted = set((1 << bits) - 2) == Ok(());
        expect_eq!(clear(), Ok(()));
        accepted
    };
    let bits = (36..56).rev().find(ends_at).expect("no bitmap is accepted");
    let end = end_of_user_space();
    assert!(end.0 <= 1 << bits, "{end:?} is behind {bits} bits");
    expect_eq!(
        set((1 << bits) - 1),
        Err(Errno::EINVAL),
        "a byte of it is behind {bits} bits"
    );
    expect_eq!(
        set(1 << bits),
        Err(Errno::EINVAL),
        "all of it is behind {bits} bits"
    );

    // One more page takes a byte more.
    let larger = Machine::new(Backing::Anonymous, PAGES + 1).slot;
    expect_eq!(
        set_flag(&larger, (1 << bits) - 2),
        Err(Errno::EINVAL),
        "a byte for one page is behind {bits} bits"
    );
    expect_eq!(set_flag(&larger, (1 << bits) - 3), Ok(()));
}

/// A bad bitmap is refused for a new slot too, and no slot is left behind.
fn bad_bitmap_creates_no_slot() {
    let (vm, _vcpus) = Vm::new(PAGES, 1, guest::read_pages);
    let slot = Slot::undeclared(&vm, &Area::new(Backing::Anonymous, PAGES), SLOT, GPA);
    expect_eq!(set_flag(&slot, u64::MAX), Err(Errno::EINVAL));
    let deleted = slot.region().delete();
    expect_eq!(deleted, Err(Errno::EINVAL), "deleted what was not there");
}

/// Without the flag the field is not looked at, nor is it when a slot is deleted.
fn field_is_ignored_where_it_has_no_meaning() {
    let mut machine = machine();
    let set = machine.slot.region().bitmap_at(Hva(u64::MAX)).set();
    expect_eq!(set, Ok(()));
    machine.read_all();

    let region = machine.slot.region().flags(KVM_MEM_USERFAULT);
    expect_eq!(region.bitmap_at(Hva(u64::MAX)).delete(), Ok(()));
    expect_eq!(machine.slot.region().set(), Ok(()), "created again");
    machine.read_all();
}

/// A slot keeps its bitmap while it has the flag: another one is refused, the same one is fine.
fn bitmap_is_not_replaced_in_place() {
    let mut machine = machine();
    let (marked, clear) = (Bitmap::marked(PAGES), Bitmap::new(PAGES));
    let flag = machine.enable(&marked);

    let replaced = machine.slot.region().bitmap(&clear).set_unguarded();
    expect_eq!(replaced, Err(Errno::EINVAL));
    expect_eq!(
        machine.slot.region().bitmap(&marked).set_unguarded(),
        Ok(()),
        "the same"
    );
    expect_eq!(machine.run(), machine.userfault(Page(0)));

    flag.disable();
    let _flag = machine.enable(&clear);
    machine.read_all();
}

/// A slot moves with its flag and its bitmap, and may get another bitmap on the way, as nothing of
/// it stays mapped.
fn moved_slot_may_bring_another_bitmap() {
    let mut machine = machine();
    let (first, second) = (Bitmap::marked(PAGES), Bitmap::marked(PAGES));
    let _flag = machine.enable(&first);
    machine.vm.map(Gva(ELSEWHERE.0), ELSEWHERE, PAGES);
    machine.vcpus[0].set_args(Gva(ELSEWHERE.0), PAGES as u64, page_size() as u64);

    expect_eq!(machine.slot.region().at(ELSEWHERE).set_unguarded(), Ok(()));
    expect_eq!(machine.run(), Exit::userfault(ELSEWHERE));
    first.clear(Page(0));
    machine.read(0..1);
    expect_eq!(machine.run(), machine.userfault(Page(1)));

    // Back, with another bitmap, and to the other place with a third one and what it has mapped.
    let slot = machine.slot.clone();
    let back = slot.region().at(GPA).bitmap(&second).set_unguarded();
    expect_eq!(back, Ok(()));
    let third = Bitmap::new(PAGES).with(2..3);
    let there = slot.region().at(ELSEWHERE).bitmap(&third).set_unguarded();
    expect_eq!(there, Ok(()));
    machine.read(1..2);
    expect_eq!(machine.run(), machine.userfault(Page(2)));
    first.clear(Page(2));
    expect_eq!(
        machine.run(),
        machine.userfault(Page(2)),
        "by the bitmap before"
    );
    third.clear(Page(2));
    machine.read(2..PAGES);
    expect_eq!(second.is_marked(Page(0)), true);
}

/// A bad bitmap is refused when a slot is moved, which stays where it was.
fn bad_bitmap_moves_no_slot() {
    let mut machine = machine();
    let bitmap = Bitmap::marked(PAGES);
    let _flag = machine.enable(&bitmap);
    let moved = machine.slot.region().at(ELSEWHERE).bitmap_at(Hva(u64::MAX));
    expect_eq!(moved.set_unguarded(), Err(Errno::EINVAL));
    expect_eq!(machine.run(), machine.userfault(Page(0)));
    bitmap.clear(Page(0));
    machine.read(0..1);
}

/// A VM whose memory the host cannot take away does not get the flag.
fn protected_vm_is_refused() {
    let vm = Vm::protected();
    let slot = Slot::undeclared(&vm, &Area::new(Backing::Anonymous, PAGES), SLOT, GPA);
    let bitmap = Bitmap::new(PAGES);
    let with_flag = || slot.region().flags(KVM_MEM_USERFAULT).bitmap(&bitmap);
    expect_eq!(with_flag().set_unguarded(), Err(Errno::EPERM));
    expect_eq!(slot.region().flags(0).set(), Ok(()));
    expect_eq!(with_flag().set_unguarded(), Err(Errno::EPERM), "set later");
}

test_main! {
    about: "The interface of userfault: numbers, capability, and what the calls refuse.",
    needs: needs_userfault,
    cases: [
        numbers_are_as_deployed,
        first_version_of_the_call_refuses_the_flag,
        first_version_of_the_call_clears_the_flag,
        bad_bitmap_is_refused,
        bitmap_ends_in_user_space,
        bad_bitmap_creates_no_slot,
        field_is_ignored_where_it_has_no_meaning,
        bitmap_is_not_replaced_in_place,
        moved_slot_may_bring_another_bitmap,
        bad_bitmap_moves_no_slot,
        protected_vm_is_refused,
    ],
}
