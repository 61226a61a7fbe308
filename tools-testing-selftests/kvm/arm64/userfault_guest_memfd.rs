// SPDX-License-Identifier: GPL-2.0-only

//! Userfault on slots that are bound to a guest_memfd.
//!
//! A change of flags replaces the slot inside KVM. A failure means that the new one lost what it
//! was bound to, so that a VMM which toggles userfault loses its guest.

use libkvm::{
    fixture::{
        needs_userfault,
        Machine, //
    },
    guest,
    ktap::Finish,
    test_main,
    Backing,
    Bitmap,
    Errno,
    Exit,
    Region,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_USERFAULT, //
};
use std::{
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
    thread, //
};

const PAGES: usize = 16;
const SET: u32 = KVM_MEM_GUEST_MEMFD | KVM_MEM_USERFAULT;
const CLEAR: u32 = KVM_MEM_GUEST_MEMFD;

fn machine() -> Machine {
    let machine = Machine::new(Backing::GuestMemfd, PAGES);
    machine.fill();
    machine
}

/// Marked pages exit and others do not, before and after the flag is set, cleared and set again,
/// and the memory is always the same.
fn toggle_keeps_the_memory() {
    let mut machine = machine();
    let bitmap = Bitmap::new(PAGES);
    machine.read_all();
    for round in 0..3 {
        bitmap.mark(5);
        assert_eq!(machine.slot.set_flags(SET, Some(&bitmap)), Ok(()));
        machine.read(0..5);
        assert_eq!(machine.run(), machine.userfault(5), "round {round}");
        bitmap.clear(5);
        machine.read(5..PAGES);
        assert_eq!(machine.slot.set_flags(CLEAR, None), Ok(()));
        machine.read_all();
    }
}

/// A hole that is punched after a toggle is a hole for the guest too.
fn toggle_keeps_the_binding() {
    let mut machine = machine();
    let bitmap = Bitmap::new(PAGES);
    machine.read_all();
    assert_eq!(machine.slot.set_flags(SET, Some(&bitmap)), Ok(()));
    machine.read_all();
    machine.slot.discard(3);
    machine.read(0..3);
    assert_eq!(machine.run(), Exit::Sync(3, 0), "page 3 is still there");
    machine.read(4..PAGES);

    assert_eq!(machine.slot.set_flags(CLEAR, None), Ok(()));
    machine.slot.discard(4);
    machine.read(0..3);
    assert_eq!(machine.run(), Exit::Sync(3, 0));
    assert_eq!(machine.run(), Exit::Sync(4, 0), "page 4 is still there");
}

/// Everything but userfault stays as it is for a slot's life, and so do file and offset.
fn nothing_else_changes() {
    let mut machine = machine();
    let bitmap = Bitmap::new(PAGES);
    let region = machine.slot.region();
    let refused = |change: Region| {
        assert_eq!(
            machine.vm.set_region(&change),
            Err(Errno::EINVAL),
            "{change:x?}"
        );
    };
    let set = Region {
        flags: SET,
        userfault_bitmap: bitmap.address(),
        ..region
    };
    let moved = region.guest_phys_addr + (1 << 30);

    refused(region);
    refused(Region {
        guest_phys_addr: moved,
        ..region
    });
    refused(Region {
        flags: SET | KVM_MEM_LOG_DIRTY_PAGES,
        ..set
    });
    refused(Region {
        flags: KVM_MEM_USERFAULT,
        ..set
    });
    refused(Region {
        guest_phys_addr: moved,
        ..set
    });
    refused(Region {
        guest_memfd_offset: 1 << 16,
        ..set
    });
    let no_file = Region {
        guest_memfd: u32::MAX,
        ..set
    };
    assert_eq!(machine.vm.set_region(&no_file), Err(Errno::EBADF));

    assert_eq!(machine.slot.set_region(&set), Ok(()));
    let refused = machine.vm.set_region(&Region {
        guest_phys_addr: moved,
        ..set
    });
    assert_eq!(refused, Err(Errno::EINVAL), "moved while the flag is set");
    machine.read_all();
}

/// Toggling and punching holes while vCPUs run: none sees anything but userfaults and zeroes.
fn toggle_under_vcpus() {
    let mut machine = Machine::with_guest(Backing::GuestMemfd, PAGES, 2, guest::hunt_zero);
    machine.fill();
    let bitmap = Bitmap::new(PAGES);
    bitmap.mark(0);

    let finished = AtomicBool::new(false);
    let (slot, ended, bitmap) = (&machine.slot, &finished, &bitmap);
    thread::scope(|scope| {
        for vcpu in &mut machine.vcpus {
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    match vcpu.run() {
                        Exit::Userfault { .. } => thread::yield_now(),
                        // Pages that are not marked may be punched away, and page 0 holds a 0.
                        Exit::Sync(_, 0) => {}
                        other => panic!("unexpected exit: {other:x?}"),
                    }
                }
            });
        }
        let _finish = Finish(&finished);
        for round in 0..200 {
            assert_eq!(slot.set_flags(SET, Some(bitmap)), Ok(()));
            slot.discard(1 + round % (PAGES - 1));
            assert_eq!(slot.set_flags(CLEAR, None), Ok(()));
        }
    });
}

/// A file that is closed takes the memory away from the guest, toggled or not, and nothing else
/// breaks.
fn file_may_be_closed() {
    for toggled in [false, true] {
        let mut machine = machine();
        let bitmap = Bitmap::new(PAGES);
        machine.read_all();
        if toggled {
            assert_eq!(machine.slot.set_flags(SET, Some(&bitmap)), Ok(()));
            machine.read_all();
        }
        machine.slot.close_guest_memfd();
        match machine.run() {
            Exit::MemoryFault { flags: 0, .. } => {}
            other => panic!("unexpected exit: {other:x?}"),
        }
        let flags = if toggled { CLEAR } else { SET };
        let toggle = machine.slot.set_flags(flags, Some(&bitmap));
        assert_eq!(toggle, Err(Errno::EBADF), "toggled what is gone");
    }
}

test_main! {
    needs: needs_userfault,
    cases: [
        toggle_keeps_the_memory,
        toggle_keeps_the_binding,
        nothing_else_changes,
        toggle_under_vcpus,
        file_may_be_closed,
    ]
}
