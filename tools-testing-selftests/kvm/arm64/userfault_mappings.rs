// SPDX-License-Identifier: GPL-2.0-only

//! What stage 2 maps while the flag is set, and what setting and clearing it does to mappings.
//!
//! A failure means that a marked page is within reach of the guest, or that clearing the flag
//! costs what nobody asked for.

use libkvm::{
    fixture::{
        need_block,
        need_mappings,
        needs_userfault,
        Machine, //
    },
    test_main,
    Backing,
    Bitmap,
    Mapping, //
};

/// While the flag is set, memory that could be mapped by a block is mapped by pages, so that a
/// marked page in the block stays out.
fn block_never_covers_a_marked_page() {
    let mut machine = Machine::with_block();
    let marked = machine.slot.pages() - 1;
    let bitmap = Bitmap::new(machine.slot.pages());
    bitmap.mark(marked);
    machine.enable(&bitmap);

    machine.read(0..marked);
    for mapping in machine.mappings().iter().flatten() {
        assert!(!mapping.is_block(), "a block: {mapping:x?}");
        let end = machine.slot.gpa(marked);
        assert!(mapping.range.end <= end, "the marked page: {mapping:x?}");
    }
    assert_eq!(machine.run(), machine.userfault(marked));
}

/// When the call that sets the flag returns, what was mapped before is gone, blocks included.
fn enable_takes_mappings_away() {
    let mut machine = Machine::with_block();
    let marked = 3;
    let bitmap = Bitmap::new(machine.slot.pages());
    bitmap.mark(marked);

    machine.read_all();
    if machine.mappings().is_some() {
        need_block(machine.mappings());
    }
    machine.enable(&bitmap);
    let marked_gpa = machine.slot.gpa(marked);
    for mapping in machine.mappings().iter().flatten() {
        let covers = mapping.range.contains(&marked_gpa);
        assert!(!covers, "still there: {mapping:x?}");
    }
    machine.read(0..marked);
    assert_eq!(machine.run(), machine.userfault(marked));
}

/// When the call that clears the flag returns, every mapping is still there.
fn disable_keeps_mappings() {
    let mut machine = Machine::with_block();
    let last = machine.slot.pages() - 1;
    let bitmap = Bitmap::new(machine.slot.pages());
    bitmap.mark(last);
    machine.enable(&bitmap);
    machine.read(0..last);
    let before = need_mappings(machine.mappings());

    machine.disable();
    assert_eq!(machine.mappings(), Some(before));
}

/// Has all pages read, and returns how many exits that took, those to the kernel included.
fn exits_to_read_all(machine: &mut Machine) -> u64 {
    let before = machine.vcpus[0].stat(c"exits");
    machine.read_all();
    machine.vcpus[0].stat(c"exits") - before
}

/// The same, seen by the guest: no page has to be mapped again, which would take an exit more.
fn disable_costs_no_faults() {
    let pages = 64;
    let mut machine = Machine::new(Backing::Anonymous, pages);
    let bitmap = Bitmap::new(pages);
    machine.fill();
    machine.enable(&bitmap);
    machine.read_all();

    let before = exits_to_read_all(&mut machine);
    machine.disable();
    let after = exits_to_read_all(&mut machine);
    // The host's interrupts make some.
    let limit = before + pages as u64 / 2;
    assert!(after < limit, "{after} exits, {before} before");
}

/// Once the flag is clear, faults are sized as in any other slot.
fn faults_after_a_disable_map_blocks() {
    let mut machine = Machine::with_block();
    machine.read_all();
    let blocks = need_block(machine.mappings());

    // The mark takes the block away.
    let bitmap = Bitmap::new(machine.slot.pages());
    bitmap.mark(0);
    machine.enable(&bitmap);
    assert_ne!(machine.mappings(), Some(blocks.clone()));
    machine.disable();
    machine.read_all();
    assert_eq!(machine.mappings(), Some(blocks));
}

/// Deleting the slot and creating it again, after a disable, gets blocks back.
fn recreated_slot_has_blocks() {
    let mut machine = Machine::with_block();
    machine.read_all();
    let blocks = need_block(machine.mappings());

    let last = machine.slot.pages() - 1;
    let bitmap = Bitmap::new(machine.slot.pages());
    bitmap.mark(last);
    machine.enable(&bitmap);
    machine.read(0..last);
    assert_eq!(machine.run(), machine.userfault(last));
    machine.disable();
    assert_ne!(machine.mappings(), Some(blocks.clone()));
    let region = machine.slot.region();
    assert_eq!(machine.vm.recreate(&machine.slot, region), Ok(()));
    assert_eq!(machine.mappings(), Some(vec![]));
    machine.read(last..last + 1);
    machine.read_all();
    assert_eq!(machine.mappings(), Some(blocks));
}

/// Whatever the memory is made of, marked pages exit and others are mapped by pages.
fn every_backing_is_mapped_by_pages() {
    for backing in Backing::available() {
        let pages = backing.pages_per_page().max(16);
        let mut machine = Machine::new(backing, pages);
        machine.fill();
        machine.read_all();

        let bitmap = Bitmap::new(pages);
        bitmap.mark(pages - 1);
        machine.enable(&bitmap);
        machine.read(0..pages - 1);
        let mappings = machine.mappings();
        let blocks = mappings
            .iter()
            .flatten()
            .filter(|mapping| mapping.is_block());
        assert_eq!(
            blocks.collect::<Vec<&Mapping>>(),
            [] as [&Mapping; 0],
            "{backing:?}"
        );
        assert_eq!(machine.run(), machine.userfault(pages - 1), "{backing:?}");
    }
}

test_main! {
    needs: needs_userfault,
    cases: [
        block_never_covers_a_marked_page,
        enable_takes_mappings_away,
        disable_keeps_mappings,
        disable_costs_no_faults,
        faults_after_a_disable_map_blocks,
        recreated_slot_has_blocks,
        every_backing_is_mapped_by_pages,
    ]
}
