// SPDX-License-Identifier: GPL-2.0-only

//! Blocks in stage 2 while the flag is set: mapped where none of their pages is marked, and
//! nowhere else.
//!
//! A failure means that a marked page is within reach of the guest, or that memory which is all
//! there is slower than it has to be.

use libkvm::{
    fixture::{
        need_block,
        need_mappings,
        needs_userfault,
        Machine, //
    },
    guest,
    host_page_size,
    ktap,
    test_main,
    Area,
    Backing,
    Bitmap,
    Errno,
    Exit,
    Mapping,
    Region,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_USERFAULT, //
};

/// The level of the tables whose entries map what a table of pages would.
const BLOCK_LEVEL: u8 = 2;

/// Creates a machine of two huge pages of the host, which have all of their memory, and returns
/// how its guest has them mapped without the flag. Skips the case if that is not by blocks.
fn two_blocks(backing: Backing) -> (Machine, Vec<Mapping>) {
    let mut machine = Machine::new(backing, 2 * backing.pages_per_page());
    machine.fill();
    machine.read_all();
    let blocks = need_block(machine.mappings());
    (machine, blocks)
}

/// Creates the machine's slot again, so that nothing is mapped, with the flag and a bitmap.
fn recreate(machine: &Machine, bitmap: &Bitmap, region: Region) {
    let region = Region {
        flags: KVM_MEM_USERFAULT,
        userfault_bitmap: bitmap.address(),
        ..region
    };
    assert_eq!(machine.vm.recreate(&machine.slot, region), Ok(()));
}

/// Memory of which nothing is marked is mapped as it is without the flag.
fn clear_memory_has_blocks() {
    let mut compared = 0;
    for backing in Backing::available() {
        let mut machine = Machine::new(backing, 2 * backing.pages_per_page());
        machine.fill();
        machine.read_all();
        let blocks = need_mappings(machine.mappings());
        // Blocks of blocks are not for userfault.
        if !blocks.iter().all(|mapping| mapping.level == BLOCK_LEVEL) {
            ktap::diagnostic(&format!("no blocks of {backing:?} to compare with"));
            continue;
        }
        compared += 1;
        let bitmap = Bitmap::new(machine.slot.pages());
        recreate(&machine, &bitmap, machine.slot.region());

        machine.read_all();
        assert_eq!(machine.mappings(), Some(blocks), "{backing:?}");
    }
    if compared == 0 {
        ktap::skip("no memory that is mapped by blocks");
    }
}

/// A mark keeps out the block that it is in, wherever it is there, and no other. When it is
/// cleared, the block is mapped.
fn mark_keeps_its_own_block_out() {
    let (mut machine, blocks) = two_blocks(Backing::AnonymousThp);
    let size = machine.slot.pages() / 2;
    let bitmap = Bitmap::new(machine.slot.pages());

    for marked in [size, size + 1, size + 63, size + size / 2, 2 * size - 1] {
        bitmap.mark(marked);
        recreate(&machine, &bitmap, machine.slot.region());
        machine.read(0..marked);
        assert_eq!(machine.run(), machine.userfault(marked));
        let second = machine.slot.gpa(size);
        for mapping in machine.mappings().iter().flatten() {
            let in_first = mapping.range.start < second;
            assert_eq!(mapping.is_block(), in_first, "{marked}: {mapping:x?}");
        }

        bitmap.clear(marked);
        machine.read(marked..machine.slot.pages());
        assert_eq!(machine.mappings().as_ref(), Some(&blocks), "{marked}");
    }
}

/// Blocks are where the guest's memory has them, whatever the slot begins with: the bits of a
/// block may begin within a byte, and a mark next to the block does not keep it out.
fn slot_that_begins_within_a_block() {
    two_blocks(Backing::AnonymousThp);
    let size = Backing::AnonymousThp.pages_per_page();
    let cases = [(size - 1, true), (size, false), (2 * size - 1, false)];
    let mut machine = Machine::with_guest(
        Backing::AnonymousThp,
        2 * size,
        cases.len(),
        guest::read_pages,
    );
    machine.fill();
    let (whole, probe, skipped) = (machine.slot.region(), size + 5, 3);
    let bytes = (skipped * host_page_size()) as u64;
    let region = Region {
        guest_phys_addr: whole.guest_phys_addr + bytes,
        userspace_addr: whole.userspace_addr + bytes,
        memory_size: whole.memory_size - bytes,
        ..whole
    };

    for (vcpu, (marked, is_block)) in cases.into_iter().enumerate() {
        let bitmap = Bitmap::new(2 * size - skipped);
        bitmap.mark(marked - skipped);
        recreate(&machine, &bitmap, region);

        let vcpu = &mut machine.vcpus[vcpu];
        vcpu.set_args([machine.slot.gpa(probe), 1, host_page_size() as u64]);
        assert_eq!(vcpu.run(), Exit::Sync(0, probe as u64));
        for mapping in machine.mappings().iter().flatten() {
            assert_eq!(mapping.is_block(), is_block, "{marked}: {mapping:x?}");
        }
    }
}

/// A page of a block that is marked again and dropped exits, and the others are there.
fn marked_page_takes_its_block_away() {
    let (mut machine, _) = two_blocks(Backing::AnonymousThp);
    let marked = machine.slot.pages() - 7;
    let bitmap = Bitmap::new(machine.slot.pages());
    recreate(&machine, &bitmap, machine.slot.region());
    machine.read_all();
    need_block(machine.mappings());

    bitmap.mark(marked);
    machine.slot.discard(marked);
    machine.read(0..marked);
    assert_eq!(machine.run(), machine.userfault(marked));
}

/// A slot whose dirty pages are logged is mapped by pages all the same.
fn logged_slot_has_pages() {
    let (mut machine, _) = two_blocks(Backing::AnonymousThp);
    let bitmap = Bitmap::new(machine.slot.pages());
    recreate(&machine, &bitmap, machine.slot.region());
    let flags = KVM_MEM_USERFAULT | KVM_MEM_LOG_DIRTY_PAGES;
    assert_eq!(machine.slot.set_flags(flags, Some(&bitmap)), Ok(()));

    machine.read_all();
    for mapping in machine.mappings().iter().flatten() {
        assert!(!mapping.is_block(), "{mapping:x?}");
    }
}

/// A block whose marks cannot all be read is not mapped, but its pages are whose marks can.
fn unreadable_marks_keep_a_block_out() {
    let (mut machine, _) = two_blocks(Backing::AnonymousThp);
    let area = Area::new(1);
    let readable = 4;
    let region = Region {
        flags: KVM_MEM_USERFAULT,
        userfault_bitmap: area.address() + (area.len() - readable) as u64,
        ..machine.slot.region()
    };
    assert_eq!(machine.vm.recreate(&machine.slot, region), Ok(()));

    machine.read(0..readable * 8);
    for mapping in machine.mappings().iter().flatten() {
        assert!(!mapping.is_block(), "{mapping:x?}");
    }
    let exit = machine.run();
    assert!(
        matches!(
            exit,
            Exit::Error {
                errno: Errno::EFAULT,
                ..
            }
        ),
        "{exit:x?}"
    );
}

test_main! {
    needs: needs_userfault,
    cases: [
        clear_memory_has_blocks,
        mark_keeps_its_own_block_out,
        slot_that_begins_within_a_block,
        marked_page_takes_its_block_away,
        logged_slot_has_pages,
        unreadable_marks_keep_a_block_out,
    ]
}
