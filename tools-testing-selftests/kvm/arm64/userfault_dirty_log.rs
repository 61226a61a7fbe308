// SPDX-License-Identifier: GPL-2.0-only

//! Userfault and dirty logging on the same slot.
//!
//! They are independent. A failure means that a VMM which migrates a guest that is still being
//! restored would send pages that nobody wrote, or miss some that were written.

use libkvm::{
    fixture::{
        needs_userfault,
        Machine,
        GPA,
        SLOT, //
    },
    guest,
    host_page_size,
    ktap,
    test_main,
    Backing,
    Bitmap,
    Exit,
    Vm,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_USERFAULT, //
};

const PAGES: usize = 16;
const BOTH: u32 = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_USERFAULT;

fn machine() -> Machine {
    Machine::with_guest(Backing::Anonymous, PAGES, 1, guest::write_pages)
}

/// Lets the vCPU write to pages, each of which must succeed.
fn write(machine: &mut Machine, pages: std::ops::Range<usize>) {
    for page in pages {
        assert_eq!(machine.run(), Exit::Sync(page as u64, page as u64));
    }
}

/// A page is dirty when it was written to, not when the write had to wait.
fn exit_leaves_no_dirty_bit() {
    let mut machine = machine();
    let bitmap = Bitmap::marked(PAGES);
    assert_eq!(machine.slot.set_flags(BOTH, Some(&bitmap)), Ok(()));

    assert_eq!(machine.run(), machine.userfault(0));
    assert_eq!(machine.slot.dirty_pages(), []);
    bitmap.clear(0);
    write(&mut machine, 0..1);
    assert_eq!(machine.slot.dirty_pages(), [0]);
    assert_eq!(machine.run(), machine.userfault(1));
    assert_eq!(machine.slot.dirty_pages(), []);
}

/// The same for the ring.
fn exit_leaves_no_ring_entry() {
    let made = Vm::with_dirty_ring(1, PAGES, guest::write_pages, 4096);
    let (mut vm, mut vcpus) = match made {
        Ok(made) => made,
        Err(error) => ktap::skip(format!("no dirty ring: {error:?}")),
    };
    let slot = vm.add_slot(Backing::Anonymous, SLOT, GPA, PAGES);
    let vcpu = &mut vcpus[0];
    vcpu.set_args([GPA, PAGES as u64, host_page_size() as u64]);
    let bitmap = Bitmap::marked(PAGES);
    assert_eq!(slot.set_flags(BOTH, Some(&bitmap)), Ok(()));

    let before = vcpu.dirty_ring();
    assert!(matches!(vcpu.run(), Exit::Userfault { .. }));
    assert_eq!(of_slot(&vcpu.dirty_ring()), of_slot(&before));
    bitmap.clear(0);
    assert_eq!(vcpu.run(), Exit::Sync(0, 0));
    assert_eq!(of_slot(&vcpu.dirty_ring()), [0]);
}

/// Returns the pages of the slot that is tested.
fn of_slot(ring: &[(u32, u64)]) -> Vec<u64> {
    let entries = ring.iter().filter(|entry| entry.0 == SLOT);
    entries.map(|entry| entry.1).collect()
}

/// Setting or clearing userfault neither starts nor stops nor repeats what dirty logging does:
/// what was written stays reported once, and what is writable stays so.
fn toggling_userfault_leaves_the_log_alone() {
    let mut machine = machine();
    let bitmap = Bitmap::new(PAGES);
    let log = KVM_MEM_LOG_DIRTY_PAGES;
    assert_eq!(machine.slot.set_flags(log, None), Ok(()));
    write(&mut machine, 0..4);

    assert_eq!(machine.slot.set_flags(BOTH, Some(&bitmap)), Ok(()));
    write(&mut machine, 4..8);
    let writable = machine.mappings();
    assert_eq!(machine.slot.set_flags(log, None), Ok(()));
    assert_eq!(
        machine.mappings(),
        writable,
        "clearing userfault changed mappings"
    );
    write(&mut machine, 8..12);
    assert_eq!(machine.slot.dirty_pages(), (0..12).collect::<Vec<_>>());
    write(&mut machine, 12..PAGES);
    assert_eq!(machine.slot.dirty_pages(), (12..PAGES).collect::<Vec<_>>());
}

/// Starting and stopping the log under userfault works as ever, and marked pages stay marked.
fn toggling_the_log_leaves_userfault_alone() {
    let mut machine = machine();
    let bitmap = Bitmap::new(PAGES);
    bitmap.mark(PAGES - 1);
    assert_eq!(
        machine.slot.set_flags(KVM_MEM_USERFAULT, Some(&bitmap)),
        Ok(())
    );
    write(&mut machine, 0..4);

    assert_eq!(machine.slot.set_flags(BOTH, Some(&bitmap)), Ok(()));
    write(&mut machine, 4..PAGES - 1);
    assert_eq!(machine.run(), machine.userfault(PAGES - 1));
    assert_eq!(
        machine.slot.dirty_pages(),
        (4..PAGES - 1).collect::<Vec<_>>()
    );

    assert_eq!(
        machine.slot.set_flags(KVM_MEM_USERFAULT, Some(&bitmap)),
        Ok(())
    );
    assert_eq!(machine.run(), machine.userfault(PAGES - 1));
    bitmap.clear(PAGES - 1);
    write(&mut machine, PAGES - 1..PAGES);
}

/// Both in one call, set and clear, in every combination.
fn both_flags_in_one_call() {
    for (from, to) in [
        (0, BOTH),
        (BOTH, 0),
        (KVM_MEM_USERFAULT, KVM_MEM_LOG_DIRTY_PAGES),
        (KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_USERFAULT),
    ] {
        let mut machine = machine();
        let bitmap = Bitmap::new(PAGES);
        if from != 0 {
            assert_eq!(machine.slot.set_flags(from, Some(&bitmap)), Ok(()));
        }
        write(&mut machine, 0..PAGES);
        bitmap.mark(1);
        assert_eq!(machine.slot.set_flags(to, Some(&bitmap)), Ok(()));

        write(&mut machine, 0..1);
        if to & KVM_MEM_USERFAULT != 0 && from & KVM_MEM_USERFAULT == 0 {
            assert_eq!(machine.run(), machine.userfault(1), "{from:#x} to {to:#x}");
            bitmap.clear(1);
        }
        write(&mut machine, 1..PAGES);
        if to & KVM_MEM_LOG_DIRTY_PAGES != 0 {
            let all: Vec<_> = (0..PAGES).collect();
            assert_eq!(machine.slot.dirty_pages(), all, "{from:#x} to {to:#x}");
        }
    }
}

/// The same where the VMM decides when pages are watched, and all are dirty at first.
fn log_that_starts_with_all_pages() {
    let mut machine = machine();
    assert_eq!(machine.vm.set_initially_dirty(), Ok(()));
    let bitmap = Bitmap::marked(PAGES);
    assert_eq!(machine.slot.set_flags(BOTH, Some(&bitmap)), Ok(()));
    assert_eq!(machine.slot.dirty_pages(), (0..PAGES).collect::<Vec<_>>());
    machine.slot.clear_dirty_log();

    assert_eq!(machine.run(), machine.userfault(0));
    assert_eq!(machine.slot.dirty_pages(), []);
    bitmap.clear(0);
    write(&mut machine, 0..1);
    assert_eq!(machine.slot.dirty_pages(), [0]);

    machine.slot.clear_dirty_log();
    assert_eq!(
        machine.slot.set_flags(KVM_MEM_LOG_DIRTY_PAGES, None),
        Ok(())
    );
    assert_eq!(machine.slot.dirty_pages(), []);
    write(&mut machine, 1..PAGES);
    assert_eq!(machine.slot.dirty_pages(), (1..PAGES).collect::<Vec<_>>());
}

/// Blocks that are split in advance when the log starts hide no marked page either.
fn log_that_splits_blocks_in_advance() {
    let (size, pages) = (
        Backing::AnonymousThp.page_size(),
        Backing::AnonymousThp.pages_per_page(),
    );
    let made = Vm::with_eager_splitting(pages, guest::read_pages, size);
    let (vm, vcpus) = match made {
        Ok(made) => made,
        Err(error) => ktap::skip(format!("no eager splitting: {error:?}")),
    };
    let mut machine = Machine::with_vm(vm, vcpus, Backing::AnonymousThp, pages);
    machine.fill();
    let bitmap = Bitmap::new(pages);
    bitmap.mark(pages - 1);
    machine.read_all();
    assert_eq!(machine.slot.set_flags(BOTH, Some(&bitmap)), Ok(()));
    machine.read(0..pages - 1);
    assert_eq!(machine.run(), machine.userfault(pages - 1));

    assert_eq!(
        machine.slot.set_flags(KVM_MEM_USERFAULT, Some(&bitmap)),
        Ok(())
    );
    assert_eq!(machine.slot.set_flags(BOTH, Some(&bitmap)), Ok(()));
    assert_eq!(machine.run(), machine.userfault(pages - 1));
}

test_main! {
    needs: needs_userfault,
    cases: [
        exit_leaves_no_dirty_bit,
        exit_leaves_no_ring_entry,
        toggling_userfault_leaves_the_log_alone,
        toggling_the_log_leaves_userfault_alone,
        both_flags_in_one_call,
        log_that_starts_with_all_pages,
        log_that_splits_blocks_in_advance,
    ]
}
