// SPDX-License-Identifier: GPL-2.0-only

//! Which accesses exit, and what the exit says.
//!
//! A failure means that a guest would see memory that is not there yet, or that a VMM would supply
//! the wrong page.

use libkvm::{
    fixture::{
        needs_userfault,
        Machine, //
    },
    guest,
    host_page_size,
    test_main,
    Access,
    Area,
    Backing,
    Bitmap,
    Errno,
    Exit, //
};

/// An access to a marked page exits, as often as it is tried, and sees the page that was supplied
/// before the mark was cleared. Nothing is mapped meanwhile.
fn marked_page_exits() {
    let mut machine = Machine::new(Backing::Anonymous, 19);
    let bitmap = Bitmap::marked(19);
    machine.enable(&bitmap);

    for page in 0..19 {
        let mapped = machine.mappings();
        assert_eq!(machine.run(), machine.userfault(page));
        assert_eq!(machine.run(), machine.userfault(page), "second try");
        assert_eq!(machine.mappings(), mapped);

        machine.slot.write(page, 0, 100 + page as u64);
        bitmap.clear(page);
        assert_eq!(machine.run(), Exit::Sync(page as u64, 100 + page as u64));
    }
}

/// A store exits as a load does, and is executed anew.
fn store_exits() {
    let mut machine = Machine::with_guest(Backing::Anonymous, 4, 1, guest::write_pages);
    let bitmap = Bitmap::marked(4);
    machine.enable(&bitmap);

    for page in 0..4 {
        machine.slot.write(page, 0, 100);
        assert_eq!(machine.run(), machine.userfault(page));
        assert_eq!(machine.slot.read(page, 0), 100, "written while marked");
        bitmap.clear(page);
        assert_eq!(machine.run(), Exit::Sync(page as u64, page as u64));
        assert_eq!(machine.slot.read(page, 0), page as u64);
    }
}

/// Loads, stores, exclusives, pairs, vectors, cache maintenance and instruction fetches exit
/// alike, and are executed anew.
fn every_kind_of_access_exits() {
    let mut machine = Machine::with_guest(
        Backing::Anonymous,
        guest::WAYS,
        1,
        guest::access_in_all_ways,
    );
    for way in 0..guest::WAYS {
        machine.slot.write(way, 0, guest::RET);
    }
    let bitmap = Bitmap::marked(guest::WAYS);
    machine.enable(&bitmap);

    for way in 0..guest::WAYS {
        assert_eq!(machine.run(), machine.userfault(way), "way {way}");
        assert_eq!(
            machine.run(),
            machine.userfault(way),
            "way {way}, second try"
        );
        bitmap.clear(way);
        match machine.run() {
            Exit::Sync(page, _) => assert_eq!(page, way as u64),
            other => panic!("way {way}: {other:x?}"),
        }
    }
}

/// The MMU's own accesses to the guest's page tables exit as well.
fn walk_of_stage_1_exits() {
    const FAR: u64 = 1 << 40;
    let mut machine = Machine::new(Backing::Anonymous, 64);
    machine.slot.write(0, 0, 0);
    machine
        .vm
        .map_with_tables_in(&machine.slot, FAR, machine.slot.gpa(63));
    machine.slot.write(63, 0, 7);
    machine.vcpus[0].set_args([FAR, 1, host_page_size() as u64]);
    let bitmap = Bitmap::marked(64);
    machine.enable(&bitmap);

    let mut tables = 0;
    loop {
        match machine.run() {
            exit if exit == machine.userfault(63) => break,
            Exit::Userfault { gpa, .. } => {
                tables += 1;
                assert!(
                    bitmap.clear(machine.slot.page_of(gpa)),
                    "twice for {gpa:#x}"
                );
            }
            other => panic!("unexpected exit: {other:x?}"),
        }
    }
    assert!(tables > 0, "no table exited");
    bitmap.clear(63);
    assert_eq!(machine.run(), Exit::Sync(0, 7));
}

/// Each page exits or not by its own bit, in slots whose bitmaps end in the middle of a byte or of
/// a word, or at the end of one.
fn each_page_has_its_own_bit() {
    for pages in [1, 7, 8, 9, 63, 64, 65] {
        let mut machine = Machine::new(Backing::Anonymous, pages);
        machine.fill();
        for marked in [0, 1, 6, 7, 8, 9, 31, 32, 62, 63, 64] {
            if marked >= pages {
                continue;
            }
            let bitmap = Bitmap::new(pages);
            bitmap.mark(marked);
            machine.enable(&bitmap);
            machine.read(0..marked);
            assert_eq!(machine.run(), machine.userfault(marked), "{pages} pages");
            bitmap.clear(marked);
            machine.read(marked..pages);
            machine.disable();
        }
    }
}

/// The bitmap may be anywhere, at any alignment, shared or read-only, and not a byte behind it is
/// touched: the area ends there.
fn bitmap_may_be_anywhere() {
    let pages = 19;
    for area in [Area::new(1), Area::shared(1)] {
        let mut machine = Machine::new(Backing::Anonymous, pages);
        machine.fill();
        for offset in [0, 1, 3, host_page_size() - pages.div_ceil(8)] {
            let bitmap = Bitmap::within(&area, offset, pages);
            bitmap.mark(pages - 1);
            area.protect(Access::Read);
            machine.enable(&bitmap);
            machine.read(0..pages - 1);
            assert_eq!(
                machine.run(),
                machine.userfault(pages - 1),
                "offset {offset}"
            );
            area.protect(Access::ReadWrite);
            bitmap.clear(pages - 1);
            machine.read(pages - 1..pages);
            machine.disable();
        }
    }
}

/// Where the bitmap cannot be read KVM_RUN fails, without a claim that the page was marked, and
/// the vCPU runs on as soon as it can be read.
fn unreadable_bitmap_is_an_error() {
    let mut machine = Machine::new(Backing::Anonymous, 16);
    let area = Area::new(1);
    let bitmap = Bitmap::within(&area, 0, 16);
    machine.fill();
    machine.enable(&bitmap);
    machine.read(0..1);

    area.protect(Access::None);
    for _ in 0..2 {
        match machine.run() {
            Exit::Error { errno, .. } => assert_eq!(errno, Errno::EFAULT),
            other => panic!("not a plain error: {other:x?}"),
        }
    }
    area.protect(Access::ReadWrite);
    machine.read(1..16);
}

/// Several vCPUs may ask for the same page, and each gets what was supplied.
fn vcpus_share_a_page() {
    let mut machine = Machine::with_guest(Backing::Anonymous, 2, 3, guest::read_pages);
    let bitmap = Bitmap::marked(2);
    machine.enable(&bitmap);

    let userfault = machine.userfault(0);
    for vcpu in &mut machine.vcpus {
        assert_eq!(vcpu.run(), userfault);
    }
    machine.slot.write(0, 0, 7);
    bitmap.clear(0);
    for vcpu in &mut machine.vcpus {
        assert_eq!(vcpu.run(), Exit::Sync(0, 7));
    }
}

/// Exits are counted for each vCPU.
fn exits_are_counted() {
    let mut machine = Machine::new(Backing::Anonymous, 4);
    let bitmap = Bitmap::marked(4);
    machine.enable(&bitmap);
    for _ in 0..5 {
        assert_eq!(machine.run(), machine.userfault(0));
    }
    assert_eq!(machine.vcpus[0].stat(c"userfault_exits"), 5);
    bitmap.clear(0);
    assert_eq!(machine.run(), Exit::Sync(0, 0));
    assert_eq!(machine.vcpus[0].stat(c"userfault_exits"), 5);
}

test_main! {
    needs: needs_userfault,
    cases: [
        marked_page_exits,
        store_exits,
        every_kind_of_access_exits,
        walk_of_stage_1_exits,
        each_page_has_its_own_bit,
        bitmap_may_be_anywhere,
        unreadable_bitmap_is_an_error,
        vcpus_share_a_page,
        exits_are_counted,
    ]
}
