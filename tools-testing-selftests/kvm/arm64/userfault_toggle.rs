// SPDX-License-Identifier: GPL-2.0-only

//! What setting and clearing the flag does to what is mapped.
//!
//! A failure means that a page which was marked in time is still within reach of the guest, or
//! that the guest has to have pages mapped again for no reason.

use libkvm::*;
use std::{
    sync::atomic::{
        AtomicBool,
        AtomicUsize,
        Ordering, //
    },
    thread, //
};

/// Creates a machine that has all pages of its slot mapped.
fn all_mapped(backing: Backing, count: usize) -> Machine {
    let mut machine = Machine::new(backing, count);
    machine.slot.fill();
    machine.read_all();
    machine
}

/// Returns the pages of a bitmap that are marked, or those that are not.
fn with_mark(bitmap: &Bitmap, marked: bool) -> Vec<Page> {
    let alike = |page: &Page| bitmap.is_marked(*page) == marked;
    pages(0..bitmap.pages()).filter(alike).collect()
}

/// When the call that sets the flag returns, a page that was marked before exits, whatever was
/// mapped, here a block.
fn enable_takes_marked_pages_away() {
    for marked in [0, 3] {
        let mut machine = Machine::with_huge_pages(Backing::AnonymousThp, 1);
        machine.read_all();
        let bitmap = Bitmap::new(machine.slot.pages()).with(marked..marked + 1);
        let _flag = machine.enable(&bitmap);
        machine.read(0..marked);
        expect_eq!(machine.run(), machine.userfault(Page(marked)));
    }
}

/// The same in a slot behind which there are no more addresses.
fn slot_at_the_end_of_all_addresses() {
    const END: Gpa = Gpa(1 << 40);
    Vm::need_addresses(END);
    let gpa = Gpa(END.0 - Bytes::of_pages(16).0);
    let (mut vm, vcpus) = Vm::new(16, 1, guest::read_pages);
    let slot = Slot::new(&mut vm, Backing::Anonymous, SLOT, gpa, 16);
    slot.fill();
    let mut machine = Machine::of_slot((vm, vcpus), slot);
    machine.read_all();
    let bitmap = Bitmap::new(16).with(3..4);
    let _flag = machine.enable(&bitmap);
    machine.read(0..3);
    expect_eq!(machine.run(), machine.userfault(Page(3)));
}

/// The same, seen in stage 2, for marks of all kinds.
fn no_marked_page_stays_mapped() {
    let mut machine = all_mapped(Backing::Anonymous, 2100);
    let count = machine.slot.pages();
    for distance in [1, 2, 3, 5, 64, 2099] {
        let bitmap = Bitmap::new(count);
        (0..count)
            .step_by(distance)
            .for_each(|page| bitmap.mark(Page(page)));
        let _flag = machine.enable(&bitmap);
        let mapped = machine.slot.mapped();
        let marked = mapped.iter().find(|page| bitmap.is_marked(**page));
        expect_eq!(marked, None, "every {distance}th page is marked");
        for page in with_mark(&bitmap, true) {
            bitmap.clear(page);
        }
        machine.read_all();
    }
}

/// Marked pages go and others stay, wherever runs of marks begin and end: the parts of the bitmap
/// that KVM looks at together make no difference.
fn marked_pages_go_and_others_stay() {
    let mut machine = all_mapped(Backing::Anonymous, 2100);
    let count = machine.slot.pages();
    for (what, bitmap) in [
        ("no page", Bitmap::new(count)),
        (
            "first and last",
            Bitmap::new(count).with(0..1).with(count - 1..count),
        ),
        (
            "in and across words",
            Bitmap::new(count).with(7..9).with(63..65),
        ),
        ("a long run", Bitmap::new(count).with(1000..1200)),
        ("across parts", Bitmap::new(count).with(2040..2056)),
        ("all but three", Bitmap::new(count).with(3..count)),
    ] {
        let _flag = machine.enable(&bitmap);
        expect_eq!(machine.slot.mapped(), with_mark(&bitmap, false), "{what}");
        for page in pages(0..count) {
            if bitmap.is_marked(page) {
                expect_eq!(machine.run(), machine.userfault(page), "{what}");
                bitmap.clear(page);
            }
            machine.read(page.0..page.0 + 1);
        }
    }
}

/// The same as the guest sees it, which runs where nothing else shows stage 2.
fn runs_of_marked_pages_exit() {
    let mut machine = all_mapped(Backing::Anonymous, 2100);
    let bitmap = Bitmap::new(2100)
        .with(7..9)
        .with(63..65)
        .with(1000..1200)
        .with(2040..2056);
    let _flag = machine.enable(&bitmap);
    for page in pages(0..2100) {
        if bitmap.is_marked(page) {
            expect_eq!(machine.run(), machine.userfault(page));
            bitmap.clear(page);
        }
        machine.read(page.0..page.0 + 1);
    }
}

/// A block that has a marked page goes as a whole, be it the first, and its neighbour stays.
fn blocks_with_a_mark_go() {
    let mut machine = Machine::with_huge_pages(Backing::AnonymousThp, 2);
    let size = machine.slot.pages() / 2;
    for marked in [size, size + 1, 2 * size - 1] {
        machine.read_all();
        expect_eq!(machine.slot.in_blocks().len(), 2 * size);
        let bitmap = Bitmap::new(2 * size).with(marked..marked + 1);
        let _flag = machine.enable(&bitmap);
        expect_eq!(machine.slot.mapped(), pages(0..size).collect::<Vec<_>>());
        machine.read(0..marked);
        expect_eq!(machine.run(), machine.userfault(Page(marked)));
        bitmap.clear(Page(marked));
        machine.read(marked..2 * size);
    }
}

/// Returns the number of pages that a table maps, and a guest address so many pages before one
/// where KVM begins a new step, with pages of any size.
fn before_a_step() -> (usize, Gpa) {
    // A table has as many entries, of 8 bytes, as fit in a page.
    let entries = page_size() / 8;
    (entries, Gpa((2 << 30) - Bytes::of_pages(entries).0))
}

/// The first page that is mapped goes, whatever lies before it: marks of all pages or of every
/// second, in the step in which KVM unmaps it or, with pages of 4K, in one of its own: a larger
/// page has a table that is a step.
fn hole_does_not_hide_what_follows() {
    let (entries, across) = before_a_step();
    let (first, mapped) = (3, Page(entries));
    let count = 2 * entries;
    for (gpa, distance) in [(GPA, 1), (GPA, 2), (across, 1), (across, 2)] {
        let (mut vm, vcpus) = Vm::new(count, 1, guest::read_pages);
        let slot = Slot::new(&mut vm, Backing::Anonymous, SLOT, gpa, count);
        let mut machine = Machine::of_slot((vm, vcpus), slot);
        let part = machine.slot.region().part(first..count);
        expect_eq!(machine.slot.region().delete(), Ok(()));
        expect_eq!(part.set(), Ok(()));
        let address = Gva(machine.slot.gpa(mapped).0);
        machine.vcpus[0].set_args(address, 1, page_size() as u64);
        machine.read(0..1);
        expect_eq!(machine.slot.mapped(), [mapped]);

        let bitmap = Bitmap::new(count - first);
        for page in (0..count - first).step_by(distance) {
            bitmap.mark(Page(page));
        }
        let _flag = machine.enable(&bitmap);
        expect_eq!(machine.slot.mapped(), [], "{gpa:?}, every {distance}th");
        expect_eq!(machine.run(), machine.userfault(mapped));
    }
}

/// What cannot be read of the bitmap may have any mark, so all pages go whose bit is there, and
/// those that are marked where it can be read; the call succeeds.
fn pages_go_whose_bit_is_unreadable() {
    let count = 4200;
    let mut machine = all_mapped(Backing::Anonymous, count);
    let area = Area::new(Backing::Anonymous, 2);
    for readable in [0, 1, 255, 256, 257, 511, 512, 524] {
        let bitmap = Bitmap::within(&area, page_size() - readable, count);
        // Nothing is marked but the first and the last page whose bits can be read.
        area.protect(Access::ReadWrite);
        let marked = [Page(0), Page((readable * 8).min(count).saturating_sub(1))];
        if readable != 0 {
            marked.map(|page| bitmap.mark(page));
        }
        area.protect_pages(1..2, Access::None);
        let flag = machine.enable(&bitmap);
        let expected = |page: &Page| page.0 < readable * 8 && !marked.contains(page);
        let mapped = machine.slot.mapped();
        let wrong = mapped.iter().find(|page| !expected(page));
        expect_eq!(wrong, None, "{readable} bytes can be read");
        if readable != 0 {
            expect_eq!(machine.run(), machine.userfault(Page(0)));
        } else {
            expect_eq!(machine.run(), Exit::Error(Errno::EFAULT));
        }
        flag.disable();
        area.protect(Access::ReadWrite);
        marked.map(|page| bitmap.clear(page));
        machine.read_all();
    }
}

/// The same where the bits of a later step are unreadable: what the first step has read counts.
fn pages_of_a_later_step_go_whose_bit_is_unreadable() {
    let (entries, gpa) = before_a_step();
    let (mut vm, vcpus) = Vm::new(2 * entries, 1, guest::read_pages);
    let slot = Slot::new(&mut vm, Backing::Anonymous, SLOT, gpa, 2 * entries);
    let mut machine = Machine::of_slot((vm, vcpus), slot);
    // Two pages in each step.
    let mapped = [0, entries / 2, entries, entries + entries / 2].map(Page);
    let stride = Bytes::of_pages(entries / 2).0;
    machine.vcpus[0].set_args(Gva(gpa.0), 4, stride);
    (0..4).for_each(|page| expect_eq!(machine.run(), Exit::Sync(page, 0)));
    expect_eq!(machine.slot.mapped(), mapped);

    let area = Area::new(Backing::Anonymous, 2);
    let readable = entries / 8;
    let bitmap = Bitmap::within(&area, page_size() - readable, 2 * entries).with(0..1);
    area.protect_pages(1..2, Access::None);
    let _flag = machine.enable(&bitmap);
    expect_eq!(machine.slot.mapped(), mapped[1..2]);
}

/// As [`pages_go_whose_bit_is_unreadable`], seen by the guest when the bitmap can be read again.
fn page_exits_whose_bit_was_unreadable() {
    let mut machine = all_mapped(Backing::Anonymous, 16);
    let area = Area::new(Backing::Anonymous, 1);
    let bitmap = Bitmap::within(&area, 0, 16).with(3..4);
    area.protect(Access::None);
    let _flag = machine.enable(&bitmap);
    area.protect(Access::ReadWrite);
    machine.read(0..3);
    expect_eq!(machine.run(), machine.userfault(Page(3)));
}

/// A step that is all of the slot's, and begins with a page whose bit is within a byte, is like any
/// other: what is not marked stays.
fn whole_step_that_begins_within_a_byte() {
    let (entries, first) = (before_a_step().0, 3);
    let step = if page_size() == 4096 {
        entries * entries
    } else {
        entries
    };
    let gpa = Gpa((2 << 30) - Bytes::of_pages(first).0);
    let (mut vm, vcpus) = Vm::new(16, 1, guest::read_pages);
    let area = Area::new(Backing::Anonymous, first + step);
    let slot = Slot::undeclared(&vm, &area, SLOT, gpa);
    expect_eq!(slot.region().set(), Ok(()));
    vm.map(Gva(gpa.0), gpa, 8);
    let mut machine = Machine::of_slot((vm, vcpus), slot);
    machine.vcpus[0].set_args(Gva(gpa.0), 8, page_size() as u64);
    pages(0..8).for_each(|page| machine.slot.write(page, 0, page.into()));
    machine.read(0..8);
    let bitmap = Bitmap::new(first + step).with(5..6);
    let _flag = machine.enable(&bitmap);
    expect_eq!(machine.slot.mapped(), [0, 1, 2, 3, 4, 6, 7].map(Page));
}

/// Other slots stay as they are, also where all of one goes.
fn other_slots_stay_mapped() {
    let (mut vm, mut vcpus) = Vm::new(32, 1, guest::read_pages);
    let [slot, next] = [0, 16].map(|page| {
        let (id, gpa) = (SLOT + page as u32, GPA + Bytes::of_pages(page));
        Slot::new(&mut vm, Backing::Anonymous, id, gpa, 16)
    });
    vcpus[0].set_args(Gva(GPA.0), 32, page_size() as u64);
    (0..32).for_each(|page| expect_eq!(vcpus[0].run(), Exit::Sync(page, 0)));
    let area = Area::new(Backing::Anonymous, 1);
    area.protect(Access::None);
    let bitmap = Bitmap::within(&area, 0, 16);
    let _flag = slot.enable(&bitmap);
    expect_eq!(slot.mapped(), []);
    expect_eq!(next.mapped(), pages(0..16).collect::<Vec<_>>());
}

/// A mark that is there before the call and until its end counts, whatever becomes of others
/// meanwhile, those in the same byte included.
fn marks_count_that_last_through_the_call() {
    let mut machine = all_mapped(Backing::Anonymous, 2100);
    let count = machine.slot.pages();
    let bitmap = Bitmap::new(count);
    for page in (0..count).step_by(8) {
        bitmap.mark(Page(page));
    }

    for _ in 0..20 {
        let (started, finished) = (AtomicBool::new(false), AtomicBool::new(false));
        let flag = thread::scope(|scope| {
            scope.spawn(|| {
                while !finished.load(Ordering::Relaxed) {
                    for page in (4..count).step_by(8) {
                        bitmap.mark(Page(page));
                    }
                    for page in (4..count).step_by(8) {
                        bitmap.clear(Page(page));
                    }
                    started.store(true, Ordering::Relaxed);
                }
            });
            while !started.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            let flag = machine.enable(&bitmap);
            finished.store(true, Ordering::Relaxed);
            flag
        });
        let mapped = machine.slot.mapped();
        let wrong = mapped.iter().find(|page| page.0 % 8 == 0);
        expect_eq!(wrong, None);
        flag.disable();
        machine.read_all();
    }
}

/// A slot may be created with the flag: nothing of it was ever mapped, and marked pages exit.
fn slot_is_created_with_the_flag() {
    let (mut vm, vcpus) = Vm::new(16, 1, guest::read_pages);
    let area = Area::new(Backing::Anonymous, 16);
    area.fill();
    vm.map(Gva(GPA.0), GPA, 16);
    let slot = Slot::undeclared(&vm, &area, SLOT, GPA);
    let bitmap = Bitmap::new(16).with(5..6);
    let _flag = slot.enable(&bitmap);
    let mut machine = Machine::of_slot((vm, vcpus), slot);
    machine.read(0..5);
    expect_eq!(machine.run(), machine.userfault(Page(5)));
    bitmap.clear(Page(5));
    machine.read(5..16);
}

/// Slots come and go, each with a slice of one bitmap, as memory is plugged and unplugged.
///
/// What is marked stays marked.
fn slots_with_slices_of_one_bitmap() {
    const PAGES: usize = 16;
    let (mut vm, mut vcpus) = Vm::new(3 * PAGES, 1, guest::read_pages);
    let area = Area::new(Backing::Anonymous, 1);
    let gpa = |slot| GPA + Bytes::of_pages(slot * PAGES);
    let slots: Vec<Slot> = (0..3)
        .map(|n| Slot::new(&mut vm, Backing::Anonymous, SLOT + n as u32, gpa(n), PAGES))
        .collect();
    let slices: Vec<Bitmap> = (0..3)
        .map(|n| Bitmap::within(&area, 5 + n * PAGES / 8, PAGES))
        .collect();
    slices[0].mark(Page(PAGES - 1));
    slices[2].mark(Page(0));
    // The slot in between has no flag, and no use for its slice.
    slices[1].mark(Page(0));
    vcpus[0].set_args(Gva(GPA.0), 3 * PAGES as u64, page_size() as u64);

    for round in 0..3 {
        let _flags = (slots[0].recreate(&slices[0]), slots[2].recreate(&slices[2]));
        for page in 0..3 * PAGES {
            let (slot, inside) = (page / PAGES, Page(page % PAGES));
            let marked = [(0, PAGES - 1), (2, 0)].contains(&(slot, inside.0));
            if marked {
                let exit = vcpus[0].run();
                expect_eq!(
                    exit,
                    Exit::userfault(slots[slot].gpa(inside)),
                    "round {round}"
                );
                slices[slot].clear(inside);
            }
            expect_eq!(vcpus[0].run(), Exit::Sync(page as u64, 0), "round {round}");
            if marked {
                slices[slot].mark(inside);
            }
        }
    }
}

/// When the call that clears the flag returns, every mapping is still there, the marked page's
/// included that was mapped before it was marked.
fn disable_keeps_mappings() {
    let mut machine = Machine::with_huge_pages(Backing::AnonymousThp, 1);
    let last = machine.slot.pages() - 1;
    let bitmap = Bitmap::new(last + 1).with(last..last + 1);
    let flag = machine.slot.recreate(&bitmap);
    machine.read(0..last);
    bitmap.mark(Page(1));
    let before = machine.slot.mappings();
    assert!(!before.is_empty(), "nothing is mapped");

    flag.disable();
    expect_eq!(machine.slot.mappings(), before);
}

/// Has all pages read, and returns how many exits that took, those to the kernel included.
fn exits_to_read_all(machine: &mut Machine) -> u64 {
    let before = machine.vcpus[0].stat(c"exits");
    machine.read_all();
    machine.vcpus[0].stat(c"exits") - before
}

/// The same, seen by the guest: no page has to be mapped again, which would take an exit more.
fn disable_costs_no_faults() {
    let count = 64;
    let mut machine = Machine::new(Backing::Anonymous, count);
    let bitmap = Bitmap::new(count);
    machine.slot.fill();
    // The host's interrupts make exits as well, more or fewer.
    let (mut before, mut after) = (u64::MAX, u64::MAX);
    for _ in 0..20 {
        let flag = machine.enable(&bitmap);
        machine.read_all();
        before = before.min(exits_to_read_all(&mut machine));
        flag.disable();
        after = after.min(exits_to_read_all(&mut machine));
    }
    assert!(after <= before + 2, "{after} exits, {before} before");
}

guest_code! {
    /// Reads the second page and counts that in the first, over and over, and calls the host only
    /// when what it reads is zero.
    fn count_reads(guest: Guest, base: Gva, _pages: u64, stride: u64) {
        let mut reads = 0_u64;
        loop {
            if guest.read(base + Bytes(stride)) == 0 {
                guest.sync(1, 0);
            }
            reads = reads.wrapping_add(1);
            guest.write(base, reads);
        }
    }
}

/// A vCPU that stays in the guest through the call exits as well: its TLB has nothing of what is
/// marked.
fn nothing_marked_is_left_in_a_tlb() {
    let (counter, page) = (Page(0), Page(1));
    let mut machine = Machine::with_guest(Backing::Anonymous, 2, 1, count_reads);
    let userfault = machine.userfault(page);
    let exits = AtomicUsize::new(0);
    let on_exit = |_, exit| {
        expect_eq!(exit, userfault);
        exits.fetch_add(1, Ordering::Relaxed);
        thread::yield_now();
    };
    let bitmap = Bitmap::new(2);
    machine.slot.write(page, 0, 1);
    machine.run_while(on_exit, |slot| {
        for _ in 0..50 {
            let reads = slot.read(counter, 0);
            ktap::wait_for("the vCPU to read", || slot.read(counter, 0) != reads);
            bitmap.mark(page);
            let flag = slot.enable(&bitmap);
            slot.write(page, 0, 0);
            let before = exits.load(Ordering::Relaxed);
            ktap::wait_for("an exit", || exits.load(Ordering::Relaxed) != before);
            slot.write(page, 0, 1);
            bitmap.clear(page);
            flag.disable();
        }
    });
}

/// Setting and clearing the flag, over and over, under running vCPUs: none sees a page while it is
/// marked, and none sees anything but userfaults.
fn toggle_under_vcpus() {
    let mut machine = Machine::with_guest(Backing::Anonymous, 4, 2, guest::hunt_zero);
    let bitmap = Bitmap::new(4);
    for page in pages(0..4) {
        machine.slot.write(page, 0, 1);
    }
    let userfault = machine.userfault(Page(2));
    let exits = AtomicUsize::new(0);
    let on_exit = |_, exit| {
        expect_eq!(exit, userfault);
        exits.fetch_add(1, Ordering::Relaxed);
        thread::yield_now();
    };
    machine.run_while(on_exit, |slot| {
        // As many as it takes for vCPUs to have met the mark.
        for _ in ktap::rounds(200, "20 exits", || exits.load(Ordering::Relaxed) >= 20) {
            bitmap.mark(Page(2));
            let flag = slot.enable(&bitmap);
            // Nothing may be seen of this by a vCPU: the page is marked.
            slot.write(Page(2), 0, 0);
            thread::yield_now();
            slot.write(Page(2), 0, 1);
            bitmap.clear(Page(2));
            flag.disable();
        }
    });
}

test_main! {
    about: "What setting and clearing the flag of userfault does to what is mapped.",
    needs: needs_userfault,
    cases: [
        enable_takes_marked_pages_away,
        slot_at_the_end_of_all_addresses,
        no_marked_page_stays_mapped,
        marked_pages_go_and_others_stay: needs_helper,
        runs_of_marked_pages_exit,
        blocks_with_a_mark_go: needs_helper,
        hole_does_not_hide_what_follows,
        pages_go_whose_bit_is_unreadable,
        pages_of_a_later_step_go_whose_bit_is_unreadable: needs_helper,
        page_exits_whose_bit_was_unreadable,
        whole_step_that_begins_within_a_byte: needs_helper,
        other_slots_stay_mapped,
        marks_count_that_last_through_the_call,
        slot_is_created_with_the_flag,
        slots_with_slices_of_one_bitmap,
        disable_keeps_mappings,
        disable_costs_no_faults,
        nothing_marked_is_left_in_a_tlb,
        toggle_under_vcpus,
    ],
}
