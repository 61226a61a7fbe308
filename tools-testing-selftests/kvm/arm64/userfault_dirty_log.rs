// SPDX-License-Identifier: GPL-2.0-only

//! Userfault and dirty logging on the same slot.
//!
//! They are independent. A failure means that a VMM which migrates a guest that is still being
//! restored would send pages that nobody wrote, or miss some that were written.

use libkvm::*;

const PAGES: usize = 16;
const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;

fn machine() -> Machine {
    Machine::with_guest(Backing::Anonymous, PAGES, 1, guest::write_pages)
}

/// Lets the vCPU write to pages, each of which must succeed.
#[track_caller]
fn write(machine: &mut Machine, numbers: std::ops::Range<usize>) {
    for page in pages(numbers) {
        expect_eq!(machine.run(), Exit::numbered(page));
    }
}

/// Checks which pages are reported as dirty, once.
#[track_caller]
fn expect_dirty(machine: &Machine, numbers: std::ops::Range<usize>) {
    expect_eq!(
        machine.slot.dirty_pages(),
        pages(numbers).collect::<Vec<_>>()
    );
}

/// A page is dirty when it was written to, not when the write had to wait.
fn exit_leaves_no_dirty_bit() {
    let mut machine = machine();
    let bitmap = Bitmap::marked(PAGES);
    let _flag = machine.slot.enable_with(&bitmap, LOG);

    expect_eq!(machine.run(), machine.userfault(Page(0)));
    expect_dirty(&machine, 0..0);
    bitmap.clear(Page(0));
    write(&mut machine, 0..1);
    expect_dirty(&machine, 0..1);
    expect_eq!(machine.run(), machine.userfault(Page(1)));
    expect_dirty(&machine, 0..0);
}

/// The same for the ring.
fn exit_leaves_no_ring_entry() {
    let vm = Vm::special(Kind::DirtyRing(4096), PAGES, 1, guest::write_pages);
    let mut machine = Machine::of_vm(vm, Backing::Anonymous, PAGES);
    let bitmap = Bitmap::marked(PAGES);
    let _flag = machine.slot.enable_with(&bitmap, LOG);
    expect_eq!(machine.run(), machine.userfault(Page(0)));
    expect_eq!(machine.vcpus[0].harvest_dirty_ring(), []);
    bitmap.clear(Page(0));
    write(&mut machine, 0..1);
    expect_eq!(machine.vcpus[0].harvest_dirty_ring(), [(SLOT, Page(0))]);
}

/// What is only read is in no ring.
fn reads_leave_no_ring_entry() {
    let vm = Vm::special(Kind::DirtyRing(4096), PAGES, 1, guest::read_pages);
    let mut machine = Machine::of_vm(vm, Backing::Anonymous, PAGES);
    machine.slot.fill();
    let bitmap = Bitmap::new(PAGES);
    let _flag = machine.slot.enable_with(&bitmap, LOG);
    machine.read_all();
    expect_eq!(machine.vcpus[0].harvest_dirty_ring(), []);
}

/// Where the VM has no log but the ring, each page of a huge page is in there that is written to: a
/// block would be there as its first page only.
fn check_ring_of_a_huge_page(userfault: bool) {
    let count = Backing::AnonymousThp.need_huge_pages(1);
    let vm = Vm::special(Kind::DirtyRing(4096), count, 1, guest::write_pages);
    let mut machine = Machine::of_vm(vm, Backing::AnonymousThp, count);
    machine.slot.fill();
    machine.slot.need_huge();
    machine.slot.set_flags(LOG);
    let bitmap = Bitmap::new(count);
    let _flag = userfault.then(|| machine.slot.recreate(&bitmap));

    write(&mut machine, 0..8);
    let expected: Vec<_> = pages(0..8).map(|page| (SLOT, page)).collect();
    expect_eq!(machine.vcpus[0].harvest_dirty_ring(), expected);
    expect_eq!(machine.slot.in_blocks(), []);
}

/// There a store makes a block pages, for more blocks than a vCPU has tables in stock.
///
/// KVM warns if it has none then, which taints the kernel.
fn ring_splits_blocks() {
    let taints = || std::fs::read_to_string("/proc/sys/kernel/tainted").expect("no taints");
    let before = taints();
    const BLOCKS: usize = 48;
    let backing = Backing::AnonymousThp;
    let size = backing.need_many_huge_pages(BLOCKS);
    let count = size * BLOCKS;
    let vm = Vm::special(Kind::DirtyRing(4096), count, 1, guest::write_pages);
    let mut machine = Machine::of_vm(vm, backing, count);
    machine.slot.fill();
    machine.slot.need_huge();
    let stride = Bytes::of_pages(size).0;
    machine.vcpus[0].set_args(Gva(GPA.0), BLOCKS as u64, stride);
    write(&mut machine, 0..BLOCKS);
    expect_eq!(machine.slot.in_blocks().len(), count);

    machine.slot.set_flags(LOG);
    write(&mut machine, 0..BLOCKS);
    let expected: Vec<_> = (0..BLOCKS)
        .map(|block| (SLOT, Page(block * size)))
        .collect();
    let mut dirty = machine.vcpus[0].harvest_dirty_ring();
    // A page that the host takes away meanwhile is there twice.
    dirty.dedup();
    expect_eq!(dirty, expected);
    expect_eq!(taints(), before);
    expect_eq!(machine.slot.in_blocks(), []);
}

/// A full ring and marks alternate, and no page is lost: neither takes the place of the other.
fn full_ring_and_marks_alternate() {
    // The smallest ring that there can be, which is larger than KVM's reserve.
    let entries = page_size() / 16;
    let count = 3 * entries;
    let vm = Vm::special(Kind::DirtyRing(entries), count, 1, guest::write_pages);
    let mut machine = Machine::of_vm(vm, Backing::Anonymous, count);
    let bitmap = Bitmap::marked(count);
    let _flag = machine.slot.enable_with(&bitmap, LOG);
    let (mut dirty, mut full, mut page) = (Vec::new(), 0, 0);
    while page < count {
        match machine.run() {
            Exit::Userfault { gpa, .. } => {
                expect_eq!(machine.slot.page_of(gpa), Page(page));
                assert!(bitmap.clear(Page(page)), "page {page} again");
            }
            Exit::DirtyRingFull => {
                full += 1;
                dirty.extend(machine.vcpus[0].harvest_dirty_ring());
            }
            exit => {
                expect_eq!(exit, Exit::numbered(Page(page)));
                page += 1;
            }
        }
    }
    dirty.extend(machine.vcpus[0].harvest_dirty_ring());
    assert!(full > 0, "the ring was never full");
    // A page whose write has to be done again when the ring has room is there twice.
    dirty.sort_unstable();
    dirty.dedup();
    expect_eq!(dirty.len(), count, "dirty pages");
}

/// Setting or clearing userfault neither starts nor stops nor repeats what dirty logging does:
/// what was written stays reported once, and what is writable stays so.
fn toggling_userfault_leaves_the_log_alone() {
    let mut machine = machine();
    let bitmap = Bitmap::new(PAGES);
    machine.slot.set_flags(LOG);
    write(&mut machine, 0..4);

    let flag = machine.enable(&bitmap);
    write(&mut machine, 4..8);
    flag.disable();
    write(&mut machine, 8..12);
    expect_dirty(&machine, 0..12);
    write(&mut machine, 12..PAGES);
    expect_dirty(&machine, 12..PAGES);
}

/// The same, seen in stage 2: clearing userfault changes no mapping of a slot with a log.
fn disable_keeps_mappings_of_a_logged_slot() {
    let mut machine = machine();
    let bitmap = Bitmap::new(PAGES);
    let flag = machine.slot.enable_with(&bitmap, LOG);
    write(&mut machine, 0..8);
    let before = machine.slot.mappings();
    assert!(
        before.iter().any(|mapping| mapping.is_writable),
        "{before:x?}"
    );
    flag.disable();
    expect_eq!(machine.slot.mappings(), before);
}

/// Starting and stopping the log under userfault works as ever, brings no other bitmap, and marked
/// pages stay marked.
fn toggling_the_log_leaves_userfault_alone() {
    let mut machine = machine();
    let last = PAGES - 1;
    let bitmap = Bitmap::new(PAGES).with(last..PAGES);
    let _flag = machine.enable(&bitmap);
    write(&mut machine, 0..4);
    let other = Bitmap::new(PAGES);
    let replaced = machine.slot.region().toggled(LOG).bitmap(&other);
    expect_eq!(replaced.set_unguarded(), Err(Errno::EINVAL), "other bitmap");

    machine.slot.set_flags(LOG);
    write(&mut machine, 4..last);
    expect_eq!(machine.run(), machine.userfault(Page(last)));
    expect_dirty(&machine, 4..last);

    machine.slot.set_flags(0);
    expect_eq!(machine.run(), machine.userfault(Page(last)));
    bitmap.clear(Page(last));
    write(&mut machine, last..PAGES);
}

/// Starting the log under userfault takes the permission to write from what is mapped, and no
/// mapping; stopping it changes nothing.
fn toggling_the_log_keeps_mappings() {
    let mut machine = machine();
    let bitmap = Bitmap::new(PAGES);
    let _flag = machine.enable(&bitmap);
    write(&mut machine, 0..PAGES);
    let mapped = machine.slot.mapped();
    expect_eq!(mapped.len(), PAGES);

    machine.slot.set_flags(LOG);
    expect_eq!(machine.slot.mapped(), mapped, "started");
    let writable = machine
        .slot
        .mappings()
        .iter()
        .any(|mapping| mapping.is_writable);
    expect_eq!(writable, false, "what is written now goes unnoticed");
    write(&mut machine, 0..2);
    let before = machine.slot.mappings();
    machine.slot.set_flags(0);
    expect_eq!(machine.slot.mappings(), before, "stopped");
}

/// Both in one call, set and clear, in every combination.
fn both_flags_in_one_call() {
    let started = |machine: &mut Machine, bitmap: &Bitmap| {
        write(machine, 0..1);
        expect_eq!(machine.run(), machine.userfault(Page(1)));
        bitmap.clear(Page(1));
        write(machine, 1..PAGES);
    };
    let bitmap = Bitmap::new(PAGES);

    let mut both_set = machine();
    write(&mut both_set, 0..PAGES);
    bitmap.mark(Page(1));
    let flag = both_set.slot.enable_with(&bitmap, LOG);
    started(&mut both_set, &bitmap);
    expect_dirty(&both_set, 0..PAGES);
    flag.disable_with(0);
    write(&mut both_set, 0..PAGES);

    let mut exchanged = machine();
    exchanged.slot.set_flags(LOG);
    write(&mut exchanged, 0..PAGES);
    bitmap.mark(Page(1));
    let flag = exchanged.slot.enable_with(&bitmap, 0);
    started(&mut exchanged, &bitmap);
    flag.disable_with(LOG);
    write(&mut exchanged, 0..PAGES);
    expect_dirty(&exchanged, 0..PAGES);
}

/// The same where the VMM decides when pages are watched, and all are dirty at first.
fn log_that_starts_with_all_pages() {
    let mut machine = machine();
    let how = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
    let capability = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
    let enabled = machine.vm.enable_capability(capability, how.into());
    expect_eq!(enabled, Ok(()));
    let bitmap = Bitmap::marked(PAGES);
    let flag = machine.slot.enable_with(&bitmap, LOG);
    expect_dirty(&machine, 0..PAGES);
    machine.slot.clear_dirty_log();

    expect_eq!(machine.run(), machine.userfault(Page(0)));
    expect_dirty(&machine, 0..0);
    bitmap.clear(Page(0));
    write(&mut machine, 0..1);
    expect_dirty(&machine, 0..1);

    machine.slot.clear_dirty_log();
    flag.disable();
    expect_dirty(&machine, 0..0);
    write(&mut machine, 1..PAGES);
    expect_dirty(&machine, 1..PAGES);
}

/// Blocks that are split in advance when the log starts hide no marked page either.
fn log_that_splits_blocks_in_advance() {
    let count = Backing::AnonymousThp.need_huge_pages(1);
    let kind = Kind::EagerSplit(Bytes::of_pages(count));
    let vm = Vm::special(kind, count, 1, guest::read_pages);
    let mut machine = Machine::of_vm(vm, Backing::AnonymousThp, count);
    machine.slot.fill();
    machine.slot.need_huge();
    machine.read_all();
    expect_eq!(machine.slot.in_blocks().len(), count);

    // Without userfault the block becomes pages that are all mapped.
    machine.slot.set_flags(LOG);
    expect_eq!(machine.slot.in_blocks(), []);
    expect_eq!(machine.slot.mapped().len(), count, "split in advance");
    machine.slot.set_flags(0);

    let last = count - 1;
    let bitmap = Bitmap::new(count).with(last..count);
    let _flag = machine.slot.enable_with(&bitmap, LOG);
    let mapped = machine.slot.mapped();
    assert!(!mapped.contains(&Page(last)), "the marked page is mapped");
    machine.read(0..last);
    expect_eq!(machine.run(), machine.userfault(Page(last)));

    machine.slot.set_flags(0);
    machine.slot.set_flags(LOG);
    expect_eq!(machine.run(), machine.userfault(Page(last)));
}

/// A new snapshot half way through a restore: the log has what was written, and what is still
/// marked is known by the bitmap, whether or not it was discarded meanwhile.
fn snapshot_half_way() {
    let mut machine = machine();
    let bitmap = Bitmap::marked(PAGES);
    let flag = machine.slot.enable_with(&bitmap, LOG);
    for page in pages(0..PAGES / 2) {
        expect_eq!(machine.run(), machine.userfault(page));
        bitmap.clear(page);
        write(&mut machine, page.0..page.0 + 1);
    }
    // The balloon takes a page that was there, and one that was not.
    machine.slot.discard(Page(2));
    machine.slot.discard(Page(PAGES - 1));
    expect_dirty(&machine, 0..PAGES / 2);
    let marked = pages(0..PAGES).filter(|page| bitmap.is_marked(*page));
    expect_eq!(
        marked.collect::<Vec<_>>(),
        pages(PAGES / 2..PAGES).collect::<Vec<_>>()
    );
    expect_eq!(machine.run(), machine.userfault(Page(PAGES / 2)));
    expect_dirty(&machine, 0..0);
    flag.disable();
}

test_main! {
    about: "Userfault and dirty logging on the same slot.",
    // Cases that do not need userfault run without it too.
    cases: [
        exit_leaves_no_dirty_bit: needs_userfault,
        exit_leaves_no_ring_entry: needs_userfault,
        reads_leave_no_ring_entry: needs_userfault,
        ring_has_each_page_of_a_huge_page = || check_ring_of_a_huge_page(false),
        ring_has_each_page_with_userfault: needs_userfault = || check_ring_of_a_huge_page(true),
        ring_splits_blocks,
        full_ring_and_marks_alternate: needs_userfault,
        toggling_userfault_leaves_the_log_alone: needs_userfault,
        disable_keeps_mappings_of_a_logged_slot: needs_userfault,
        toggling_the_log_leaves_userfault_alone: needs_userfault,
        toggling_the_log_keeps_mappings: needs_userfault,
        both_flags_in_one_call: needs_userfault,
        log_that_starts_with_all_pages: needs_userfault,
        log_that_splits_blocks_in_advance: needs_userfault,
        snapshot_half_way: needs_userfault,
    ],
}
