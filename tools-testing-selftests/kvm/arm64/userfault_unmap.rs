// SPDX-License-Identifier: GPL-2.0-only

//! What setting the flag takes away: what is mapped of marked pages, and little else.
//!
//! A failure means that a page which was marked in time is still within reach of the guest, or
//! that the guest has to have pages mapped again that nobody marked.

use libkvm::{
    fixture::{
        need_block,
        need_mappings,
        needs_userfault,
        Machine, //
    },
    host_page_size,
    test_main,
    Access,
    Area,
    Backing,
    Bitmap,
    Mapping,
    Region, //
};
use std::{
    ops::Range,
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
    thread, //
};

/// Returns which pages of the slot are mapped.
fn mapped(machine: &Machine) -> Vec<usize> {
    let pages = |mapping: Mapping| {
        let Range { start, end } = mapping.range;
        machine.slot.page_of(start)..machine.slot.page_of(end)
    };
    need_mappings(machine.mappings())
        .into_iter()
        .flat_map(pages)
        .collect()
}

/// Creates a machine that has all pages of its slot mapped.
fn all_mapped(backing: Backing, pages: usize) -> Machine {
    let mut machine = Machine::new(backing, pages);
    machine.fill();
    machine.read_all();
    machine
}

/// Marked pages go and others stay, wherever runs of marks begin and end: the parts of the bitmap
/// that KVM looks at together make no difference.
fn marked_pages_go_and_others_stay() {
    let mut machine = all_mapped(Backing::Anonymous, 2100);
    let pages = machine.slot.pages();

    let cases: [(&str, &dyn Fn(usize) -> bool); 4] = [
        ("first and last page", &|page| {
            page == 0 || page == pages - 1
        }),
        ("runs in and across words", &|page| {
            (7..9).contains(&page) || (63..65).contains(&page) || (1000..1200).contains(&page)
        }),
        ("run across parts", &|page| (2040..2056).contains(&page)),
        ("all but three", &|page| page >= 3),
    ];
    for (what, is_marked) in cases {
        let bitmap = Bitmap::new(pages);
        for page in (0..pages).filter(|&page| is_marked(page)) {
            bitmap.mark(page);
        }
        machine.enable(&bitmap);
        let expected: Vec<usize> = (0..pages).filter(|&page| !is_marked(page)).collect();
        assert_eq!(mapped(&machine), expected, "{what}");

        for page in 0..pages {
            if bitmap.is_marked(page) {
                assert_eq!(machine.run(), machine.userfault(page));
                bitmap.clear(page);
            }
            machine.read(page..page + 1);
        }
        machine.disable();
    }
}

/// A block that has a marked page goes as a whole, and its neighbour stays.
fn blocks_with_a_mark_go() {
    let size = Backing::AnonymousThp.pages_per_page();
    let mut machine = all_mapped(Backing::AnonymousThp, 2 * size);
    need_block(machine.mappings());
    let bitmap = Bitmap::new(2 * size);
    bitmap.mark(size + 1);

    machine.enable(&bitmap);
    assert_eq!(mapped(&machine), (0..size).collect::<Vec<usize>>());
    machine.read(0..size + 1);
    assert_eq!(machine.run(), machine.userfault(size + 1));
}

/// Where marks are everywhere, no marked page stays.
fn many_short_runs_go() {
    let mut machine = all_mapped(Backing::Anonymous, 2100);
    for distance in [2, 3, 5] {
        let bitmap = Bitmap::new(machine.slot.pages());
        for page in (0..machine.slot.pages()).step_by(distance) {
            bitmap.mark(page);
        }
        machine.enable(&bitmap);
        assert!(!mapped(&machine)
            .into_iter()
            .any(|page| bitmap.is_marked(page)));
        machine.disable();
        machine.read_all();
    }
}

/// Parts of stage 2 without a table are passed over, but nothing behind them is, wherever the slot
/// begins: here within what one table maps.
fn hole_does_not_hide_what_follows() {
    // A table has as many entries, of 8 bytes, as fit in a page.
    let entries = host_page_size() / 8;
    let (first, mapped_page) = (3, entries);
    let mut machine = Machine::new(Backing::Anonymous, 2 * entries);
    let bytes = (first * host_page_size()) as u64;
    let whole = machine.slot.region();
    let region = Region {
        guest_phys_addr: whole.guest_phys_addr + bytes,
        userspace_addr: whole.userspace_addr + bytes,
        memory_size: whole.memory_size - bytes,
        ..whole
    };
    assert_eq!(machine.vm.recreate(&machine.slot, region), Ok(()));
    let page_size = host_page_size() as u64;
    machine.vcpus[0].set_args([machine.slot.gpa(mapped_page), 1, page_size]);
    machine.read(0..1);
    assert_eq!(mapped(&machine), [mapped_page]);

    let bitmap = Bitmap::marked(2 * entries - first);
    machine.enable(&bitmap);
    assert_eq!(mapped(&machine), []);
    assert_eq!(machine.run(), machine.userfault(mapped_page));
}

/// A bitmap that cannot be read may have any mark, so all pages go, and the call succeeds.
fn all_pages_go_if_the_bitmap_is_unreadable() {
    let machine = all_mapped(Backing::Anonymous, 64);
    let area = Area::new(1);
    let bitmap = Bitmap::within(&area, 0, 64);
    area.protect(Access::None);
    machine.enable(&bitmap);
    assert_eq!(mapped(&machine), []);
}

/// A mark that is there before the call and until its end counts, whatever becomes of others
/// meanwhile, those in the same byte included.
fn marks_count_that_last_through_the_call() {
    let mut machine = all_mapped(Backing::Anonymous, 2100);
    let pages = machine.slot.pages();
    let bitmap = Bitmap::new(pages);
    for page in (0..pages).step_by(8) {
        bitmap.mark(page);
    }

    for _ in 0..20 {
        let (started, finished) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !finished.load(Ordering::Relaxed) {
                    for page in (4..pages).step_by(8) {
                        bitmap.mark(page);
                    }
                    for page in (4..pages).step_by(8) {
                        bitmap.clear(page);
                    }
                    started.store(true, Ordering::Relaxed);
                }
            });
            while !started.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            machine.enable(&bitmap);
            finished.store(true, Ordering::Relaxed);
        });
        assert!(!mapped(&machine).into_iter().any(|page| page % 8 == 0));
        machine.disable();
        machine.read_all();
    }
}

test_main! {
    needs: needs_userfault,
    cases: [
        marked_pages_go_and_others_stay,
        blocks_with_a_mark_go,
        many_short_runs_go,
        hole_does_not_hide_what_follows,
        all_pages_go_if_the_bitmap_is_unreadable,
        marks_count_that_last_through_the_call,
    ]
}
