// SPDX-License-Identifier: GPL-2.0-only

//! Marking a page again while vCPUs use it.
//!
//! A page is marked and then dropped from the mapping that KVM uses, or from the file behind it.
//! A failure means that a VMM which takes a page back, e.g. to throw it out of memory, would have
//! the guest go on with a page of zeroes.

use libkvm::*;
use std::{
    sync::atomic::{
        AtomicBool,
        AtomicUsize,
        Ordering, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

/// A page that is marked and then dropped exits at the next access, without a call of KVM, the
/// first page of what was one block included, and others stay.
fn check_marked_and_dropped(backing: Backing, discard: impl Fn(&Slot, Page)) {
    let mut machine = match backing {
        Backing::AnonymousThp | Backing::ShmemThp => Machine::with_huge_pages(backing, 1),
        _ => Machine::new(backing, 16),
    };
    let count = machine.slot.pages();
    let bitmap = Bitmap::new(count);
    machine.slot.fill();
    let _flag = machine.slot.recreate(&bitmap);
    machine.read_all();

    for page in [0, 7, count - 1].map(Page) {
        bitmap.mark(page);
        discard(&machine.slot, page);
    }
    for page in pages(0..count) {
        if bitmap.is_marked(page) {
            expect_eq!(machine.run(), machine.userfault(page));
            machine.slot.write(page, 0, page.into());
            bitmap.clear(page);
        }
        machine.read(page.0..page.0 + 1);
    }
}

/// Drops a page by punching a hole in the file.
fn punch(slot: &Slot, page: Page) {
    slot.area().punch(page.0..page.0 + 1);
}

/// All of a hugetlb page goes at a time: what is not marked is empty, what is exits.
fn pages_of_hugetlb() {
    let mut machine = Machine::with_huge_pages(Backing::AnonymousHugetlb, 1);
    let count = machine.slot.pages();
    for marked in [0, count - 1] {
        let bitmap = Bitmap::new(count);
        let _flag = machine.slot.recreate(&bitmap);
        machine.slot.fill();
        machine.read_all();
        bitmap.mark(Page(marked));
        let area = machine.slot.area();
        expect_eq!(area.advise(0..count, Advice::DontNeed), Ok(()));
        for page in pages(0..count) {
            if page == Page(marked) {
                expect_eq!(machine.run(), machine.userfault(page));
                bitmap.clear(page);
            }
            expect_eq!(machine.run(), Exit::Sync(page.into(), 0));
        }
    }
}

/// Does something while another thread keeps mmap_lock busy.
///
/// Faults wait for that, and so have a page marked and dropped between any two steps of theirs.
fn while_mmap_lock_is_busy(something: impl FnOnce()) {
    let busy = Area::new(Backing::Anonymous, 4096);
    busy.fill();
    let finished = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !finished.load(Ordering::Relaxed) {
                busy.protect(Access::Read);
                busy.protect(Access::ReadWrite);
            }
        });
        something();
        finished.store(true, Ordering::Relaxed);
    });
}

/// Lets faults get to a different point in each round.
fn spin(round: u64) {
    let start = Instant::now();
    let wait = Duration::from_micros(round * 7 % 300);
    while start.elapsed() < wait {
        std::hint::spin_loop();
    }
}

/// Has vCPUs look for a zero in a page that is dropped and filled again over and over: none may see
/// the page while it is dropped, however faults meet with the mark and the drop.
///
/// None goes on with the page of before either: now and then each has to exit until it gets the
/// page back.
///
/// `prepare` makes the memory what it is to be in each round, and returns whether it is; it may be
/// the one who gives the page back. `discard` drops the page, and maybe others.
///
/// vCPUs read the page and its neighbours, so that faults on these map it as well, if they map
/// a block.
fn race(
    mut machine: Machine,
    rounds: usize,
    taken: Page,
    prepare: impl Fn(&Slot, &Bitmap) -> bool,
    discard: impl Fn(&Slot, Page),
) {
    let bitmap = Bitmap::new(machine.slot.pages());
    bitmap.mark(taken);
    let _flag = machine.enable(&bitmap);
    let first = Page(taken.0.saturating_sub(1));
    let looked_at = 3.min(machine.slot.pages() - first.0) as u64;
    for vcpu in &mut machine.vcpus {
        let base = Gva(machine.slot.gpa(first).0);
        vcpu.set_args(base, looked_at, page_size() as u64);
    }

    let exits: Vec<AtomicUsize> = machine.vcpus.iter().map(|_| 0.into()).collect();
    let load = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    let exited = || -> Vec<usize> { exits.iter().map(load).collect() };
    let (slipped, mut prepared) = (AtomicUsize::new(0), 0);
    let userfault = machine.userfault(taken);
    let index = (taken.0 - first.0) as u64;
    let on_exit = |vcpu: usize, exit| match exit {
        exit if exit == userfault => {
            exits[vcpu].fetch_add(1, Ordering::Relaxed);
        }
        Exit::Sync(page, 0) if page == index => {
            slipped.fetch_add(1, Ordering::Relaxed);
        }
        // The neighbours may be dropped as well, but are not marked.
        Exit::Sync(_, 0) => {}
        other => panic!("unexpected exit: {other:x?}"),
    };
    while_mmap_lock_is_busy(|| {
        machine.run_while(on_exit, |slot| {
            for round in 0..rounds {
                slot.write(taken, 0, 1 + round as u64);
                prepared += usize::from(prepare(slot, &bitmap));
                bitmap.clear(taken);
                spin(round as u64);
                bitmap.mark(taken);
                discard(slot, taken);
                // Whoever has slipped through sees the empty page now.
                thread::yield_now();
                if round % (rounds / 20) == 0 {
                    let before = exited();
                    let is_later = || exited().iter().zip(&before).all(|(now, then)| now > then);
                    ktap::wait_for("each vCPU to exit for the page", is_later);
                }
            }
        });
    });
    let slipped = slipped.into_inner();
    expect_eq!(slipped, 0, "accesses that saw the dropped page");
    if prepared == 0 {
        ktap::skip("the host has no huge page to give");
    }
}

/// Without the flag, too, no vCPU goes on with a page that was dropped while a fault was in flight:
/// each time the page of after that gets to be written to.
fn check_race_without_the_flag(backing: Backing) {
    let mut machine = Machine::with_guest(backing, 1, 3, guest::hunt_zero_and_copy);
    for vcpu in &mut machine.vcpus {
        vcpu.set_args(Gva(GPA.0), 1, page_size() as u64);
    }
    // The page is empty now and then.
    let on_exit = |_, exit| expect_eq!(exit, Exit::Sync(0, 0));
    while_mmap_lock_is_busy(|| {
        machine.run_while(on_exit, |slot| {
            let start = Instant::now();
            let is_early = |_: &u64| start.elapsed() < Duration::from_secs(5);
            for round in (1..).take_while(is_early) {
                for _ in 0..2 {
                    slot.discard(Page(0));
                    slot.write(Page(0), 0, 1);
                    spin(round);
                }
                slot.write(Page(0), 2, round);
                let is_written = || slot.read(Page(0), 1) == round;
                ktap::wait_for("the page to be written to", is_written);
            }
        });
    });
}

/// Leaves the memory as it is.
fn as_it_is(_: &Slot, _: &Bitmap) -> bool {
    true
}

/// Drops a page and all others.
fn discard_all(slot: &Slot, _: Page) {
    let area = slot.area();
    expect_eq!(area.advise(0..area.pages(), Advice::DontNeed), Ok(()));
}

/// Makes the memory a huge page again, of which a page was dropped.
///
/// That it now and then finds the memory in use is no concern of this.
fn collapse(slot: &Slot, _: &Bitmap) -> bool {
    let area = slot.area();
    area.advise(0..area.pages(), Advice::Collapse).is_ok()
}

/// Returns how many rounds are to be made where so many are for a block of 512 pages: a larger one
/// takes the host longer to make.
fn for_blocks(rounds: usize, machine: &Machine) -> usize {
    (rounds * 512 / machine.slot.pages()).max(20)
}

/// The page is all that there is.
fn check_race_for_a_page(backing: Backing) {
    let machine = Machine::with_guest(backing, 1, 3, guest::hunt_zero);
    race(machine, 3_000, Page(0), as_it_is, Slot::discard);
}

/// Pages of a block go one by one.
fn check_race_for_a_page_of_a_block(backing: Backing, taken: Page, discard: impl Fn(&Slot, Page)) {
    let machine = Machine::with_huge_pages_and_guest(backing, 1, 2, guest::hunt_zero);
    let rounds = for_blocks(300, &machine);
    race(machine, rounds, taken, collapse, discard);
}

/// All of a huge page goes when one page of it is marked, the first or another.
fn check_race_for_a_block(backing: Backing, taken: Page) {
    let machine = Machine::with_huge_pages_and_guest(backing, 1, 3, guest::hunt_zero);
    let rounds = for_blocks(500, &machine);
    race(machine, rounds, taken, as_it_is, discard_all);
}

fn race_for_a_block_of_hugetlb() {
    check_race_for_a_block(Backing::AnonymousHugetlb, Page(0));
    check_race_for_a_block(Backing::AnonymousHugetlb, Page(9));
}

/// The page goes while vCPUs write to it, of which only reading is permitted, as dirty logging was
/// turned on: where it still is, faults map pages in place of the block, and else the other way
/// round.
fn check_race_for_permissions(logged: [u32; 2], discard: impl Fn(&Slot, Page)) {
    let taken = Page(9);
    let ask = |slot: &Slot| slot.write(taken, 2, slot.read(taken, 1) + 1);
    let prepare = |slot: &Slot, bitmap: &Bitmap| {
        slot.fill();
        let is_huge = collapse(slot, bitmap);
        slot.set_flags(logged[0]);
        bitmap.clear(taken);
        ask(slot);
        let is_written = || slot.read(taken, 1) == slot.read(taken, 2);
        ktap::wait_for("the page to be written to", is_written);
        [0, KVM_MEM_LOG_DIRTY_PAGES, logged[1]].map(|flags| slot.set_flags(flags));
        ask(slot);
        // A vCPU gets to run.
        thread::yield_now();
        is_huge
    };
    let (backing, entry) = (Backing::AnonymousThp, guest::hunt_zero_and_copy);
    let machine = Machine::with_huge_pages_and_guest(backing, 1, 2, entry);
    let rounds = for_blocks(200, &machine);
    race(machine, rounds, taken, prepare, discard);
}

/// An exit holds nothing: when faults have met marks in all ways, the pages that they found can be
/// moved into a huge page, for which nobody else may have a reference to them.
fn exits_keep_no_page() {
    let backing = Backing::ShmemThp;
    let count = backing.need_huge_pages(1);
    // Does the kernel do that at all?
    let other = Area::new(backing, count);
    other.fill();
    other.collapse();
    drop(other);

    let mut machine = Machine::with_guest(backing, count, 2, guest::hunt_zero);
    machine.slot.fill();
    machine.slot.write(Page(0), 0, 1);
    // If this was a huge page, it no longer is.
    machine.slot.area().punch(count - 1..count);
    machine.slot.write(Page(count - 1), 0, 1);
    let bitmap = Bitmap::new(count);
    let flag = machine.enable(&bitmap);
    for vcpu in &mut machine.vcpus {
        vcpu.set_args(Gva(GPA.0), 8, page_size() as u64);
    }
    let exits = AtomicUsize::new(0);
    let on_exit = |_, exit| match exit {
        Exit::Userfault { .. } => {
            exits.fetch_add(1, Ordering::Relaxed);
        }
        other => panic!("unexpected exit: {other:x?}"),
    };
    machine.run_while(on_exit, |slot| {
        for _ in ktap::rounds(500, "50 exits", || exits.load(Ordering::Relaxed) >= 50) {
            for page in pages(0..8) {
                bitmap.mark(page);
                // The page stays in the file.
                slot.discard(page);
            }
            thread::yield_now();
            pages(0..8).for_each(|page| {
                bitmap.clear(page);
            });
        }
    });
    flag.disable();
    // The host may have one for a moment.
    let area = machine.slot.area();
    ktap::wait_for("nobody to have a page", || {
        area.advise(0..count, Advice::Collapse).is_ok()
    });
}

test_main! {
    about: "Marking a page again, and dropping it, while vCPUs use it.",
    needs: needs_userfault,
    cases: [
        page_of_anonymous_memory = || check_marked_and_dropped(Backing::Anonymous, Slot::discard),
        page_of_anonymous_thp = || check_marked_and_dropped(Backing::AnonymousThp, Slot::discard),
        page_of_shared_memory = || check_marked_and_dropped(Backing::Shmem, Slot::discard),
        page_of_shmem_thp = || check_marked_and_dropped(Backing::ShmemThp, Slot::discard),
        hole_in_shared_memory = || check_marked_and_dropped(Backing::Shmem, punch),
        hole_in_shmem_thp = || check_marked_and_dropped(Backing::ShmemThp, punch),
        hole_in_guest_memfd = || check_marked_and_dropped(Backing::GuestMemfd, Slot::discard),
        pages_of_hugetlb,
        race_for_a_page = || check_race_for_a_page(Backing::Anonymous),
        race_for_a_page_of_guest_memfd = || check_race_for_a_page(Backing::GuestMemfd),
        race_for_the_first_page_of_a_block = ||
            check_race_for_a_page_of_a_block(Backing::AnonymousThp, Page(0), Slot::discard),
        race_for_a_page_inside_a_block = ||
            check_race_for_a_page_of_a_block(Backing::AnonymousThp, Page(9), Slot::discard),
        race_for_a_hole_in_a_block = ||
            check_race_for_a_page_of_a_block(Backing::ShmemThp, Page(0), punch),
        race_for_a_page_that_was_in_a_block = ||
            check_race_for_permissions([0, KVM_MEM_LOG_DIRTY_PAGES], Slot::discard),
        race_for_a_block_that_was_pages = ||
            check_race_for_permissions([KVM_MEM_LOG_DIRTY_PAGES, 0], discard_all),
        race_for_a_block_of_thp = || check_race_for_a_block(Backing::AnonymousThp, Page(0)),
        race_for_a_block_of_hugetlb,
        race_without_the_flag = || check_race_without_the_flag(Backing::Anonymous),
        race_for_guest_memfd_without_the_flag = ||
            check_race_without_the_flag(Backing::GuestMemfd),
        exits_keep_no_page,
    ],
}
