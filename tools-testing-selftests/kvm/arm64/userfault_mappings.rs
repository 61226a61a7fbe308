// SPDX-License-Identifier: GPL-2.0-only

//! What stage 2 maps while the flag is set: pages, and blocks where none of their pages is marked
//! and the kernel has the helper.
//!
//! A failure means that a marked page is within reach of the guest, or that memory which is all
//! there is slower than it has to be.

use libkvm::*;

/// Whatever the memory is made of, each page of a huge page exits or not by its own bit.
fn check_marks_in_huge_page(backing: Backing) {
    let mut machine = Machine::with_huge_pages(backing, 1);
    let count = machine.slot.pages();
    for marked in [0, 1, count / 2, count - 1] {
        let bitmap = Bitmap::new(count).with(marked..marked + 1);
        let _flag = machine.slot.recreate(&bitmap);
        machine.read(0..marked);
        expect_eq!(
            machine.run(),
            machine.userfault(Page(marked)),
            "{marked} of {count}"
        );
        bitmap.clear(Page(marked));
        machine.read(marked..count);
    }
}

/// The same for hugetlb of other sizes, as far as there is some, and not too large to go through.
fn marks_in_hugetlb_of_other_sizes() {
    let is_small = |backing: &Backing| backing.huge_pages() <= Some(8192);
    let sizes: Vec<Backing> = Backing::other_hugetlb().filter(is_small).collect();
    if sizes.is_empty() {
        ktap::skip("no free hugetlb pages of another size (/sys/kernel/mm/hugepages)");
    }
    ktap::diagnostic(&format!("{sizes:?}"));
    sizes.into_iter().for_each(check_marks_in_huge_page);
}

/// Returns all pages of a machine's slot.
fn all(machine: &Machine) -> Vec<Page> {
    pages(0..machine.slot.pages()).collect()
}

/// A huge page with a mark is mapped by pages, and the marked one is not.
fn block_never_covers_a_marked_page() {
    let mut machine = Machine::with_huge_pages(Backing::AnonymousThp, 1);
    let last = machine.slot.pages() - 1;
    let bitmap = Bitmap::new(last + 1).with(last..last + 1);
    let _flag = machine.slot.recreate(&bitmap);

    machine.read(0..last);
    expect_eq!(machine.slot.in_blocks(), []);
    expect_eq!(machine.slot.mapped(), pages(0..last).collect::<Vec<_>>());
    expect_eq!(machine.run(), machine.userfault(Page(last)));
}

/// Memory of which nothing is marked is mapped by blocks, as it is without the flag.
fn check_blocks_of_clear_memory(backing: Backing) {
    let mut machine = Machine::with_huge_pages(backing, 2);
    let all = all(&machine);
    machine.read_all();
    expect_eq!(machine.slot.in_blocks(), all, "without the flag");

    let bitmap = Bitmap::new(all.len());
    let _flag = machine.slot.recreate(&bitmap);
    machine.read_all();
    expect_eq!(machine.slot.in_blocks(), all);
}

/// Without the helper all of it is mapped by pages, marked or not.
fn clear_memory_has_pages() {
    let mut machine = Machine::with_huge_pages(Backing::AnonymousThp, 1);
    let bitmap = Bitmap::new(machine.slot.pages());
    let _flag = machine.slot.recreate(&bitmap);
    machine.read_all();
    expect_eq!(machine.slot.in_blocks(), []);
    expect_eq!(machine.slot.mapped(), all(&machine));
}

/// A mark keeps out the block that it is in, wherever it is there and its bit is in memory, and no
/// other.
///
/// When it is cleared, the block is mapped.
fn mark_keeps_its_own_block_out() {
    let mut machine = Machine::with_huge_pages(Backing::AnonymousThp, 2);
    let all = all(&machine);
    let size = all.len() / 2;
    let area = Area::new(Backing::Anonymous, all.len().div_ceil(8 * page_size()) + 1);

    for (offset, marked) in [
        (0, size),
        (1, size + 1),
        (2, size + 63),
        (7, size + size / 2),
        (8, 2 * size - 1),
        (9, size + 8),
    ] {
        let bitmap = Bitmap::within(&area, offset, all.len());
        bitmap.mark(Page(marked));
        let _flag = machine.slot.recreate(&bitmap);
        machine.read(0..marked);
        expect_eq!(machine.run(), machine.userfault(Page(marked)));
        expect_eq!(machine.slot.in_blocks(), all[..size], "{marked} marked");

        bitmap.clear(Page(marked));
        machine.read(marked..all.len());
        expect_eq!(machine.slot.in_blocks(), all, "{marked} marked before");
    }
}

/// Blocks are where the guest's memory has them, whatever the slot begins with: the bits of a
/// block may begin within a byte, and a mark next to the block does not keep it out.
fn slot_that_begins_within_a_block() {
    let size = Backing::AnonymousThp.need_huge_pages(2);
    let (probe, skipped) = (size + 5, 3);
    let in_block: Vec<Page> = pages(size - skipped..2 * size - skipped).collect();
    for (marked, is_block) in [
        (size - 1, true),
        (size, false),
        (size + 3, false),
        (2 * size - 1, false),
    ] {
        let mut machine = Machine::with_huge_pages(Backing::AnonymousThp, 2);
        let part = machine.slot.region().part(skipped..2 * size);
        let bitmap = Bitmap::new(2 * size - skipped);
        bitmap.mark(Page(marked - skipped));
        expect_eq!(machine.slot.region().delete(), Ok(()));
        let region = part.flags(KVM_MEM_USERFAULT).bitmap(&bitmap);
        expect_eq!(region.set_unguarded(), Ok(()));

        let probed = Page(probe - skipped);
        let address = Gva(machine.slot.gpa(probed).0);
        machine.vcpus[0].set_args(address, 1, page_size() as u64);
        expect_eq!(machine.run(), Exit::Sync(0, probe as u64));
        let expected = if is_block {
            in_block.clone()
        } else {
            vec![probed]
        };
        expect_eq!(machine.slot.mapped(), expected, "{marked} marked");
    }
}

/// A slot whose dirty pages are logged is mapped by pages all the same.
fn logged_slot_has_pages() {
    let mut machine = Machine::with_huge_pages(Backing::AnonymousThp, 1);
    let bitmap = Bitmap::new(machine.slot.pages());
    let _flag = machine.slot.recreate(&bitmap);
    machine.slot.set_flags(KVM_MEM_LOG_DIRTY_PAGES);

    machine.read_all();
    expect_eq!(machine.slot.in_blocks(), []);
    expect_eq!(machine.slot.mapped(), all(&machine));
}

/// A block whose marks cannot all be read is not mapped, but its pages are whose marks can.
fn unreadable_marks_keep_a_block_out() {
    let mut machine = Machine::with_huge_pages(Backing::AnonymousThp, 1);
    let area = Area::new(Backing::Anonymous, 1);
    let readable = 4;
    let region = machine.slot.region().flags(KVM_MEM_USERFAULT);
    let region = region.bitmap_at(area.at(area.len() - readable));
    expect_eq!(machine.slot.region().delete(), Ok(()));
    expect_eq!(region.set_unguarded(), Ok(()));

    machine.read(0..readable * 8);
    expect_eq!(machine.slot.in_blocks(), []);
    expect_eq!(machine.run(), Exit::Error(Errno::EFAULT));
}

/// Checks that something is mapped, and nothing for writing.
#[track_caller]
fn expect_read_only(machine: &Machine) {
    let mappings = machine.slot.mappings();
    let is_writable = mappings.iter().any(|mapping| mapping.is_writable);
    assert!(!mappings.is_empty() && !is_writable, "{mappings:x?}");
}

/// A permission fault that finds a block with a mark in it makes it pages, or at least the one that
/// it is about, and does so for more blocks than a vCPU has tables in stock.
fn permission_faults_split_blocks() {
    const BLOCKS: usize = 48;
    let backing = Backing::AnonymousThp;
    let size = backing.need_many_huge_pages(BLOCKS);
    let mut machine = Machine::with_huge_pages_and_guest(backing, BLOCKS, 1, guest::write_pages);
    let stride = Bytes::of_pages(size).0;
    machine.vcpus[0].set_args(Gva(GPA.0), BLOCKS as u64, stride);
    let write_all = |machine: &mut Machine| {
        for block in pages(0..BLOCKS) {
            expect_eq!(machine.run(), Exit::numbered(block), "block {}", block.0);
        }
    };
    write_all(&mut machine);
    expect_eq!(machine.slot.in_blocks(), all(&machine));

    // The log takes the permission to write away from whatever is mapped.
    machine.slot.set_flags(KVM_MEM_LOG_DIRTY_PAGES);
    machine.slot.set_flags(0);
    expect_read_only(&machine);
    let bitmap = Bitmap::new(size * BLOCKS);
    let _flag = machine.enable(&bitmap);
    (0..BLOCKS).for_each(|block| bitmap.mark(Page(block * size + 1)));
    write_all(&mut machine);
    let mapped = machine.slot.mapped();
    for block in 0..BLOCKS {
        assert!(
            mapped.contains(&Page(block * size)),
            "block {block} is not mapped"
        );
        let covered = mapped.contains(&Page(block * size + 1));
        assert!(!covered, "block {block} has its marked page");
    }
}

/// A permission fault makes no block of pages, either, where one is marked.
fn permission_faults_join_no_pages() {
    let (backing, entry) = (Backing::AnonymousThp, guest::write_pages);
    let mut machine = Machine::with_huge_pages_and_guest(backing, 1, 2, entry);
    let last = machine.slot.pages() - 1;
    machine.slot.set_flags(KVM_MEM_LOG_DIRTY_PAGES);
    for page in pages(0..last) {
        expect_eq!(machine.run(), Exit::numbered(page));
    }
    [0, KVM_MEM_LOG_DIRTY_PAGES, 0].map(|flags| machine.slot.set_flags(flags));
    expect_read_only(&machine);
    let bitmap = Bitmap::new(last + 1).with(last..last + 1);
    let _flag = machine.enable(&bitmap);
    let userfault = machine.userfault(Page(last));
    // The other vCPU begins at the first page.
    let vcpu = &mut machine.vcpus[1];
    for page in pages(0..last) {
        expect_eq!(vcpu.run(), Exit::numbered(page));
    }
    expect_eq!(vcpu.run(), userfault);
    expect_eq!(machine.slot.in_blocks(), []);
}

/// Once the flag is clear, faults are sized as in any other slot.
fn faults_after_a_disable_map_blocks() {
    let mut machine = Machine::with_huge_pages(Backing::AnonymousThp, 1);
    let bitmap = Bitmap::new(machine.slot.pages()).with(0..1);
    machine.slot.recreate(&bitmap).disable();
    machine.read_all();
    expect_eq!(machine.slot.in_blocks(), all(&machine));
}

/// Deleting the slot and creating it again, after a disable, gets blocks back.
fn recreated_slot_has_blocks() {
    let mut machine = Machine::with_huge_pages(Backing::AnonymousThp, 1);
    let last = machine.slot.pages() - 1;
    let bitmap = Bitmap::new(last + 1).with(last..last + 1);
    let flag = machine.slot.recreate(&bitmap);
    machine.read(0..last);
    flag.disable();
    expect_eq!(machine.slot.in_blocks(), []);

    expect_eq!(machine.slot.region().delete(), Ok(()));
    expect_eq!(machine.slot.region().set(), Ok(()));
    expect_eq!(machine.slot.mapped(), []);
    machine.read(last..last + 1);
    machine.read_all();
    expect_eq!(machine.slot.in_blocks(), all(&machine));
}

/// A slot whose memory is several mappings, of different kinds.
fn slot_of_several_mappings() {
    const PAGES: usize = 16;
    let mut machine = Machine::new(Backing::Anonymous, PAGES);
    machine.slot.area().replace(3..4);
    machine.slot.area().replace(8..9);
    machine.slot.fill();
    let bitmap = Bitmap::new(PAGES).with(2..5).with(8..9);
    let _flag = machine.enable(&bitmap);
    for page in pages(0..PAGES) {
        if bitmap.is_marked(page) {
            expect_eq!(machine.run(), machine.userfault(page));
            bitmap.clear(page);
        }
        machine.read(page.0..page.0 + 1);
    }
}

test_main! {
    about: "What stage 2 maps while the flag of userfault is set.",
    needs: needs_userfault,
    cases: [
        marks_in_anonymous_thp = || check_marks_in_huge_page(Backing::AnonymousThp),
        marks_in_shmem_thp = || check_marks_in_huge_page(Backing::ShmemThp),
        marks_in_anonymous_hugetlb = || check_marks_in_huge_page(Backing::AnonymousHugetlb),
        marks_in_shared_hugetlb = || check_marks_in_huge_page(Backing::SharedHugetlb),
        marks_in_hugetlb_of_other_sizes,
        block_never_covers_a_marked_page,
        blocks_of_anonymous_thp: needs_helper = ||
            check_blocks_of_clear_memory(Backing::AnonymousThp),
        blocks_of_shmem_thp: needs_helper = || check_blocks_of_clear_memory(Backing::ShmemThp),
        blocks_of_anonymous_hugetlb: needs_helper = ||
            check_blocks_of_clear_memory(Backing::AnonymousHugetlb),
        blocks_of_shared_hugetlb: needs_helper = ||
            check_blocks_of_clear_memory(Backing::SharedHugetlb),
        clear_memory_has_pages: needs_no_helper,
        mark_keeps_its_own_block_out: needs_helper,
        slot_that_begins_within_a_block: needs_helper,
        logged_slot_has_pages,
        unreadable_marks_keep_a_block_out,
        permission_faults_split_blocks: needs_helper,
        permission_faults_join_no_pages,
        faults_after_a_disable_map_blocks,
        recreated_slot_has_blocks,
        slot_of_several_mappings,
    ],
}
