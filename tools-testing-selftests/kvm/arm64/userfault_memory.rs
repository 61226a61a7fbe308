// SPDX-License-Identifier: GPL-2.0-only

//! Userfault on memory that is not just a stretch of private pages, and on memory with which the
//! host does something meanwhile.
//!
//! A failure means that userfault works for the memory that is easy and not for what VMMs have.

use libkvm::*;
use std::{
    cell::Cell,
    fs,
    path::Path,
    sync::atomic::{
        AtomicUsize,
        Ordering, //
    },
    thread,
    time::Duration, //
};

const PAGES: usize = 16;

/// Loads from a read-only slot exit as from any other, though all of it was mapped.
fn read_only_slot() {
    let mut machine = Machine::new(Backing::Anonymous, PAGES);
    machine.slot.fill();
    let bitmap = Bitmap::marked(PAGES);
    expect_eq!(machine.slot.region().delete(), Ok(()));
    let region = machine.slot.region().flags(KVM_MEM_READONLY);
    expect_eq!(region.set(), Ok(()));
    machine.read_all();
    let flag = machine.slot.enable_with(&bitmap, KVM_MEM_READONLY);
    expect_eq!(machine.run(), machine.userfault(Page(0)));
    bitmap.clear(Page(0));
    machine.read(0..1);
    expect_eq!(machine.run(), machine.userfault(Page(1)));
    flag.disable();
    machine.read(1..PAGES);
}

fn block_of_a_read_only_slot_never_covers_a_marked_page() {
    let mut machine = Machine::with_huge_pages(Backing::AnonymousThp, 1);
    let last = machine.slot.pages() - 1;
    let bitmap = Bitmap::new(last + 1).with(last..last + 1);
    expect_eq!(machine.slot.region().delete(), Ok(()));
    let _flag = machine.slot.enable_with(&bitmap, KVM_MEM_READONLY);
    machine.read(0..last);
    expect_eq!(machine.run(), machine.userfault(Page(last)));
}

/// Stores to a read-only slot are for the VMM, as ever, which gets them with their address, whether
/// the page is marked or not.
fn stores_to_a_read_only_slot() {
    let mut machine = Machine::with_guest(Backing::Anonymous, 2, 1, guest::write_pages);
    let bitmap = Bitmap::new(2).with(0..1);
    expect_eq!(machine.slot.region().delete(), Ok(()));
    let _flag = machine.slot.enable_with(&bitmap, KVM_MEM_READONLY);
    for page in pages(0..2) {
        let store = Exit::Mmio {
            gpa: machine.slot.gpa(page),
            is_write: true,
        };
        expect_eq!(machine.run(), store, "{page:?}");
        expect_eq!(machine.run(), Exit::numbered(page));
        expect_eq!(machine.slot.read(page, 0), 0);
    }
}

/// Memory without a struct page for KVM, as drivers map it.
fn memory_of_a_driver() {
    let (mut vm, vcpus) = Vm::new(1, 1, guest::read_pages);
    if vm.capability(KVM_CAP_ARM_CACHEABLE_PFNMAP_SUPPORTED) == 0 {
        ktap::skip("KVM cannot map such memory here (FEAT_S2FWB and CTR_EL0.DIC)");
    }
    vm.map(Gva(GPA.0), GPA, 1);
    let slot = Slot::undeclared(&vm, &Area::of_perf_event(), SLOT, GPA);
    let bitmap = Bitmap::marked(1);
    let _flag = slot.enable(&bitmap);
    let mut machine = Machine::of_slot((vm, vcpus), slot);
    expect_eq!(machine.run(), machine.userfault(Page(0)));
    bitmap.clear(Page(0));
    expect_eq!(machine.run(), Exit::Sync(0, machine.slot.read(Page(0), 0)));
}

/// A marked page exits before anything looks at its memory, even if that is broken.
fn poisoned_page_exits_while_marked() {
    let mut machine = Machine::new(Backing::Anonymous, PAGES);
    machine.slot.fill();
    let bitmap = Bitmap::new(PAGES).with(0..1);
    let _flag = machine.enable(&bitmap);
    machine.slot.area().poison(Page(0));
    expect_eq!(machine.run(), machine.userfault(Page(0)));
    expect_eq!(machine.run(), machine.userfault(Page(0)), "again");
}

/// A page that is discarded while it is marked, and then cleared, is there, and empty.
fn discarded_page_is_empty_when_it_is_cleared() {
    let mut machine = Machine::new(Backing::Anonymous, PAGES);
    machine.slot.fill();
    let bitmap = Bitmap::new(PAGES).with(3..4);
    let _flag = machine.enable(&bitmap);
    machine.read(0..3);
    expect_eq!(machine.run(), machine.userfault(Page(3)));
    machine.slot.discard(Page(3));
    bitmap.clear(Page(3));
    expect_eq!(machine.run(), Exit::Sync(3, 0));
    machine.read(4..PAGES);
}

/// Skips the case where a cgroup of this process may have no memory in swap.
fn need_swap_of_cgroups() {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let path = Path::new("/sys/fs/cgroup").join(path.unwrap_or_default());
    for limit in path.ancestors().map(|path| path.join("memory.swap.max")) {
        if fs::read_to_string(&limit).is_ok_and(|text| text.trim() == "0") {
            ktap::skip(format!("no swap for this process ({})", limit.display()));
        }
    }
}

/// Pages that were supplied go to swap and come back, and so does the bitmap, without an exit;
/// those that are marked still exit.
fn pages_come_back_from_swap() {
    need_swap_of_cgroups();
    let mut machine = Machine::new(Backing::Anonymous, PAGES);
    machine.slot.fill();
    let area = Area::new(Backing::Anonymous, 1);
    let bitmap = Bitmap::within(&area, 0, PAGES).with(3..4);
    let _flag = machine.enable(&bitmap);
    machine.read(0..3);
    machine.slot.area().swap_out();
    area.swap_out();
    expect_eq!(machine.run(), machine.userfault(Page(3)));
    bitmap.clear(Page(3));
    machine.read(3..PAGES);
    machine.read_all();
}

/// Sets a control of the kernel until the case ends, or skips it where this user may not.
fn set_control(path: &'static str, value: &str) {
    let before = ktap::need(fs::read_to_string(path), format!("cannot read {path}"));
    // This process may be killed before the call returns.
    ktap::at_end_if_done(path, before.trim());
    ktap::need(fs::write(path, value), format!("cannot set {path}"));
    ktap::at_end(path, Some(&before));
}

/// Pages that are shared with others of the same content, of which one is marked: it exits, and
/// the others are there and can be written.
fn pages_are_merged() {
    let mut machine = Machine::with_guest(Backing::Anonymous, PAGES, 1, guest::write_pages);
    for page in pages(0..PAGES) {
        machine.slot.write(page, 1, 0x6b73_6d00);
    }
    set_control("/sys/kernel/mm/ksm/pages_to_scan", "10000");
    set_control("/sys/kernel/mm/ksm/sleep_millisecs", "1");
    set_control("/sys/kernel/mm/ksm/run", "1");
    let bitmap = Bitmap::new(PAGES).with(3..4);
    let _flag = machine.enable(&bitmap);
    let merged = || {
        let text = fs::read_to_string("/proc/self/ksm_merging_pages").unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    let area = machine.slot.area();
    expect_eq!(area.advise(0..PAGES, Advice::Mergeable), Ok(()));
    ktap::wait_for("half of the pages to be merged", || merged() >= PAGES / 2);
    for page in pages(0..PAGES) {
        if bitmap.is_marked(page) {
            expect_eq!(machine.run(), machine.userfault(page));
            bitmap.clear(page);
        }
        expect_eq!(machine.run(), Exit::numbered(page));
        expect_eq!(machine.slot.read(page, 0), u64::from(page));
        expect_eq!(machine.slot.read(page, 1), 0x6b73_6d00, "{page:?}");
    }
}

/// The host makes pages a huge page while one of them is missing, and marked: it still exits, and
/// the others are there.
fn check_collapse(backing: Backing) {
    let count = backing.need_huge_pages(1);
    for missing in [0, 5, count - 1] {
        let mut machine = Machine::new(backing, count);
        machine.slot.fill();
        machine.slot.need_huge();
        // The huge page is one no more.
        let area = machine.slot.area().clone();
        match backing {
            Backing::ShmemThp => area.punch(missing..missing + 1),
            _ => area.drop_page(Page(missing)),
        }
        let bitmap = Bitmap::new(count).with(missing..missing + 1);
        let _flag = machine.enable(&bitmap);
        machine.read(0..missing);
        area.collapse();
        expect_eq!(machine.run(), machine.userfault(Page(missing)));
        machine.slot.write(Page(missing), 0, missing as u64);
        bitmap.clear(Page(missing));
        machine.read(missing..count);
    }
}

/// The host moves pages about while vCPUs run over them, some of which are marked.
fn pages_are_moved_about() {
    let may_move = fs::read_to_string("/proc/sys/vm/enable_soft_offline").unwrap_or_default();
    if may_move.trim() == "0" {
        ktap::skip("pages stay where they are (vm.enable_soft_offline)");
    }
    let count = 512;
    let mut machine = Machine::with_guest(Backing::Anonymous, count, 2, guest::hunt_zero);
    for page in pages(0..count) {
        machine.slot.write(page, 0, 1);
    }
    let bitmap = Bitmap::new(count);
    let _flag = machine.enable(&bitmap);
    let exits = AtomicUsize::new(0);
    let on_exit = |_, exit| match exit {
        Exit::Userfault { .. } => {
            exits.fetch_add(1, Ordering::Relaxed);
            thread::yield_now();
        }
        other => panic!("unexpected exit: {other:x?}"),
    };
    machine.run_while(on_exit, |slot| {
        let has_moved = Cell::new(false);
        let is_over = || exits.load(Ordering::Relaxed) != 0 && has_moved.get();
        for round in ktap::rounds(20, "an exit and a page that has moved", is_over) {
            let (dropped, other) = (round * 37 % count, (round * 37 + 1) % count);
            bitmap.mark(Page(dropped));
            slot.discard(Page(dropped));
            let before = slot.area().frame(Page(other));
            match slot.area().move_page(Page(other)) {
                Ok(()) => {
                    let after = slot.area().frame(Page(other));
                    assert!(after != before, "page {other} is still at {before:x?}");
                    has_moved.set(true);
                }
                Err(Errno::EAGAIN | Errno::EBUSY) => {}
                Err(error) => panic!("MADV_SOFT_OFFLINE: {error:?}"),
            }
            slot.write(Page(dropped), 0, 1);
            bitmap.clear(Page(dropped));
        }
    });
}

/// What comes by userfaultfd.
fn empty_page(_page: Page) -> Vec<u8> {
    vec![0; page_size()]
}

/// A page that is marked and dropped while KVM waits for it is not mapped.
fn check_dropped_while_kvm_waits(backing: Backing) {
    let mut machine = Machine::new(backing, PAGES);
    let (slot, userfault) = (machine.slot.clone(), machine.userfault(Page(0)));
    let bitmap = Bitmap::new(PAGES);
    let _flag = machine.enable(&bitmap);
    let uffd = Uffd::new(slot.area());
    let content = empty_page(Page(0));
    let exit = uffd.run_and_drop(&mut machine.vcpus[0], &slot, &bitmap, &content);
    expect_eq!(exit, userfault);
}

/// KVM's own accesses do not exit. userfaultfd on the same memory covers them, and both work side
/// by side: here KVM writes stolen time to a marked page that is missing.
fn accesses_of_kvm_are_for_userfaultfd() {
    let mut machine = Machine::new(Backing::Anonymous, PAGES);
    let bitmap = Bitmap::marked(PAGES);
    let _flag = machine.enable(&bitmap);
    let last = Page(PAGES - 1);
    let steal_time = machine.slot.gpa(last);
    machine.vcpus[0].set_steal_time(steal_time);
    let uffd = Uffd::new(machine.slot.area());

    let userfault = machine.userfault(Page(0));
    let vcpu = &mut machine.vcpus[0];
    let (exits, served) = uffd.serve(empty_page, || {
        // The guest's own access exits, while KVM's is served behind its back.
        let exits = [vcpu.run(), vcpu.run()];
        let mut page = vec![0; page_size()];
        page[0] = 9;
        uffd.copy(Page(0), &page);
        bitmap.clear(Page(0));
        (exits, vcpu.run())
    });
    expect_eq!(exits, ([userfault; 2], Exit::Sync(0, 9)));
    expect_eq!(served, [last], "accesses of KVM that userfaultfd saw");
    assert!(bitmap.is_marked(last), "KVM wrote to the bitmap");
}

guest_code! {
    /// Asks for the stolen time, of which KVM then writes the initial values, and hands the host
    /// what it was told, and then what is there.
    fn ask_for_stolen_time(guest: Guest, base: Gva, _pages: u64, _stride: u64) {
        const ARM_SMCCC_HV_PV_TIME_ST: u32 = 0xc500_0021;
        guest.sync(0, guest.call_firmware(ARM_SMCCC_HV_PV_TIME_ST));
        loop {
            guest.sync(1, guest.read(base));
        }
    }
}

/// Without userfaultfd KVM writes to a marked page, and what it wrote is lost when the VMM fills
/// the page afterwards: fill first, or leave it unmarked.
fn what_kvm_writes_to_a_marked_page_is_lost() {
    let mut machine = Machine::with_guest(Backing::Anonymous, PAGES, 1, ask_for_stolen_time);
    let bitmap = Bitmap::marked(PAGES);
    let _flag = machine.enable(&bitmap);
    let last = Page(PAGES - 1);
    let steal_time = machine.slot.gpa(last);
    machine.vcpus[0].set_steal_time(steal_time);
    machine.vcpus[0].set_args(Gva(steal_time.0), 0, 0);
    machine.slot.write(last, 0, u64::MAX);
    expect_eq!(machine.run(), Exit::Sync(0, steal_time.0));
    expect_eq!(machine.slot.read(last, 0), 0, "KVM wrote nothing");
    machine.slot.fill_page(last, &vec![0xff; page_size()]);
    expect_eq!(machine.run(), machine.userfault(last));
    bitmap.clear(last);
    expect_eq!(machine.run(), Exit::Sync(1, u64::MAX));
}

/// A userfaultfd for user mode only does not serve the accesses that KVM makes for a vCPU: they are
/// errors, which claim no userfault, until the page is there.
fn userfaultfd_for_user_mode_only() {
    let mut machine = Machine::new(Backing::Anonymous, PAGES);
    let bitmap = Bitmap::new(PAGES).with(1..2);
    let _flag = machine.enable(&bitmap);
    let uffd = Uffd::user_mode_only(machine.slot.area());
    expect_eq!(machine.run(), Exit::Error(Errno::EFAULT));
    let content = vec![0; page_size()];
    uffd.copy(Page(0), &content);
    expect_eq!(machine.run(), Exit::Sync(0, 0));
    expect_eq!(machine.run(), machine.userfault(Page(1)));
    bitmap.clear(Page(1));
    expect_eq!(machine.run(), Exit::Error(Errno::EFAULT));
    uffd.copy(Page(1), &content);
    expect_eq!(machine.run(), Exit::Sync(1, 0));
}

/// The bitmap itself may be missing and come by a userfaultfd: who reads a mark waits for it.
fn bitmap_comes_by_userfaultfd() {
    let mut machine = Machine::new(Backing::Anonymous, PAGES);
    machine.slot.fill();
    let area = Area::new(Backing::Anonymous, 1);
    let uffd = Uffd::new(&area);
    let bitmap = Bitmap::within(&area, 0, PAGES);
    let (_flag, asked) = uffd.serve(empty_page, || {
        let flag = machine.enable(&bitmap);
        machine.read(0..2);
        flag
    });
    expect_eq!(asked, [Page(0)]);
    bitmap.mark(Page(2));
    expect_eq!(machine.run(), machine.userfault(Page(2)));

    // Dropped, and gone again.
    area.drop_page(Page(0));
    let (exit, asked) = uffd.serve(empty_page, || machine.run());
    expect_eq!(exit, Exit::numbered(Page(2)));
    expect_eq!(asked, [Page(0)]);
}

/// So does the call that sets the flag, where it looks at the marks of what is mapped.
fn enable_waits_for_the_bitmap() {
    let mut machine = Machine::new(Backing::Anonymous, PAGES);
    machine.slot.fill();
    machine.read_all();
    let area = Area::new(Backing::Anonymous, 1);
    let uffd = Uffd::new(&area);
    let bitmap = Bitmap::within(&area, 0, PAGES);
    let (_flag, asked) = uffd.serve(empty_page, || machine.enable(&bitmap));
    expect_eq!(asked, [Page(0)]);
}

/// A signal that comes meanwhile does not cut that call short: what is not marked stays mapped, in
/// later steps too.
fn signal_leaves_an_enable_alone() {
    // Half of the pages are before an address where KVM begins a new step, with pages of any size.
    let gpa = Gpa((2 << 30) - Bytes::of_pages(PAGES / 2).0);
    let (mut vm, vcpus) = Vm::new(PAGES, 1, guest::read_pages);
    let slot = Slot::new(&mut vm, Backing::Anonymous, SLOT, gpa, PAGES);
    let mut machine = Machine::of_slot((vm, vcpus), slot);
    machine.slot.fill();
    machine.read_all();
    let area = Area::new(Backing::Anonymous, 1);
    let uffd = Uffd::new(&area);
    let bitmap = Bitmap::within(&area, 0, PAGES);
    // The thread that has run the vCPU gets the signal.
    let kicker = machine.vcpus[0].kicker();
    let kick_and_fill = |page| {
        kicker.kick();
        empty_page(page)
    };
    let (_flag, asked) = uffd.serve(kick_and_fill, || machine.enable(&bitmap));
    assert!(!asked.is_empty(), "nobody waited for the bitmap");
    expect_eq!(machine.slot.mapped(), pages(0..PAGES).collect::<Vec<_>>());
}

/// Marks of what is not mapped make no difference to that call, and it does not read them, but for
/// those of its first step: a bitmap that comes by userfaultfd costs what is there.
fn marks_of_what_is_not_mapped_are_not_read() {
    // With pages of any size more than a step, and more than a page of the bitmap.
    let count = 1 << 20;
    Vm::need_addresses(GPA + Bytes::of_pages(count));
    let (vm, _vcpus) = Vm::new(1, 1, guest::read_pages);
    let slot = Slot::undeclared(&vm, &Area::new(Backing::Anonymous, count), SLOT, GPA);
    expect_eq!(slot.region().set(), Ok(()));
    // Where nothing shows what is mapped, KVM does not know it either.
    expect_eq!(slot.mapped(), []);
    let area = Area::new(Backing::Anonymous, count / (8 * page_size()));
    let bitmap = Bitmap::within(&area, 0, count);
    let uffd = Uffd::new(&area);
    let (_flag, asked) = uffd.serve(empty_page, || slot.enable(&bitmap));
    let last = Page(area.pages() - 1);
    assert!(!asked.contains(&last), "{asked:?} were read");
}

/// The marks of a block may come by userfaultfd, from someone who changes the VMM's mappings first.
fn marks_of_a_block_come_by_userfaultfd() {
    let mut machine = Machine::with_huge_pages(Backing::AnonymousThp, 1);
    let all: Vec<Page> = pages(0..machine.slot.pages()).collect();
    let (area, other) = (
        Area::new(Backing::Anonymous, 2),
        Area::new(Backing::Anonymous, 1),
    );
    // Half of the marks are in the second page.
    let bitmap = Bitmap::within(&area, page_size() - all.len() / 16, all.len());
    let _flag = machine.slot.recreate(&bitmap);
    // There is a first page.
    bitmap.clear(Page(0));
    let uffd = Uffd::new(&area);
    let exit = uffd.run(&mut machine.vcpus[0], |page| {
        expect_eq!(page, Page(1));
        other.protect(Access::Read);
        uffd.copy(page, &empty_page(page));
    });
    expect_eq!(exit, Exit::numbered(Page(0)));
    expect_eq!(machine.slot.in_blocks(), all);
}

/// A block that is marked and dropped while KVM waits for other marks of it is not mapped.
fn block_is_dropped_while_kvm_waits_for_its_marks() {
    let mut machine = Machine::with_huge_pages(Backing::AnonymousThp, 1);
    let count = machine.slot.pages();
    let area = Area::new(Backing::Anonymous, 2);
    let bitmap = Bitmap::within(&area, page_size() - count / 16, count);
    let _flag = machine.slot.recreate(&bitmap);
    // There is a first page.
    bitmap.clear(Page(0));
    let uffd = Uffd::new(&area);
    let memory = machine.slot.area().clone();
    let exit = uffd.run(&mut machine.vcpus[0], |page| {
        expect_eq!(page, Page(1), "of the bitmap");
        bitmap.mark(Page(1));
        expect_eq!(memory.advise(0..count, Advice::DontNeed), Ok(()));
        uffd.copy(page, &empty_page(page));
    });
    expect_eq!(exit, Exit::Sync(0, 0));
    expect_eq!(machine.run(), machine.userfault(Page(1)));
}

/// Where nobody serves the bitmap a vCPU waits.
///
/// A kick is not lost then: KVM_RUN ends when the bitmap is there. Nor does the wait keep the VMM
/// from ending, as this case does.
fn bitmap_that_nobody_serves() {
    let mut machine = Machine::new(Backing::Anonymous, PAGES);
    machine.slot.fill();
    let area = Area::new(Backing::Anonymous, 1);
    let bitmap = Bitmap::within(&area, 0, PAGES);
    let flag = machine.enable(&bitmap);
    area.drop_page(Page(0));
    let uffd = Uffd::new(&area);
    let kicker = machine.vcpus[0].kicker();
    let exit = uffd.run(&mut machine.vcpus[0], |page| {
        kicker.kick();
        uffd.copy(page, &empty_page(page));
    });
    expect_eq!(exit, Exit::Kicked);
    machine.read(0..2);

    area.drop_page(Page(0));
    let mut vcpu = machine.vcpus.remove(0);
    thread::spawn(move || panic!("nobody served the bitmap: {:x?}", vcpu.run()));
    expect_eq!(uffd.wait(Duration::from_secs(30)), Some(Page(0)));
    // To clear the flag would wait for the vCPU, and to close the userfaultfd would wake it.
    std::mem::forget((flag, uffd));
}

/// Returns a machine whose guest has memory tagging.
fn machine_with_tags(backing: Backing, count: usize, entry: guest::Entry) -> Machine {
    Machine::of_vm(Vm::special(Kind::Mte, count, 1, entry), backing, count)
}

/// Tags that are restored along with a page are there when its mark is cleared.
fn tags_are_restored() {
    let mut machine = machine_with_tags(Backing::Anonymous, PAGES, guest_tags::read_tags);
    let bitmap = Bitmap::marked(PAGES);
    let _flag = machine.enable(&bitmap);

    for page in pages(0..PAGES) {
        let tag = page.0 as u8 % 15 + 1;
        expect_eq!(machine.run(), machine.userfault(page));
        machine.slot.write(page, 0, 0);
        machine.slot.set_tags(page, tag);
        bitmap.clear(page);
        expect_eq!(machine.run(), Exit::Sync(page.into(), tag.into()));
    }
}

/// KVM_ARM_MTE_COPY_TAGS is an access of KVM too: a marked page that is missing has no tags, unless
/// userfaultfd brings the page, and those that are set before its content stay.
fn tags_of_a_marked_page() {
    let mut machine = machine_with_tags(Backing::Anonymous, PAGES, guest_tags::read_tags);
    let bitmap = Bitmap::marked(PAGES);
    let _flag = machine.enable(&bitmap);
    let slot = machine.slot.clone();
    let none = vec![0; page_size() / 16];
    expect_eq!(slot.tags(Page(1)), none, "without userfaultfd");
    slot.set_tags(Page(0), 7);
    expect_eq!(machine.run(), machine.userfault(Page(0)));
    slot.write(Page(0), 0, 1);
    bitmap.clear(Page(0));
    expect_eq!(machine.run(), Exit::Sync(0, 7));

    let uffd = Uffd::new(slot.area());
    let (tags, asked) = uffd.serve(empty_page, || slot.tags(Page(2)));
    expect_eq!((tags, asked), (none, vec![Page(2)]));
    let marked = pages(1..PAGES).all(|page| bitmap.is_marked(page));
    expect_eq!(marked, true, "all that was marked");
}

/// A hugetlb page that is mapped page by page has no tags of whoever had it before, whether the
/// guest touches it first, the VMM restores tags of one of its pages, or the VMM has tags there.
fn tags_of_others_are_not_seen() {
    let backing = Backing::AnonymousHugetlb;
    let count = backing.need_huge_pages(1);
    for (restored, access) in [
        (3, Access::ReadWrite),
        (0, Access::ReadWrite),
        (0, Access::Tagged),
    ] {
        let before = machine_with_tags(backing, count, guest_tags::read_tags);
        for page in pages(0..count) {
            before.slot.set_tags(page, 7);
        }
        let frame = before.slot.area().frame(Page(0));
        drop(before);

        let mut machine = machine_with_tags(backing, count, guest_tags::read_tags);
        if restored != 0 {
            machine.slot.set_tags(Page(3), restored);
        }
        if access == Access::Tagged {
            machine.slot.area().protect(access);
            machine.slot.write(Page(0), 0, 0);
        }
        // Pages of a slot that is logged are mapped one by one.
        machine.slot.set_flags(KVM_MEM_LOG_DIRTY_PAGES);
        for page in pages(0..count) {
            let tag = if page == Page(3) { restored } else { 0 };
            expect_eq!(machine.run(), Exit::Sync(page.into(), tag.into()));
        }
        if machine.slot.area().frame(Page(0)) != frame {
            ktap::skip("hugetlbfs has handed out another page than that with tags");
        }
    }
}

/// Where a permission fault makes a page a block, the VMM sees the tags that the guest sets in all
/// of it.
fn tags_of_a_block_that_was_a_page() {
    let backing = Backing::AnonymousThp;
    let count = backing.need_huge_pages(1);
    let mut machine = machine_with_tags(backing, count, guest_tags::write_tags);
    machine.slot.fill();
    machine.slot.need_huge();

    machine.slot.set_flags(KVM_MEM_LOG_DIRTY_PAGES);
    expect_eq!(machine.run(), Exit::Sync(0, 0));
    machine.slot.set_flags(0);
    expect_eq!(machine.run(), Exit::Sync(1, 0));
    expect_eq!(machine.run(), Exit::Sync(2, 0));
    for page in pages(0..count) {
        expect_eq!(machine.slot.tags(page)[0], guest_tags::TAG, "{page:?}");
    }
    expect_eq!(machine.slot.in_blocks().len(), count);
}

test_main! {
    about: "Userfault on memory of all kinds, and with what the host does with memory.",
    // Cases that do not need userfault run without it too.
    cases: [
        read_only_slot: needs_userfault,
        stores_to_a_read_only_slot: needs_userfault,
        block_of_a_read_only_slot_never_covers_a_marked_page: needs_userfault,
        memory_of_a_driver: needs_userfault,
        poisoned_page_exits_while_marked: needs_userfault,
        discarded_page_is_empty_when_it_is_cleared: needs_userfault,
        pages_come_back_from_swap: needs_userfault,
        pages_are_merged: needs_userfault,
        collapse_of_anonymous_pages: needs_userfault = || check_collapse(Backing::AnonymousThp),
        collapse_of_shared_pages: needs_userfault = || check_collapse(Backing::ShmemThp),
        pages_are_moved_about: needs_userfault,
        page_is_dropped_while_kvm_waits_for_it: needs_userfault = ||
            check_dropped_while_kvm_waits(Backing::Anonymous),
        shared_page_is_dropped_while_kvm_waits_for_it: needs_userfault = ||
            check_dropped_while_kvm_waits(Backing::Shmem),
        accesses_of_kvm_are_for_userfaultfd: needs_userfault,
        what_kvm_writes_to_a_marked_page_is_lost: needs_userfault,
        userfaultfd_for_user_mode_only: needs_userfault,
        bitmap_comes_by_userfaultfd: needs_userfault,
        enable_waits_for_the_bitmap: needs_helper,
        signal_leaves_an_enable_alone: needs_helper,
        marks_of_what_is_not_mapped_are_not_read: needs_helper,
        marks_of_a_block_come_by_userfaultfd: needs_helper,
        block_is_dropped_while_kvm_waits_for_its_marks: needs_helper,
        bitmap_that_nobody_serves: needs_userfault,
        tags_are_restored: needs_userfault,
        tags_of_a_marked_page: needs_userfault,
        tags_of_others_are_not_seen,
        tags_of_a_block_that_was_a_page,
    ],
}
