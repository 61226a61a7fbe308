// SPDX-License-Identifier: GPL-2.0-only

//! What becomes of the accesses that KVM itself makes to marked pages, here to the tables of the
//! interrupt controller.
//!
//! They do not exit. A VMM supplies such pages first, or has a userfaultfd for them. A failure
//! means that this does not work for an access of KVM, or that one does more than it should: that
//! it fails, or changes marks.
//!
//! The others that KVM makes, to stolen time and to tags, are in `userfault_memory`.

use libkvm::*;
use std::ops::Range;

/// What has a part of the slot each, of the 64K that tables are aligned to.
#[derive(Clone, Copy)]
enum Part {
    /// The table of devices, whose first entry points to the next part, which has the devices.
    Devices,
    DevicesOfEntry,
    Collections,
    Translations,
    Commands,
    Configuration,
    Pending,
    End,
}

impl Part {
    fn start(self) -> Bytes {
        Bytes((self as u64) << 16)
    }

    fn gpa(self) -> Gpa {
        GPA + self.start()
    }

    fn page(self) -> usize {
        self.start().0 as usize / page_size()
    }
}

/// The interrupt of the device's event, and where its bit is in the table of those pending.
const DEVICE: u32 = 0;
const EVENT: u32 = 0;
const LPI: u64 = 8192;
const PENDING_WORD: usize = LPI as usize / 64;

/// Marks addresses and commands that count.
const VALID: u64 = 1 << 63;

/// Has a table point to tables.
const INDIRECT: u64 = 1 << 62;

/// What the guest has written to the queue: it maps the device, a collection and the event, and has
/// these numbers for what it may do with them later.
fn commands() -> [[u64; 4]; 6] {
    const BITS_OF_EVENTS: u64 = 5;
    let translations = Part::Translations.gpa().0;
    [
        [0x08, BITS_OF_EVENTS - 1, VALID | translations, 0],
        [0x09, 0, VALID, 0],
        [0x0a, LPI << 32, 0, 0],
        [0x0c, 0, 0, 0],
        [0x0f, 0, 0, 0],
        [0x08, 0, 0, 0],
    ]
}

const MAP: Range<u64> = 0..3;
const INV: Range<u64> = 3..4;
const DISCARD: Range<u64> = 4..5;
const MAPD_THAT_UNMAPS: Range<u64> = 5..6;

/// What the guest has set for the interrupt: it is enabled.
const CONFIGURATION: u64 = 0xa1;

guest_code! {
    /// Tells the host which interrupt there is.
    fn tell_interrupt(guest: Guest, _base: Gva, _pages: u64, _stride: u64) {
        loop {
            guest.sync(0, guest.pending_interrupt());
        }
    }
}

/// Tells the ITS where its tables are, or that it has none.
fn set_tables(its: &Its, are_valid: bool) {
    for (register, part, is) in [
        (0, Part::Devices, VALID | INDIRECT),
        (8, Part::Collections, VALID),
    ] {
        let address = if are_valid { is | part.gpa().0 } else { 0 };
        its.set(GITS_BASER + register, address);
    }
}

/// A machine whose interrupt controller has its tables in the slot, with the registers restored
/// that say where.
fn machine() -> (Machine, Its) {
    const BITS_OF_LPIS: u64 = 16;
    let count = Part::End.page();
    let mut machine = Machine::with_guest(Backing::Anonymous, count, 1, tell_interrupt);
    let its = machine.vm.add_its();
    let parts = |register: u64| [register as u32, (register >> 32) as u32];
    let configuration = Part::Configuration.gpa().0 | (BITS_OF_LPIS - 1);
    its.set_redistributor(GICR_PROPBASER, parts(configuration));
    its.set_redistributor(GICR_PENDBASER, parts(Part::Pending.gpa().0));
    its.set(GITS_CBASER, VALID | Part::Commands.gpa().0);
    set_tables(&its, true);
    its.enable_distributor();
    (machine, its)
}

/// Lets LPIs and the ITS begin.
fn enable(its: &Its) {
    its.set_redistributor(GICR_CTLR, [1]);
    its.set(GITS_CTLR, 1);
}

/// Has the ITS execute commands when it begins.
fn execute(its: &Its, commands: Range<u64>) {
    its.set(GITS_CTLR, 0);
    its.set(GITS_CREADR, commands.start * 32);
    its.set(GITS_CWRITER, commands.end * 32);
    its.set(GITS_CTLR, 1);
}

/// Returns the memory of a guest that was saved while the interrupt was pending.
///
/// All of it was marked: KVM does not mind.
fn snapshot() -> Vec<Vec<u8>> {
    let (machine, its) = machine();
    let count = machine.slot.pages();
    for (number, command) in commands().iter().enumerate() {
        for (word, value) in command.iter().enumerate() {
            let queue = Page(Part::Commands.page());
            machine.slot.write(queue, 4 * number + word, *value);
        }
    }
    let configuration = Page(Part::Configuration.page());
    machine.slot.write(configuration, 0, CONFIGURATION);
    let devices = VALID | Part::DevicesOfEntry.gpa().0;
    machine.slot.write(Page(Part::Devices.page()), 0, devices);
    let bitmap = Bitmap::marked(count);
    let _flag = machine.enable(&bitmap);
    enable(&its);
    execute(&its, MAP);
    assert!(its.signal(DEVICE, EVENT), "no interrupt for the event");
    expect_eq!(its.save_tables(), Ok(()));
    expect_eq!(its.save_pending_tables(), Ok(()));
    expect_eq!(pages(0..count).all(|page| bitmap.is_marked(page)), true);
    pages(0..count)
        .map(|page| machine.slot.content(page))
        .collect()
}

/// When the pages are there that KVM accesses.
#[derive(Clone, Copy, PartialEq)]
enum Supplied {
    /// After KVM has been there, when the guest asks for them.
    Late,
    /// By userfaultfd, while KVM waits.
    ByUserfaultfd,
    /// Before.
    First,
}

/// Has KVM access parts of a restored guest's memory, which are marked, while the others are there.
fn restore(supplied: Supplied, parts: Range<Part>, access: impl FnOnce(&Its)) -> (Machine, Its) {
    restore_after(|_| (), supplied, parts, access)
}

/// As [`restore`], after something for which all of the memory was there.
fn restore_after(
    before: impl FnOnce(&Its),
    supplied: Supplied,
    parts: Range<Part>,
    access: impl FnOnce(&Its),
) -> (Machine, Its) {
    let snapshot = snapshot();
    let (machine, its) = machine();
    let supply = |page: Page| machine.slot.fill_page(page, &snapshot[page.0]);
    pages(0..snapshot.len()).for_each(supply);
    before(&its);
    let missing = parts.start.page()..parts.end.page();
    let bitmap = Bitmap::new(snapshot.len()).with(missing.clone());
    for page in pages(missing.clone()) {
        machine.slot.discard(page);
        if supplied == Supplied::First {
            supply(page);
        }
    }

    let flag = machine.enable(&bitmap);
    if supplied == Supplied::ByUserfaultfd {
        let uffd = Uffd::new(machine.slot.area());
        let content = |page: Page| snapshot[page.0].clone();
        let ((), asked) = uffd.serve(content, || access(&its));
        assert!(asked.contains(&Page(missing.start)), "KVM was not there");
    } else {
        access(&its);
    }
    let marked = pages(missing.clone()).all(|page| bitmap.is_marked(page));
    expect_eq!(marked, true, "all that was marked");
    if supplied == Supplied::Late {
        pages(missing).for_each(supply);
    }
    flag.disable();
    (machine, its)
}

fn restore_tables(its: &Its) {
    expect_eq!(its.restore_tables(), Ok(()));
}

/// Tables of an ITS that are restored while their pages are marked are empty, without an error.
///
/// They are found if they come by userfaultfd, or are supplied first.
fn check_tables(supplied: Supplied, are_found: bool) {
    let (_machine, its) = restore(supplied, Part::Devices..Part::Commands, restore_tables);
    enable(&its);
    let signalled = its.signal(DEVICE, EVENT);
    expect_eq!(signalled, are_found, "there is an interrupt for the event");
}

/// The same for commands that the ITS is told to execute.
fn check_commands(supplied: Supplied, are_found: bool) {
    let (_machine, its) = restore(supplied, Part::Commands..Part::Configuration, |its| {
        enable(its);
        execute(its, MAP);
    });
    let signalled = its.signal(DEVICE, EVENT);
    expect_eq!(signalled, are_found, "there is an interrupt for the event");
}

/// Checks what KVM saves of interrupts that are pending.
#[track_caller]
fn expect_pending((machine, its): (Machine, Its), is_found: bool) {
    expect_eq!(its.save_pending_tables(), Ok(()));
    let word = machine.slot.read(Page(Part::Pending.page()), PENDING_WORD);
    expect_eq!(word, u64::from(is_found), "interrupts that are pending");
}

/// The same for interrupts that are pending, which KVM looks for when the ITS has them again.
fn check_pending(supplied: Supplied, is_found: bool) {
    let restored = restore(supplied, Part::Pending..Part::End, restore_tables);
    expect_pending(restored, is_found);
}

/// The same where LPIs begin when the ITS has them already.
fn check_pending_when_enabled(supplied: Supplied, is_found: bool) {
    let before = |its: &Its| execute(its, MAP);
    let restored = restore_after(before, supplied, Part::Pending..Part::End, enable);
    expect_pending(restored, is_found);
}

/// An interrupt whose configuration is read again, and is marked, becomes disabled.
fn check_invalidated(supplied: Supplied, is_enabled: bool) {
    let begin = |its: &Its| {
        enable(its);
        execute(its, MAP);
    };
    let parts = Part::Configuration..Part::Pending;
    let (mut machine, _its) = restore_after(begin, supplied, parts, |its| execute(its, INV));
    const NONE: u64 = 1023;
    let interrupt = if is_enabled { LPI } else { NONE };
    expect_eq!(machine.run(), Exit::Sync(0, interrupt));
}

/// An entry that a command takes out of a table comes back with the page that is supplied later.
fn check_unmapped(supplied: Supplied, comes_back: bool) {
    for (parts, command) in [
        (Part::Translations..Part::Commands, DISCARD),
        (Part::DevicesOfEntry..Part::Collections, MAPD_THAT_UNMAPS),
    ] {
        let map = |its: &Its| execute(its, MAP);
        let unmap = |its: &Its| execute(its, command.clone());
        let (_machine, its) = restore_after(map, supplied, parts, unmap);
        its.set(GITS_CTLR, 0);
        set_tables(&its, false);
        set_tables(&its, true);
        restore_tables(&its);
        enable(&its);
        let signalled = its.signal(DEVICE, EVENT);
        expect_eq!(signalled, comes_back, "an interrupt after {command:?}");
    }
}

/// What KVM saves to a page that is marked is lost when the VMM supplies the page afterwards.
fn what_is_saved_to_a_marked_page_is_lost() {
    let (machine, its) = restore(
        Supplied::First,
        Part::Devices..Part::Commands,
        restore_tables,
    );
    let page = Page(Part::DevicesOfEntry.page());
    let older = vec![0; page_size()];
    machine.slot.fill_page(page, &older);
    let bitmap = Bitmap::marked(machine.slot.pages());
    let _flag = machine.enable(&bitmap);
    expect_eq!(its.save_tables(), Ok(()));
    assert!(machine.slot.content(page) != older, "KVM saved nothing");
    machine.slot.fill_page(page, &older);
    bitmap.clear(page);

    set_tables(&its, false);
    set_tables(&its, true);
    restore_tables(&its);
    enable(&its);
    let signalled = its.signal(DEVICE, EVENT);
    expect_eq!(signalled, false, "there is an interrupt for the event");
}

/// A log has what KVM saves.
fn log_has_what_is_saved() {
    let parts = Part::Devices..Part::Commands;
    let (machine, its) = restore(Supplied::First, parts, restore_tables);
    let bitmap = Bitmap::new(machine.slot.pages());
    let _flag = machine.slot.enable_with(&bitmap, KVM_MEM_LOG_DIRTY_PAGES);
    expect_eq!(its.save_tables(), Ok(()));
    let dirty = machine.slot.dirty_pages();
    let devices = Page(Part::DevicesOfEntry.page());
    assert!(dirty.contains(&devices), "{dirty:?}");
}

test_main! {
    about: "Accesses of KVM itself to marked pages, where the interrupt controller has its tables.",
    needs: needs_userfault,
    cases: [
        marked_tables_are_empty = || check_tables(Supplied::Late, false),
        tables_come_by_userfaultfd = || check_tables(Supplied::ByUserfaultfd, true),
        tables_are_supplied_first = || check_tables(Supplied::First, true),
        marked_commands_are_lost = || check_commands(Supplied::Late, false),
        commands_come_by_userfaultfd = || check_commands(Supplied::ByUserfaultfd, true),
        commands_are_supplied_first = || check_commands(Supplied::First, true),
        marked_interrupts_are_not_pending = || check_pending(Supplied::Late, false),
        pending_interrupts_come_by_userfaultfd = || check_pending(Supplied::ByUserfaultfd, true),
        pending_interrupts_are_supplied_first = || check_pending(Supplied::First, true),
        enabled_lpis_have_no_marked_interrupt = ||
            check_pending_when_enabled(Supplied::Late, false),
        enabled_lpis_wait_for_userfaultfd = ||
            check_pending_when_enabled(Supplied::ByUserfaultfd, true),
        enabled_lpis_have_what_was_supplied = || check_pending_when_enabled(Supplied::First, true),
        marked_configuration_disables = || check_invalidated(Supplied::Late, false),
        configuration_comes_by_userfaultfd = || check_invalidated(Supplied::ByUserfaultfd, true),
        configuration_is_supplied_first = || check_invalidated(Supplied::First, true),
        entries_of_marked_tables_come_back = || check_unmapped(Supplied::Late, true),
        entries_are_taken_out_by_userfaultfd = || check_unmapped(Supplied::ByUserfaultfd, false),
        entries_are_taken_out_of_what_was_supplied = || check_unmapped(Supplied::First, false),
        what_is_saved_to_a_marked_page_is_lost,
        log_has_what_is_saved,
    ],
}
