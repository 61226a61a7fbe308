// SPDX-License-Identifier: GPL-2.0-only

//! Userfault on memory that is not just a stretch of private pages.
//!
//! A failure means that userfault works for the memory that is easy and not for what VMMs have.

use libkvm::{
    fixture::{
        need_block,
        needs_userfault,
        Machine,
        GPA,
        SLOT, //
    },
    guest,
    host_page_size,
    ktap::{
        self,
        Finish, //
    },
    test_main,
    Backing,
    Bitmap,
    Errno,
    Exit,
    Region,
    Uffd,
    Vm,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEM_USERFAULT, //
};
use std::{
    fs,
    sync::atomic::{
        AtomicBool,
        AtomicUsize,
        Ordering, //
    },
    thread,
    time::Duration, //
};

const PAGES: usize = 16;

/// A read-only slot keeps the flag and loses it as any other slot does.
fn read_only_slot() {
    let mut machine = Machine::new(Backing::Anonymous, PAGES);
    machine.fill();
    let bitmap = Bitmap::marked(PAGES);
    let read_only = Region {
        flags: KVM_MEM_READONLY | KVM_MEM_USERFAULT,
        userfault_bitmap: bitmap.address(),
        ..machine.slot.region()
    };
    assert_eq!(machine.vm.recreate(&machine.slot, read_only), Ok(()));
    assert_eq!(machine.run(), machine.userfault(0));
    bitmap.clear(0);
    machine.read(0..1);
    assert_eq!(machine.run(), machine.userfault(1));
    assert_eq!(machine.slot.set_flags(KVM_MEM_READONLY, None), Ok(()));
    machine.read(1..PAGES);
}

/// A slot whose memory is several mappings, of different kinds.
fn slot_of_several_mappings() {
    let mut machine = Machine::new(Backing::Anonymous, PAGES);
    machine.slot.replace_page(3);
    machine.slot.replace_page(8);
    machine.fill();
    let bitmap = Bitmap::new(PAGES);
    for page in [2, 3, 4, 8] {
        bitmap.mark(page);
    }
    machine.enable(&bitmap);
    for page in 0..PAGES {
        if bitmap.is_marked(page) {
            assert_eq!(machine.run(), machine.userfault(page));
            bitmap.clear(page);
        }
        machine.read(page..page + 1);
    }
}

/// Several slots, each with a bitmap of its own or without one.
fn several_slots() {
    let (mut vm, mut vcpus) = Vm::new(1, 3 * PAGES, guest::read_pages);
    let len = (PAGES * host_page_size()) as u64;
    let slots = [0, 1, 2].map(|n| {
        let slot = vm.add_slot(Backing::Anonymous, SLOT + n as u32, GPA + n * len, PAGES);
        for page in 0..PAGES {
            slot.write(page, 0, n);
        }
        slot
    });
    vcpus[0].set_args([GPA, 3 * PAGES as u64, host_page_size() as u64]);
    let bitmaps = [Bitmap::new(PAGES), Bitmap::new(PAGES)];
    bitmaps[0].mark(PAGES - 1);
    bitmaps[1].mark(0);
    assert_eq!(
        slots[0].set_flags(KVM_MEM_USERFAULT, Some(&bitmaps[0])),
        Ok(())
    );
    assert_eq!(
        slots[2].set_flags(KVM_MEM_USERFAULT, Some(&bitmaps[1])),
        Ok(())
    );

    let size = host_page_size() as u64;
    for page in 0..3 * PAGES {
        let slot = page / PAGES;
        if page == PAGES - 1 || page == 2 * PAGES {
            let gpa = GPA + page as u64 * size;
            assert_eq!(vcpus[0].run(), Exit::Userfault { gpa, size });
            bitmaps[slot / 2].clear(page % PAGES);
        }
        assert_eq!(vcpus[0].run(), Exit::Sync(page as u64, slot as u64));
    }
}

/// Memory without a struct page that KVM can use: the kernel's own data for the vDSO.
fn memory_of_a_driver() {
    let Some(address) = vvar() else {
        ktap::skip("no [vvar] in /proc/self/maps");
    };
    let mut machine = Machine::new(Backing::Anonymous, 1);
    let bitmap = Bitmap::marked(1);
    let region = Region {
        flags: KVM_MEM_READONLY | KVM_MEM_USERFAULT,
        userspace_addr: address,
        userfault_bitmap: bitmap.address(),
        ..machine.slot.region()
    };
    match machine.vm.recreate(&machine.slot, region) {
        Ok(()) => {}
        Err(Errno::EINVAL) => ktap::skip("needs FEAT_S2FWB and CTR_EL0.DIC"),
        Err(error) => panic!("cannot create the slot: {error:?}"),
    }
    assert_eq!(machine.run(), machine.userfault(0));
    bitmap.clear(0);
    assert!(matches!(machine.run(), Exit::Sync(0, _)));
}

/// Returns where the kernel's data for the vDSO is.
fn vvar() -> Option<u64> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.contains("[vvar"))?;
    u64::from_str_radix(line.split_once('-')?.0, 16).ok()
}

/// A marked page exits before anything looks at its memory, even if that is broken.
fn poisoned_page_exits_while_marked() {
    let mut machine = Machine::new(Backing::Anonymous, PAGES);
    machine.fill();
    let bitmap = Bitmap::new(PAGES);
    bitmap.mark(0);
    machine.enable(&bitmap);
    if let Err(error) = machine.slot.poison(0) {
        ktap::skip(format!("no MADV_HWPOISON: {error:?}"));
    }
    assert_eq!(machine.run(), machine.userfault(0));
    assert_eq!(machine.run(), machine.userfault(0));
}

/// KVM's own accesses do not exit. userfaultfd on the same memory covers them, and both work side
/// by side: here KVM writes stolen time to a marked page that is missing.
fn accesses_of_kvm_are_for_userfaultfd() {
    let mut machine = Machine::new(Backing::Anonymous, PAGES);
    let bitmap = Bitmap::marked(PAGES);
    machine.enable(&bitmap);
    let steal_time = machine.slot.gpa(PAGES - 1);
    if let Err(error) = machine.vcpus[0].set_steal_time(steal_time) {
        ktap::skip(format!("no stolen time: {error:?}"));
    }
    let uffd = Uffd::missing(&machine.slot)
        .unwrap_or_else(|error| ktap::skip(format!("no userfaultfd: {error:?}")));

    let (finished, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let userfault = machine.userfault(0);
    let (slot, vcpu) = (&machine.slot, &mut machine.vcpus[0]);
    thread::scope(|scope| {
        scope.spawn(|| {
            let content = vec![0; host_page_size()];
            while !finished.load(Ordering::Relaxed) {
                if let Some(fault) = uffd.wait(Duration::from_millis(20)) {
                    assert_eq!(fault.page, PAGES - 1, "not the page that KVM writes to");
                    served.fetch_add(1, Ordering::Relaxed);
                    uffd.copy(fault.page, &content);
                }
            }
        });
        let _finish = Finish(&finished);
        // The guest's own access exits, while KVM's is served behind its back.
        let exits = [vcpu.run(), vcpu.run()];
        let mut page = vec![0; host_page_size()];
        page[0] = 9;
        uffd.copy(0, &page);
        bitmap.clear(0);
        let after = vcpu.run();
        assert_eq!(exits, [userfault; 2]);
        assert_eq!(after, Exit::Sync(0, 9));
    });
    assert_eq!(
        served.into_inner(),
        1,
        "accesses of KVM that userfaultfd saw"
    );
    assert!(
        bitmap.is_marked(slot.pages() - 1),
        "KVM wrote to the bitmap"
    );
}

/// Returns a machine whose guest has memory tagging.
fn machine_with_tags(backing: Backing, pages: usize, entry: guest::Entry) -> Machine {
    match Vm::with_mte(1, pages, entry) {
        Ok((vm, vcpus)) => Machine::with_vm(vm, vcpus, backing, pages),
        Err(error) => ktap::skip(format!("no memory tagging: {error:?}")),
    }
}

/// Tags that are restored along with a page are there when its mark is cleared.
fn tags_are_restored() {
    let mut machine = machine_with_tags(Backing::Anonymous, PAGES, guest::read_tags);
    let bitmap = Bitmap::marked(PAGES);
    machine.enable(&bitmap);

    for page in 0..PAGES {
        let tag = page as u8 % 15 + 1;
        assert_eq!(machine.run(), machine.userfault(page));
        machine.slot.write(page, 0, 0);
        assert_eq!(machine.slot.set_tags(page, tag), Ok(()));
        bitmap.clear(page);
        assert_eq!(machine.run(), Exit::Sync(page as u64, tag.into()));
    }
}

/// A hugetlb page that is mapped page by page has no tags of whoever had it before, whether the
/// guest touches it first or the VMM restores tags of one of its pages.
fn tags_of_others_are_not_seen() {
    let backing = Backing::AnonymousHugetlb;
    if !Backing::available().contains(&backing) {
        ktap::skip("no hugetlb pages: raise /proc/sys/vm/nr_hugepages");
    }
    let pages = backing.pages_per_page();
    for restored in [0, 3] {
        let before = machine_with_tags(backing, pages, guest::read_tags);
        for page in 0..pages {
            assert_eq!(before.slot.set_tags(page, 7), Ok(()));
        }
        drop(before);

        let mut machine = machine_with_tags(backing, pages, guest::read_tags);
        let bitmap = Bitmap::new(pages);
        // A mark in it keeps the block from being mapped.
        bitmap.mark(pages - 1);
        machine.enable(&bitmap);
        if restored != 0 {
            assert_eq!(machine.slot.set_tags(0, restored), Ok(()));
        }
        assert_eq!(machine.run(), Exit::Sync(0, restored.into()));
        for page in 1..pages - 1 {
            assert_eq!(machine.run(), Exit::Sync(page as u64, 0));
        }
    }
}

/// Where a permission fault makes a page a block, the VMM sees the tags that the guest sets in all
/// of it.
fn tags_of_a_block_that_was_a_page() {
    let backing = Backing::AnonymousThp;
    let pages = backing.pages_per_page();
    let mut machine = machine_with_tags(backing, pages, guest::write_tags);
    machine.fill();

    let slot = &machine.slot;
    assert_eq!(slot.set_flags(KVM_MEM_LOG_DIRTY_PAGES, None), Ok(()));
    assert_eq!(machine.vcpus[0].run(), Exit::Sync(0, 0));
    assert_eq!(slot.set_flags(0, None), Ok(()));
    assert_eq!(machine.vcpus[0].run(), Exit::Sync(1, 0));
    need_block(machine.mappings());
    assert_eq!(machine.run(), Exit::Sync(2, 0));
    for page in 0..pages {
        let tags = machine.slot.tags(page).expect("the VMM cannot read tags");
        assert_eq!(tags[0], guest::TAG, "page {page}");
    }
}

test_main! {
    needs: needs_userfault,
    cases: [
        read_only_slot,
        slot_of_several_mappings,
        several_slots,
        memory_of_a_driver,
        poisoned_page_exits_while_marked,
        tags_are_restored,
        tags_of_others_are_not_seen,
        tags_of_a_block_that_was_a_page,
        accesses_of_kvm_are_for_userfaultfd,
    ]
}
