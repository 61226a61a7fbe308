// SPDX-License-Identifier: GPL-2.0-only

//! Which accesses exit, and what the exit says.
//!
//! A failure means that a guest would see memory that is not there yet, or that a VMM would supply
//! the wrong page.

use libkvm::*;
use std::sync::atomic::{
    AtomicUsize,
    Ordering, //
};

/// An access to a marked page exits, as often as it is tried, and sees the page that was supplied
/// before the mark was cleared.
fn marked_page_exits() {
    let mut machine = Machine::new(Backing::Anonymous, 19);
    let bitmap = Bitmap::marked(19);
    let _flag = machine.enable(&bitmap);

    for page in pages(0..19) {
        expect_eq!(machine.run(), machine.userfault(page));
        expect_eq!(machine.run(), machine.userfault(page), "second try");

        machine.slot.write(page, 0, 100 + u64::from(page));
        bitmap.clear(page);
        expect_eq!(
            machine.run(),
            Exit::Sync(page.into(), 100 + u64::from(page))
        );
    }
}

/// An exit maps nothing.
fn exit_maps_nothing() {
    let mut machine = Machine::new(Backing::Anonymous, 4);
    let bitmap = Bitmap::new(4).with(2..4);
    let _flag = machine.enable(&bitmap);
    machine.slot.fill();
    machine.read(0..2);

    expect_eq!(machine.run(), machine.userfault(Page(2)));
    expect_eq!(machine.slot.mapped(), [Page(0), Page(1)]);
}

/// One mark is for all of a page of the host, which may be several of the guest's: the exit has the
/// address and size of the host's, wherever in there the access is, and all of it is there at once
/// when the mark is clear.
fn check_mark_of_a_page(backing: Backing) {
    // With 64K pages a part is 4K, with 16K four of them are.
    const PARTS: usize = 16;
    let mut machine = Machine::new(backing, 2);
    let slot = machine.slot.clone();
    let part = page_size() / PARTS;
    let fill = |page: Page| {
        for n in 0..PARTS {
            let (index, value) = (n * part / size_of::<u64>(), page.0 * PARTS + n);
            slot.write(page, index, value as u64);
        }
    };
    pages(0..2).for_each(fill);
    let base = Gva(slot.gpa(Page(0)).0);
    machine.vcpus[0].set_args(base, 2 * PARTS as u64, part as u64);
    let bitmap = Bitmap::new(2);
    let _flag = machine.enable(&bitmap);

    for touched in [0, 1, 4, PARTS - 1] {
        for n in 0..2 * PARTS {
            if n % PARTS == touched {
                let page = Page(n / PARTS);
                bitmap.mark(page);
                slot.discard(page);
                expect_eq!(machine.run(), machine.userfault(page), "part {touched}");
                fill(page);
                bitmap.clear(page);
            }
            expect_eq!(machine.run(), Exit::Sync(n as u64, n as u64));
        }
    }
}

/// A store exits as a load does, and is executed anew.
fn check_store(backing: Backing) {
    let mut machine = Machine::with_guest(backing, 4, 1, guest::write_pages);
    let bitmap = Bitmap::marked(4);
    let _flag = machine.enable(&bitmap);

    for page in pages(0..4) {
        machine.slot.write(page, 0, 100);
        expect_eq!(machine.run(), machine.userfault(page));
        expect_eq!(machine.slot.read(page, 0), 100, "written while marked");
        bitmap.clear(page);
        expect_eq!(machine.run(), Exit::numbered(page));
        expect_eq!(machine.slot.read(page, 0), u64::from(page));
    }
}

/// Loads, stores, atomics, vectors, cache maintenance and instruction fetches exit alike, unaligned
/// ones that end in a marked page included, and are executed anew when it is clear.
fn every_kind_of_access_exits() {
    let count = guest_access::WAYS.len();
    // A page before the first, for what begins in the page before.
    let mut machine = Machine::with_guest(
        Backing::Anonymous,
        1 + count,
        1,
        guest_access::access_in_all_ways,
    );
    let base = Gva(machine.slot.gpa(Page(1)).0);
    machine.vcpus[0].set_args(base, count as u64, page_size() as u64);
    let bitmap = Bitmap::new(1 + count).with(1..1 + count);
    for page in pages(0..1 + count) {
        machine.slot.write(page, 0, guest_access::BEFORE);
    }
    let _flag = machine.enable(&bitmap);

    for (number, way) in guest_access::WAYS.iter().enumerate() {
        let page = Page(1 + number);
        expect_eq!(machine.run(), machine.userfault(page), "{}", way.name);
        expect_eq!(
            machine.run(),
            machine.userfault(page),
            "{}, again",
            way.name
        );
        let before = machine.slot.read(page, 0);
        expect_eq!(before, guest_access::BEFORE, "{}, while marked", way.name);
        bitmap.clear(page);
        expect_eq!(
            machine.run(),
            Exit::Sync(number as u64, way.loaded),
            "{}",
            way.name
        );
        expect_eq!(
            machine.slot.read(page, 0),
            way.left,
            "{}, what it left",
            way.name
        );
    }
}

/// An access that begins in one page and ends in the next exits for each of them that is marked, be
/// it the first, the last or both, and is executed anew when neither is.
fn accesses_across_a_seam_exit() {
    let last_word = page_size() / size_of::<u64>() - 1;
    for marked in [0..1, 1..2, 0..2] {
        let mut machine =
            Machine::with_guest(Backing::Anonymous, 2, 1, guest_access::access_a_seam);
        machine
            .slot
            .write(Page(0), last_word, 0x1111_1111_2222_2222);
        machine.slot.write(Page(1), 0, 0x3333_3333_4444_4444);
        for done in [
            Exit::Sync(0, 0x4444_4444_1111_1111),
            Exit::Sync(1, guest_access::STORED),
        ] {
            let bitmap = Bitmap::new(2).with(marked.clone());
            let _flag = machine.enable(&bitmap);
            // Which of two marked pages is the first to exit is for the CPU to say.
            for _ in marked.clone() {
                let exit = machine.run();
                let page = pages(0..2).find(|page| exit == machine.userfault(*page));
                let page = page.unwrap_or_else(|| panic!("{marked:?}: unexpected exit: {exit:x?}"));
                assert!(bitmap.clear(page), "{marked:?}: {page:?} is not marked");
            }
            expect_eq!(machine.run(), done, "{marked:?} marked");
        }
        expect_eq!(machine.slot.read(Page(0), last_word), 0x5566_7788_2222_2222);
        expect_eq!(machine.slot.read(Page(1), 0), 0x3333_3333_1122_3344);
    }
}

/// Vectors of FEAT_SVE exit as other loads and stores do.
fn sve_exits() {
    let vm = Vm::special(Kind::Sve, 2, 1, guest_access::access_by_sve);
    let mut machine = Machine::of_vm(vm, Backing::Anonymous, 2);
    let bitmap = Bitmap::marked(2);
    let _flag = machine.enable(&bitmap);

    expect_eq!(machine.run(), machine.userfault(Page(0)), "load");
    machine.slot.write(Page(0), 0, 7);
    bitmap.clear(Page(0));
    expect_eq!(machine.run(), Exit::Sync(0, 7));
    bitmap.mark(Page(0));
    machine.slot.discard(Page(0));
    expect_eq!(machine.run(), machine.userfault(Page(0)), "store");
    bitmap.clear(Page(0));
    expect_eq!(machine.run(), Exit::Sync(0, guest_access::STORED));
    expect_eq!(machine.slot.read(Page(0), 0), guest_access::STORED);
}

/// What accesses nothing does not exit: prefetches, and translations that the guest asks for.
fn prefetch_does_not_exit() {
    let entry = guest_access::touch_without_access;
    let mut machine = Machine::with_guest(Backing::Anonymous, 4, 1, entry);
    let bitmap = Bitmap::marked(4);
    let _flag = machine.enable(&bitmap);
    for page in pages(0..4) {
        expect_eq!(machine.run(), Exit::Sync(page.into(), 0));
    }
}

/// The MMU's own accesses to the guest's page tables exit as well, each at the table that is
/// marked, and the guest goes on when it is clear.
fn walk_of_stage_1_exits() {
    const FAR: Gva = Gva(1 << 40);
    let mut machine = Machine::new(Backing::Anonymous, 1);
    machine.slot.write(Page(0), 0, 7);
    machine.vm.map(FAR, machine.slot.gpa(Page(0)), 1);
    let entries: Vec<Gpa> = (1..4)
        .map(|level| machine.vm.table_entry(FAR, level))
        .collect();
    let tables = Slot::of_tables(&mut machine.vm);
    machine.vcpus[0].set_args(FAR, 1, page_size() as u64);

    // Nothing else is in the pages of these tables, as nothing else is there, or near.
    let bitmap = Bitmap::new(tables.pages());
    for entry in &entries {
        bitmap.mark(tables.page_of(*entry));
    }
    let _flag = tables.enable(&bitmap);
    for page in entries.iter().map(|entry| tables.page_of(*entry)) {
        // With large pages of the host, one may hold several tables.
        if bitmap.is_marked(page) {
            expect_eq!(machine.run(), Exit::userfault(tables.gpa(page)));
            expect_eq!(machine.run(), Exit::userfault(tables.gpa(page)), "again");
            bitmap.clear(page);
        }
    }
    expect_eq!(machine.run(), Exit::Sync(0, 7));
}

/// Each page exits or not by its own bit, in slots whose bitmaps end in the middle of a byte or of
/// a word, or at the end of one.
fn each_page_has_its_own_bit() {
    for count in [1, 7, 8, 9, 63, 64, 65] {
        let mut machine = Machine::new(Backing::Anonymous, count);
        machine.slot.fill();
        for marked in [0, 1, 6, 7, 8, 9, 31, 32, 62, 63, 64] {
            if marked >= count {
                continue;
            }
            let bitmap = Bitmap::new(count).with(marked..marked + 1);
            let _flag = machine.enable(&bitmap);
            machine.read(0..marked);
            expect_eq!(
                machine.run(),
                machine.userfault(Page(marked)),
                "{count} pages"
            );
            bitmap.clear(Page(marked));
            machine.read(marked..count);
        }
    }
}

/// So do pages that are far into a slot, which takes no memory for those before.
fn pages_far_into_a_slot() {
    const FAR: usize = 1 << 24;
    let gpa = Gpa(Bytes::of_pages(FAR).0);
    Vm::need_addresses(gpa + Bytes::of_pages(FAR + 8));
    let (mut vm, vcpus) = Vm::new(16, 1, guest::read_pages);
    let slot = Slot::undeclared(&vm, &Area::new(Backing::Anonymous, FAR + 8), SLOT, gpa);
    let bitmap = Bitmap::new(FAR + 8).with(FAR + 3..FAR + 4).with(5..6);
    let _flag = slot.enable(&bitmap);
    vm.map(Gva(gpa.0), slot.gpa(Page(FAR)), 8);
    let mut machine = Machine::of_slot((vm, vcpus), slot);
    machine.vcpus[0].set_args(Gva(gpa.0), 8, page_size() as u64);
    for page in 0..8 {
        if page == 3 {
            expect_eq!(machine.run(), machine.userfault(Page(FAR + 3)));
            bitmap.clear(Page(FAR + 3));
        }
        expect_eq!(machine.run(), Exit::Sync(page, 0));
    }
}

/// The bitmap may be anywhere, at any alignment, shared or read-only, and not a byte behind it is
/// touched: the area ends there.
fn bitmap_may_be_anywhere() {
    let count: usize = 19;
    let last = Page(count - 1);
    for backing in [Backing::Anonymous, Backing::Shmem] {
        let area = Area::new(backing, 1);
        let mut machine = Machine::new(Backing::Anonymous, count);
        machine.slot.fill();
        for offset in [0, 1, 3, page_size() - count.div_ceil(8)] {
            let bitmap = Bitmap::within(&area, offset, count);
            bitmap.mark(last);
            area.protect(Access::Read);
            let _flag = machine.enable(&bitmap);
            machine.read(0..count - 1);
            expect_eq!(machine.run(), machine.userfault(last), "offset {offset}");
            area.protect(Access::ReadWrite);
            bitmap.clear(last);
            machine.read(count - 1..count);
        }
    }
}

/// Where the bitmap cannot be read KVM_RUN fails, without a claim that the page was marked, also
/// right after an exit, and the vCPU runs on as soon as it can be read.
fn check_unreadable_bitmap(backing: Backing) {
    let mut machine = Machine::new(backing, 16);
    let area = Area::new(Backing::Anonymous, 1);
    let bitmap = Bitmap::within(&area, 0, 16).with(1..2);
    machine.slot.fill();
    let _flag = machine.enable(&bitmap);
    machine.read(0..1);
    expect_eq!(machine.run(), machine.userfault(Page(1)));

    area.protect(Access::None);
    expect_eq!(machine.run(), Exit::Error(Errno::EFAULT));
    expect_eq!(machine.run(), Exit::Error(Errno::EFAULT), "again");
    area.protect(Access::ReadWrite);
    expect_eq!(machine.run(), machine.userfault(Page(1)));
    bitmap.clear(Page(1));
    machine.read(1..16);
}

/// The same where the file that holds the bitmap is truncated.
///
/// A hole in it reads as not marked.
fn bitmap_may_lose_its_memory() {
    let mut machine = Machine::new(Backing::Anonymous, 16);
    let area = Area::new(Backing::Shmem, 1);
    let bitmap = Bitmap::within(&area, 0, 16).with(0..16);
    machine.slot.fill();
    let _flag = machine.enable(&bitmap);
    expect_eq!(machine.run(), machine.userfault(Page(0)));

    area.truncate(0);
    expect_eq!(machine.run(), Exit::Error(Errno::EFAULT), "truncated");
    area.truncate(1);
    machine.read(0..8);
    bitmap.mark(Page(8));
    expect_eq!(machine.run(), machine.userfault(Page(8)));
    area.punch(0..1);
    machine.read(8..16);
}

/// Several vCPUs may ask for the same page at the same time, and each gets what was supplied.
fn vcpus_share_a_page() {
    const VCPUS: usize = 3;
    let mut machine = Machine::with_guest(Backing::Anonymous, 2, VCPUS, guest::read_pages);
    let bitmap = Bitmap::marked(2);
    let _flag = machine.enable(&bitmap);
    let userfault = machine.userfault(Page(0));
    let exited = std::sync::Barrier::new(VCPUS + 1);

    std::thread::scope(|scope| {
        for vcpu in &mut machine.vcpus {
            let exited = &exited;
            scope.spawn(move || {
                exited.wait();
                expect_eq!(vcpu.run(), userfault);
                exited.wait();
                // The page is being supplied: either it is there, or the vCPU exits once more.
                loop {
                    match vcpu.run() {
                        exit if exit == userfault => {}
                        exit => break expect_eq!(exit, Exit::Sync(0, 7)),
                    }
                }
            });
        }
        exited.wait();
        exited.wait();
        machine.slot.write(Page(0), 0, 7);
        bitmap.clear(Page(0));
    });
}

/// Where nobody clears a mark, vCPUs exit for it again and again, and can be stopped.
///
/// Nothing else is lost: when the flag is cleared they run on.
fn marks_that_nobody_clears() {
    let mut machine = Machine::with_guest(Backing::Anonymous, 4, 2, guest::read_pages);
    machine.slot.fill();
    let bitmap = Bitmap::marked(4);
    let flag = machine.enable(&bitmap);
    let userfault = machine.userfault(Page(0));
    let exits = [0, 0].map(AtomicUsize::new);
    let on_exit = |vcpu: usize, exit| {
        expect_eq!(exit, userfault);
        exits[vcpu].fetch_add(1, Ordering::Relaxed);
    };
    machine.run_while(on_exit, |_| {
        let is_many = |exits: &AtomicUsize| exits.load(Ordering::Relaxed) >= 100;
        ktap::wait_for("vCPUs to exit", || exits.iter().all(is_many));
    });
    flag.disable();
    for vcpu in &mut machine.vcpus {
        for page in pages(0..4) {
            expect_eq!(vcpu.run(), Exit::numbered(page));
        }
    }
}

/// Where the bitmap is in its area: at an odd address for KVM.
///
/// Whoever supplies pages has words.
const ODD: usize = 3;

/// Supplies all pages of a slot and clears their marks, 64 at a time.
fn supply_by_words(slot: &Slot, bitmap: &Area) {
    let count = slot.pages();
    for word in 0..(ODD + count / 8).div_ceil(8) {
        // The bits of these bytes are the pages from here on.
        let first = (word * 64).saturating_sub(8 * ODD);
        for page in pages(first..(word * 64 + 64 - 8 * ODD).min(count)) {
            slot.write(page, 0, 1);
        }
        let bits = bitmap.word(Page(0), word);
        bits.fetch_and(0, Ordering::Release);
    }
}

/// Runs a vCPU over pages that are supplied when it waits for one: no clear is lost, and none is
/// seen before what it publishes.
fn check_supply(machine: &mut Machine, bitmap: &Bitmap, supply: impl FnOnce(&Slot)) {
    const NONE: usize = usize::MAX;
    let (slot, asked) = (machine.slot.clone(), AtomicUsize::new(NONE));
    let on_exit = |_, exit| match exit {
        Exit::Userfault { gpa, .. } => {
            asked.store(slot.page_of(gpa).0, Ordering::Relaxed);
            std::thread::yield_now();
        }
        exit => panic!("a page without content: {exit:x?}"),
    };
    machine.run_while(on_exit, |slot| {
        let is_asked = || asked.load(Ordering::Relaxed) != NONE;
        ktap::wait_for("the vCPU to ask for a page", is_asked);
        supply(slot);
        let lost = pages(0..bitmap.pages()).find(|page| bitmap.is_marked(*page));
        expect_eq!(lost, None, "a page that is still marked");
        // The vCPU has been at all pages when it comes to the last and then to the first.
        for page in [bitmap.pages() - 1, 0].map(Page) {
            bitmap.mark(page);
            slot.discard(page);
            let is_asked = || asked.load(Ordering::Relaxed) == page.0;
            ktap::wait_for("the vCPU to come to a page", is_asked);
            slot.write(page, 0, 1);
            bitmap.clear(page);
        }
    });
}

/// Marks are cleared by whoever has the bitmap mapped, 64 pages at a time, while a vCPU runs over
/// them.
fn marks_are_cleared_by_words() {
    let count = 4096;
    let mut machine = Machine::with_guest(Backing::Anonymous, count, 1, guest::hunt_zero);
    let area = Area::new(Backing::Shmem, 1);
    let bitmap = Bitmap::within(&area, ODD, count).with(0..count);
    let other = area.alias();
    let _flag = machine.enable(&bitmap);
    check_supply(&mut machine, &bitmap, |slot| supply_by_words(slot, &other));
}

/// The same where another process supplies the pages, in memory that it shares with the VMM.
fn marks_are_cleared_by_another_process() {
    let count = 4096;
    let mut machine = Machine::with_guest(Backing::Shmem, count, 1, guest::hunt_zero);
    let area = Area::new(Backing::Shmem, 2);
    let bitmap = Bitmap::within(&area, ODD, count).with(0..count);
    let asked = area.word(Page(1), 0);
    let handler = ktap::start_process(|| {
        while asked.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        supply_by_words(&machine.slot, &area);
    });
    let _flag = machine.enable(&bitmap);
    check_supply(&mut machine, &bitmap, |_| {
        asked.store(1, Ordering::Release);
        handler.join();
    });
}

/// Exits are counted for each vCPU, and nothing else is.
fn exits_are_counted() {
    let mut machine = Machine::with_guest(Backing::Anonymous, 4, 2, guest::read_pages);
    let userfault = machine.userfault(Page(0));
    let bitmap = Bitmap::marked(4);
    let _flag = machine.enable(&bitmap);
    let exits = [2, 5];
    for (vcpu, exits) in machine.vcpus.iter_mut().zip(exits) {
        (0..exits).for_each(|_| expect_eq!(vcpu.run(), userfault));
    }
    bitmap.clear(Page(0));
    for (vcpu, exits) in machine.vcpus.iter_mut().zip(exits) {
        expect_eq!(vcpu.run(), Exit::Sync(0, 0));
        expect_eq!(vcpu.stat(c"userfault_exits"), exits);
    }
}

/// The trace event of an exit says which page was touched by which instruction of the guest, once
/// for each exit.
fn exits_are_traced() {
    // Where addresses have more than 32 bits.
    let gpa = Gpa(5 << 30);
    let (mut vm, vcpus) = Vm::new(4, 1, guest::read_pages);
    let slot = Slot::new(&mut vm, Backing::Anonymous, SLOT, gpa, 4);
    let mut machine = Machine::of_slot((vm, vcpus), slot);
    let bitmap = Bitmap::marked(4);
    let _flag = machine.enable(&bitmap);
    let trace = Trace::new("kvm/kvm_userfault");
    expect_eq!(machine.run(), machine.userfault(Page(0)));
    expect_eq!(machine.run(), machine.userfault(Page(0)), "again");
    bitmap.clear(Page(0));
    expect_eq!(machine.run(), Exit::Sync(0, 0));
    expect_eq!(machine.run(), machine.userfault(Page(1)));

    let pages = [0, 0, 1].map(|page| machine.slot.gpa(Page(page)));
    let lines = trace.lines();
    expect_eq!(lines.len(), pages.len(), "{lines:?}");
    for (line, gpa) in lines.iter().zip(pages) {
        let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
        let field = |name| line.split(name).nth(1)?.split(',').next().and_then(hex);
        expect_eq!(field("GPA: ").map(Gpa), Some(gpa), "{line}");
        let pc = field("PC: ").map(Gva);
        assert!(
            pc.is_some_and(Gva::is_in_guest_code),
            "not in guest code: {line}"
        );
    }
}

test_main! {
    about: "Which accesses to marked pages exit, and what the exit says.",
    needs: needs_userfault,
    cases: [
        marked_page_exits,
        exit_maps_nothing,
        mark_is_for_all_of_the_page = || check_mark_of_a_page(Backing::Anonymous),
        mark_is_for_all_of_the_page_of_guest_memfd = || check_mark_of_a_page(Backing::GuestMemfd),
        store_exits = || check_store(Backing::Anonymous),
        store_to_guest_memfd_exits = || check_store(Backing::GuestMemfd),
        every_kind_of_access_exits,
        accesses_across_a_seam_exit,
        sve_exits,
        prefetch_does_not_exit,
        walk_of_stage_1_exits,
        each_page_has_its_own_bit,
        pages_far_into_a_slot,
        bitmap_may_be_anywhere,
        unreadable_bitmap_is_an_error = || check_unreadable_bitmap(Backing::Anonymous),
        unreadable_bitmap_of_guest_memfd_is_an_error = ||
            check_unreadable_bitmap(Backing::GuestMemfd),
        bitmap_may_lose_its_memory,
        vcpus_share_a_page,
        marks_that_nobody_clears,
        marks_are_cleared_by_words,
        marks_are_cleared_by_another_process,
        exits_are_counted,
        exits_are_traced,
    ],
}
