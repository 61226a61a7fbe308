// SPDX-License-Identifier: GPL-2.0-only

//! What `KVM_MEM_USERFAULT` promises when the guest is a hypervisor.
//!
//! The VMM knows nothing of the guest L2 that its guest L1 runs: it marks pages of L1, and exits
//! name pages of L1, whoever touched them. A failure of a case means that L2, or the CPU on behalf
//! of L1, runs on memory that is not there yet, or that the VMM is asked for the wrong page.

use libkvm::*;
use std::{
    ops::Range,
    sync::atomic::{
        AtomicU64,
        AtomicUsize,
        Ordering, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

/// The slot that is tested, at an address of L1 that is aligned for any block.
const L1_GPA: Gpa = Gpa(2 << 30);

/// Where the one who accesses it has the slot: L2 in its physical addresses, and L1, for registers
/// of L2, in its virtual addresses.
///
/// Not the same, so that exits with the wrong one are noticed.
const ELSEWHERE: u64 = 1 << 30;

/// The slot with the stage 2 that L1 has for L2.
const TABLE_SLOT: u32 = 2;
const TABLE: Gpa = Gpa(5 << 30);

/// A granule of stage 2 that is not that of most hosts.
const GRANULE: usize = 65536;

/// What the L2 of [`run_register_user`] has done with TPIDR_EL2.
const READ: u64 = 0;
const WRITTEN: u64 = 1;

guest_code! {
    /// L1, which runs an L2 that reads the first word of each page.
    fn run_reader(guest: Guest, base: Gva, pages: u64, page_size: u64) {
        guest.set_stage2(TABLE, page_size);
        guest.enter_l2(guest_el2::STAGE2, guest::read_pages, base, pages, page_size)
    }

    /// As [`run_reader`], with an L2 that writes to the pages.
    fn run_writer(guest: Guest, base: Gva, pages: u64, page_size: u64) {
        guest.set_stage2(TABLE, page_size);
        guest.enter_l2(guest_el2::STAGE2, guest::write_pages, base, pages, page_size)
    }

    /// As [`run_reader`], with an L2 that has the addresses of L1.
    fn run_reader_without_stage2(guest: Guest, base: Gva, pages: u64, page_size: u64) {
        guest.enter_l2(0, guest::read_pages, base, pages, page_size)
    }

    /// As [`run_reader`], where the L2 of each vCPU has a VMID of its own.
    fn run_reader_with_own_vmid(guest: Guest, base: Gva, pages: u64, page_size: u64) {
        guest.set_stage2(TABLE, page_size);
        guest.use_own_vmid();
        guest.enter_l2(guest_el2::STAGE2, guest::read_pages, base, pages, page_size)
    }

    /// As [`run_reader`], with [`GRANULE`].
    ///
    /// L1 tells first whether it has that.
    fn run_reader_by_granule(guest: Guest, base: Gva, pages: u64, page_size: u64) {
        guest.sync(0, guest.has_stage2_granule_of_64k().into());
        guest.set_stage2(TABLE, GRANULE as u64);
        guest.enter_l2(guest_el2::STAGE2, guest::read_pages, base, pages, page_size)
    }

    /// As [`run_reader`], where the CPU sets the access flag.
    ///
    /// L1 tells first whether it can.
    fn run_reader_without_access_flag(guest: Guest, base: Gva, pages: u64, page_size: u64) {
        guest.set_stage2(TABLE, page_size);
        guest.sync(0, guest.let_cpu_set_access_flag().into());
        guest.enter_l2(guest_el2::STAGE2, guest::read_pages, base, pages, page_size)
    }

    /// L1, which runs an L2 that looks for zeroes.
    fn run_hunter(guest: Guest, base: Gva, pages: u64, page_size: u64) {
        guest.set_stage2(TABLE, page_size);
        guest.enter_l2(guest_el2::STAGE2, guest::hunt_zero, base, pages, page_size)
    }

    /// An L2 that believes it is a hypervisor: reads TPIDR_EL2, once and `more` times, and adds one
    /// to it.
    fn use_register(guest: Guest, _base: Gva, more: u64, _second: u64) {
        loop {
            let value = guest.read_tpidr_el2();
            guest.sync(READ, value);
            for _ in 0..more {
                guest.read_tpidr_el2();
            }
            let value = value.wrapping_add(1);
            guest.write_tpidr_el2(value);
            guest.sync(WRITTEN, value);
        }
    }

    /// L1, which runs an L2 whose registers of EL2 are in memory at the given address.
    fn run_register_user(guest: Guest, vncr: Gva, more: u64, _second: u64) {
        guest.set_vncr(vncr);
        guest.enter_l2(guest_el2::NV2, use_register, vncr, more, 0)
    }

    /// L1, which has the CPU translate an address over and over, in one of the ways that there are.
    fn translate(guest: Guest, address: Gva, _first: u64, _second: u64) {
        loop {
            guest.sync(0, guest.translate(address));
        }
    }

    fn translate_for_el2(guest: Guest, address: Gva, _first: u64, _second: u64) {
        loop {
            guest.sync(0, guest.translate_for_el2(address));
        }
    }

    fn translate_for_l2(guest: Guest, address: Gva, _pages: u64, page_size: u64) {
        guest.set_stage2(TABLE, page_size);
        loop {
            guest.sync(0, guest.translate_for_l2(address));
        }
    }
}

/// The page of the slot with L2's registers, and where TPIDR_EL2 is, in bytes from the page's start
/// to the registers and in words to TPIDR_EL2.
///
/// Registers take 4K, whatever the size of a page is.
const REGISTERS: Page = Page(1);

fn registers_offset() -> usize {
    page_size() - 4096
}

fn register_word() -> usize {
    registers_offset() / size_of::<u64>() + guest_el2::TPIDR_EL2_WORD
}

/// A machine whose L2 reads all pages of the slot one after the other, and the stage 2 that L1 has
/// for it, in memory of these kinds.
fn with_l2(
    [backing, of_table]: [Backing; 2],
    count: usize,
    vcpus: usize,
    l1: guest::Entry,
) -> (Machine, L2Table) {
    let (mut vm, mut vcpus) = Vm::new(2 * count + 2, vcpus, l1);
    let slot = Slot::new(&mut vm, backing, SLOT, L1_GPA, count);
    // In L2's stage 1, which is L1's, L2 has the slot where L1's stage 2 has it.
    vm.map(Gva(ELSEWHERE), Gpa(ELSEWHERE), count);
    let table = L2Table::new(&mut vm, of_table, TABLE_SLOT, TABLE, page_size());
    table.map(Gpa(0)..Gpa(ELSEWHERE), Gpa(0));
    table.map(Gpa(ELSEWHERE)..L1_GPA, L1_GPA);
    for vcpu in &mut vcpus {
        vcpu.set_args(Gva(ELSEWHERE), count as u64, page_size() as u64);
    }
    slot.fill();
    (Machine { vm, vcpus, slot }, table)
}

fn with_reader(backing: Backing, count: usize) -> Machine {
    with_l2([backing, Backing::Anonymous], count, 1, run_reader).0
}

/// As [`with_reader`], with a slot that is one huge page.
fn with_huge_page() -> Machine {
    let backing = Backing::AnonymousThp;
    let machine = with_reader(backing, backing.need_huge_pages(1));
    machine.slot.need_huge();
    machine
}

/// A machine whose L2 has its registers in the slot, each vCPU its own, and reads one `more` times
/// before it writes it.
fn with_registers(backing: Backing, vcpus: usize, more: u64) -> Machine {
    let count = 2 * vcpus + 1;
    let (mut vm, mut vcpus) = Vm::new(2 * count, vcpus, run_register_user);
    let slot = Slot::new(&mut vm, backing, SLOT, L1_GPA, count);
    // VNCR_EL2 is a virtual address of L1.
    vm.map(Gva(ELSEWHERE), L1_GPA, count);
    for (number, vcpu) in vcpus.iter_mut().enumerate() {
        let page = Page(REGISTERS.0 + 2 * number);
        let vncr = Gva(ELSEWHERE) + page.offset() + Bytes(registers_offset() as u64);
        vcpu.set_args(vncr, more, 0);
    }
    Machine { vm, vcpus, slot }
}

/// Runs L1 until it has told whether its CPU has what the case needs, or skips that.
fn need_of_l1(machine: &mut Machine, what: &str) {
    let told = machine.run();
    if told == Exit::Sync(0, 0) {
        ktap::skip(format!("the CPU of L1 has no {what}"));
    }
    expect_eq!(told, Exit::Sync(0, 1));
}

/// Returns L2's addresses of pages.
fn l2_addresses(numbers: Range<usize>) -> Range<Gpa> {
    let address = |page: usize| Gpa(ELSEWHERE) + Page(page).offset();
    address(numbers.start)..address(numbers.end)
}

/// An access of L2 to a marked page exits with the address that L1 has for it, as often as it is
/// tried, and L2 sees the page that was supplied before the mark was cleared.
fn check_marked_page_of_l2(backing: Backing) {
    let mut machine = with_reader(backing, 19);
    let bitmap = Bitmap::marked(19);
    let _flag = machine.enable(&bitmap);

    for page in pages(0..19) {
        let userfault = machine.userfault(page);
        expect_eq!(machine.run(), userfault);
        expect_eq!(machine.run(), userfault, "again");
        bitmap.clear(page);
        machine.read(page.0..page.0 + 1);
    }
    machine.read_all();
}

/// A store of L2 exits as a load does, and is executed anew.
///
/// The log has L1's pages that L2 writes to, when it does.
fn store_of_l2_exits() {
    let (mut machine, _table) = with_l2([Backing::Anonymous; 2], 4, 1, run_writer);
    let bitmap = Bitmap::marked(4);
    let _flag = machine.slot.enable_with(&bitmap, KVM_MEM_LOG_DIRTY_PAGES);
    for page in pages(0..4) {
        machine.slot.write(page, 0, 100);
        expect_eq!(machine.run(), machine.userfault(page));
        expect_eq!(machine.slot.read(page, 0), 100, "written while marked");
        bitmap.clear(page);
        if page == Page(3) {
            expect_eq!(machine.slot.dirty_pages(), [0, 1, 2].map(Page));
        }
        expect_eq!(machine.run(), Exit::numbered(page));
        expect_eq!(machine.slot.read(page, 0), u64::from(page));
    }
    expect_eq!(machine.slot.dirty_pages(), [Page(3)]);
}

/// Exits name the right page where L2's addresses are addresses of the slot as well, but of other
/// pages of it: here L2's third gigabyte is L1's fourth, and the slot has both.
fn l2_addresses_inside_the_slot() {
    let gigabyte = Bytes(1 << 30);
    let half = gigabyte.0 as usize / page_size();
    let (mut vm, mut vcpus) = Vm::new(64, 1, run_reader);
    let slot = Slot::undeclared(&vm, &Area::new(Backing::Anonymous, 2 * half), SLOT, L1_GPA);
    expect_eq!(slot.region().set(), Ok(()));
    vm.map(Gva(L1_GPA.0), L1_GPA, 8);
    let anonymous = Backing::Anonymous;
    let table = L2Table::new(&mut vm, anonymous, TABLE_SLOT, TABLE, page_size());
    table.map(Gpa(0)..L1_GPA, Gpa(0));
    table.map(L1_GPA..L1_GPA + gigabyte, L1_GPA + gigabyte);
    vcpus[0].set_args(Gva(L1_GPA.0), 8, page_size() as u64);
    for page in pages(0..8) {
        slot.write(Page(half + page.0), 0, page.into());
    }
    let mut machine = Machine { vm, vcpus, slot };

    // Pages that have the same number in L2 are marked too, and of no consequence.
    let bitmap = Bitmap::new(2 * half).with(0..2).with(half + 3..half + 5);
    let _flag = machine.enable(&bitmap);
    for page in pages(0..8) {
        let inside = Page(half + page.0);
        if bitmap.is_marked(inside) {
            expect_eq!(machine.run(), machine.userfault(inside));
            bitmap.clear(inside);
        }
        machine.read(page.0..page.0 + 1);
    }
    bitmap.mark(Page(half + 6));
    machine.slot.discard(Page(half + 6));
    machine.read(0..6);
    expect_eq!(machine.run(), machine.userfault(Page(half + 6)), "dropped");
}

/// A mark is for a page of the host, also where a page of L1's stage 2 is several of them, and at
/// another place than in L2.
fn marks_inside_a_page_of_l1() {
    let (in_granule, count) = (GRANULE / page_size(), 3 * GRANULE / page_size());
    let (mut vm, mut vcpus) = Vm::new(4 * count, 1, run_reader_by_granule);
    let slot = Slot::new(&mut vm, Backing::Anonymous, SLOT, L1_GPA, count);
    vm.map(Gva(ELSEWHERE), Gpa(ELSEWHERE), count);
    let table = L2Table::new(&mut vm, Backing::Anonymous, TABLE_SLOT, TABLE, GRANULE);
    table.map(Gpa(0)..Gpa(ELSEWHERE), Gpa(0));
    // In L1 the last comes first.
    let in_l1 = |page: Page| Page((2 - page.0 / in_granule) * in_granule + page.0 % in_granule);
    for page in pages(0..count).step_by(in_granule) {
        table.map_page(Gpa(ELSEWHERE) + page.offset(), slot.gpa(in_l1(page)));
    }
    vcpus[0].set_args(Gva(ELSEWHERE), count as u64, page_size() as u64);
    slot.fill();
    let mut machine = Machine { vm, vcpus, slot };
    need_of_l1(&mut machine, "granule of 64K for stage 2");

    let bitmap = Bitmap::new(count);
    pages(0..count)
        .step_by(2)
        .for_each(|page| bitmap.mark(page));
    let _flag = machine.enable(&bitmap);
    for page in pages(0..count) {
        let in_l1 = in_l1(page);
        if bitmap.is_marked(in_l1) {
            expect_eq!(machine.run(), machine.userfault(in_l1));
            bitmap.clear(in_l1);
        }
        expect_eq!(machine.run(), Exit::Sync(page.into(), in_l1.into()));
    }
}

/// L2's memory is mapped by pages where a page of the block is marked, even where both L1's and the
/// host's are blocks.
fn block_of_l2_never_covers_a_marked_page() {
    let mut machine = with_huge_page();
    let last = machine.slot.pages() - 1;
    let bitmap = Bitmap::new(last + 1).with(last..last + 1);
    let _flag = machine.enable(&bitmap);

    machine.read(0..last);
    let mappings = machine.vm.shadow_mappings(l2_addresses(0..last + 1));
    let blocks = mappings.iter().any(|mapping| mapping.is_block());
    expect_eq!(blocks, false, "{mappings:x?}");
    let covered = l2_addresses(0..last).end;
    expect_eq!(mappings.last().map(|last| last.range.end), Some(covered));
    expect_eq!(machine.run(), machine.userfault(Page(last)));
}

/// Has L2 read all of the slot, which it has blocks for.
#[track_caller]
fn read_all_by_blocks(machine: &mut Machine) {
    machine.read_all();
    let all = l2_addresses(0..machine.slot.pages());
    let mappings = machine.vm.shadow_mappings(all);
    let is_block = |mapping: &Mapping| mapping.is_block();
    assert!(
        !mappings.is_empty() && mappings.iter().all(is_block),
        "{mappings:x?}"
    );
}

/// Where nothing of a block is marked, L2 has the block.
fn l2_has_blocks_where_nothing_is_marked() {
    let mut machine = with_huge_page();
    let bitmap = Bitmap::new(machine.slot.pages());
    let _flag = machine.enable(&bitmap);
    read_all_by_blocks(&mut machine);
}

/// When the call that sets the flag returns, what L2 could access of marked pages is gone, blocks
/// included.
fn enable_leaves_no_marked_page_in_shadow_stage2() {
    let mut machine = with_huge_page();
    let count = machine.slot.pages();
    read_all_by_blocks(&mut machine);

    let marked = [3, count - 1];
    let bitmap = Bitmap::new(count);
    marked.map(|page| bitmap.mark(Page(page)));
    let _flag = machine.enable(&bitmap);
    for page in marked {
        let mappings = machine.vm.shadow_mappings(l2_addresses(page..page + 1));
        expect_eq!(mappings, [], "page {page}");
    }
    for page in pages(0..count) {
        if bitmap.is_marked(page) {
            expect_eq!(machine.run(), machine.userfault(page));
            bitmap.clear(page);
        }
        machine.read(page.0..page.0 + 1);
    }
}

/// Once a page that L2 has accessed is marked and dropped, the next access of L2 exits.
fn check_dropped_page_of_l2(backing: Backing) {
    let mut machine = with_reader(backing, 19);
    let bitmap = Bitmap::new(19);
    let _flag = machine.enable(&bitmap);
    machine.read_all();

    for dropped in [0, 18].map(Page) {
        bitmap.mark(dropped);
        machine.slot.discard(dropped);
        machine.read(0..dropped.0);
        expect_eq!(machine.run(), machine.userfault(dropped));
        machine.slot.write(dropped, 0, dropped.into());
        bitmap.clear(dropped);
        machine.read(dropped.0..19);
    }
}

/// A slot that is created again, with the flag, has nothing that L2 could use from before.
fn recreated_slot_of_l2_exits() {
    let mut machine = with_reader(Backing::Anonymous, 4);
    machine.read_all();
    let bitmap = Bitmap::new(4).with(2..3);
    let _flag = machine.slot.recreate(&bitmap);
    machine.read(0..2);
    expect_eq!(machine.run(), machine.userfault(Page(2)));
    bitmap.clear(Page(2));
    machine.read(2..4);
}

/// An L2 without a stage 2 of L1's has one of KVM's all the same.
fn l2_without_stage2_exits() {
    let vm = Vm::new(8, 1, run_reader_without_stage2);
    let mut machine = Machine::of_vm(vm, Backing::Anonymous, 4);
    machine.slot.fill();
    machine.read_all();
    let bitmap = Bitmap::new(4).with(1..2);
    let _flag = machine.enable(&bitmap);
    machine.read(0..1);
    expect_eq!(machine.run(), machine.userfault(Page(1)));
    bitmap.clear(Page(1));
    machine.read(1..4);
}

/// A page goes from each L2 that there is.
fn dropped_page_of_two_l2s_exits() {
    let entry = run_reader_with_own_vmid;
    let (mut machine, _table) = with_l2([Backing::Anonymous; 2], 2, 2, entry);
    let bitmap = Bitmap::new(2);
    let _flag = machine.enable(&bitmap);
    for vcpu in &mut machine.vcpus {
        pages(0..2).for_each(|page| expect_eq!(vcpu.run(), Exit::numbered(page)));
    }
    bitmap.mark(Page(0));
    machine.slot.discard(Page(0));
    let userfault = machine.userfault(Page(0));
    for vcpu in &mut machine.vcpus {
        expect_eq!(vcpu.run(), userfault);
    }
}

/// A slot whose pages the host has kept aside, and dropped.
struct Aside {
    slot: Slot,
    bitmap: Bitmap,
    content: Vec<Vec<u8>>,
}

impl Aside {
    fn new(slot: &Slot) -> Self {
        let all = pages(0..slot.pages());
        let content = all.clone().map(|page| slot.content(page)).collect();
        all.for_each(|page| slot.discard(page));
        Self {
            slot: slot.clone(),
            bitmap: Bitmap::marked(slot.pages()),
            content,
        }
    }

    /// Supplies the page that an exit is about, which must be marked, or returns `false`.
    fn supply(&self, gpa: Gpa) -> bool {
        let page = self.slot.page_of(gpa);
        if page.0 >= self.slot.pages() {
            return false;
        }
        expect_eq!(self.slot.gpa(page), gpa);
        self.slot.fill_page(page, &self.content[page.0]);
        expect_eq!(self.bitmap.clear(page), true, "{gpa:?} once more");
        true
    }
}

/// L1 and its L2 run from memory of which nothing is there: code, stacks, the tables of both
/// stages, and what L2 reads.
///
/// Each page is asked for once.
fn check_all_of_l1(backing: Backing) {
    let (mut machine, table) = with_l2([backing; 2], 3, 1, run_reader);
    // This one is always anonymous.
    let own = Slot::of_tables(&mut machine.vm);
    let aside = [&machine.slot, &table.slot, &own].map(Aside::new);
    let _flags = aside.each_ref().map(|one| one.slot.enable(&one.bitmap));
    for page in pages(0..3) {
        let exit = loop {
            match machine.run() {
                Exit::Userfault { gpa, .. } => {
                    let is_there = aside.iter().any(|one| one.supply(gpa));
                    assert!(is_there, "{gpa:?} is not in a slot");
                }
                exit => break exit,
            }
        };
        expect_eq!(exit, Exit::numbered(page));
        let is_marked = aside[0].bitmap.is_marked(page) || aside[1].bitmap.is_marked(Page(0));
        expect_eq!(is_marked, false, "{page:?} or the table was not asked for");
    }
}

/// How long a race takes at least.
///
/// Rounds are few under emulation: KVM drops all that it has for all L2s when something is dropped
/// in the slot, and takes its time for it.
const RACE: Duration = Duration::from_secs(5);

/// A page is taken from L2s that use it, over and over: they exit for it, and none sees it empty.
fn race_for_a_page_of_l2() {
    let (mut machine, _table) = with_l2([Backing::Anonymous; 2], 2, 2, run_hunter);
    let bitmap = Bitmap::new(2);
    machine.slot.write(Page(1), 0, 1);
    machine.slot.write(Page(0), 0, 1);
    let _flag = machine.enable(&bitmap);
    let userfault = machine.userfault(Page(1));
    let exits = AtomicUsize::new(0);
    let on_exit = |_, exit| {
        expect_eq!(exit, userfault);
        exits.fetch_add(1, Ordering::Relaxed);
        thread::yield_now();
    };
    machine.run_while(on_exit, |slot| {
        let start = Instant::now();
        for round in 1.. {
            bitmap.mark(Page(1));
            slot.discard(Page(1));
            let before = exits.load(Ordering::Relaxed);
            ktap::wait_for("the dropped page to be asked for", || {
                exits.load(Ordering::Relaxed) > before
            });
            slot.write(Page(1), 0, 1);
            bitmap.clear(Page(1));
            // The vCPUs get to run.
            thread::sleep(RACE / 50);
            if round >= 3 && start.elapsed() >= RACE {
                break;
            }
        }
    });
}

/// An access of L2 to a register that is in a marked page exits with L1's physical address, before
/// and after the page was mapped for that, and never hands L1 a fault.
fn check_vncr_page(backing: Backing) {
    let mut machine = with_registers(backing, 1, 0);
    let (userfault, word) = (machine.userfault(REGISTERS), register_word());
    let bitmap = Bitmap::new(machine.slot.pages());
    bitmap.mark(REGISTERS);
    let flag = machine.enable(&bitmap);

    expect_eq!(machine.run(), userfault);
    expect_eq!(machine.run(), userfault, "again");
    expect_eq!(machine.slot.area().has_page(REGISTERS), false, "looked at");
    machine.slot.write(REGISTERS, word, 100);
    bitmap.clear(REGISTERS);
    expect_eq!(machine.run(), Exit::Sync(READ, 100));
    expect_eq!(machine.run(), Exit::Sync(WRITTEN, 101));
    expect_eq!(machine.slot.read(REGISTERS, word), 101);

    // The page is marked and dropped.
    bitmap.mark(REGISTERS);
    machine.slot.discard(REGISTERS);
    expect_eq!(machine.run(), userfault, "dropped");
    machine.slot.write(REGISTERS, word, 200);
    bitmap.clear(REGISTERS);
    expect_eq!(machine.run(), Exit::Sync(READ, 200));

    // Here the next access is a write, to a page that stays as it is.
    flag.disable();
    bitmap.mark(REGISTERS);
    let _flag = machine.enable(&bitmap);
    expect_eq!(machine.run(), userfault, "enabled again");
    expect_eq!(machine.slot.read(REGISTERS, word), 200);
    bitmap.clear(REGISTERS);
    expect_eq!(machine.run(), Exit::Sync(WRITTEN, 201));
    expect_eq!(machine.slot.read(REGISTERS, word), 201);
}

/// Where the bitmap cannot be read, an access to such a register is an error of KVM_RUN, not a
/// fault for L1, and L2 goes on as soon as it can be read.
fn vncr_page_with_an_unreadable_bitmap() {
    let mut machine = with_registers(Backing::Anonymous, 1, 0);
    let area = Area::new(Backing::Anonymous, 1);
    let bitmap = Bitmap::within(&area, 0, machine.slot.pages());
    machine.slot.write(REGISTERS, register_word(), 100);
    let _flag = machine.enable(&bitmap);
    area.protect(Access::None);
    expect_eq!(machine.run(), Exit::Error(Errno::EFAULT));
    expect_eq!(machine.run(), Exit::Error(Errno::EFAULT), "again");
    area.protect(Access::ReadWrite);
    expect_eq!(machine.run(), Exit::Sync(READ, 100));
}

/// A page that is marked and dropped while KVM waits for it, to map it for such a register, is not
/// mapped.
fn vncr_page_is_dropped_while_kvm_waits_for_it() {
    let mut machine = with_registers(Backing::Anonymous, 1, 0);
    let (slot, userfault) = (machine.slot.clone(), machine.userfault(REGISTERS));
    let mut content = slot.content(REGISTERS);
    content[8 * register_word()] = 100;
    slot.discard(REGISTERS);
    let bitmap = Bitmap::new(slot.pages());
    let _flag = machine.enable(&bitmap);
    let uffd = Uffd::new(slot.area());
    let exit = uffd.run_and_drop(&mut machine.vcpus[0], &slot, &bitmap, &content);
    expect_eq!(exit, userfault);
    bitmap.clear(REGISTERS);
    expect_eq!(machine.run(), Exit::Sync(READ, 100));
}

/// What a vCPU has found marked when it is stopped is looked at again when it runs on: by then the
/// page may be there, the flag clear or the slot gone.
fn mark_that_was_found_before_a_stop() {
    for change in ["supplied", "disabled", "deleted"] {
        let mut machine = with_registers(Backing::Anonymous, 1, 0);
        let slot = machine.slot.clone();
        slot.write(REGISTERS, register_word(), 100);
        let area = Area::new(Backing::Anonymous, 1);
        let bitmap = Bitmap::within(&area, 0, slot.pages());
        bitmap.mark(REGISTERS);
        let mut marks = vec![0; page_size()];
        marks[0] = 1 << REGISTERS.0;
        let flag = machine.enable(&bitmap);
        area.drop_page(Page(0));
        let uffd = Uffd::new(&area);
        let kicker = machine.vcpus[0].kicker();
        let exit = uffd.run(&mut machine.vcpus[0], |page| {
            // The vCPU is stopped before it knows of the mark, and so before it exits for that.
            kicker.kick();
            uffd.copy(page, &marks);
        });
        expect_eq!(exit, Exit::Kicked);
        expect_eq!(bitmap.is_marked(REGISTERS), true);
        match change {
            "supplied" => drop(bitmap.clear(REGISTERS)),
            "disabled" => flag.disable(),
            _ => expect_eq!(slot.region().delete(), Ok(())),
        }
        let exit = machine.run();
        if change == "deleted" {
            assert!(matches!(exit, Exit::Exception { .. }), "{exit:x?}");
        } else {
            expect_eq!(exit, Exit::Sync(READ, 100), "{change}");
        }
    }
}

/// A register of L2 that is in memory, as the vCPU has seen it and the VMM supplies it.
#[derive(Default)]
struct Register {
    /// What was written last.
    written: AtomicU64,
    /// What was read last: the vCPU writes the next number.
    read: AtomicU64,
    exits: AtomicUsize,
    uses: AtomicUsize,
}

/// The pages with registers are taken from two vCPUs and given back, by setting the flag and by
/// dropping them: each register always has what was written to it last, by the vCPU or by the VMM
/// when the page was supplied.
fn race_for_vncr_pages() {
    // A page is taken when all shadow stage 2 is unmapped, which takes seconds where TLBs are
    // emulated. Be in the guest at the end of that.
    let mut machine = with_registers(Backing::Anonymous, 2, 10_000_000);
    let bitmap = Bitmap::new(machine.slot.pages());
    let registers = [Register::default(), Register::default()];
    let places = [REGISTERS, Page(REGISTERS.0 + 2)];
    let userfaults = places.map(|page| machine.userfault(page));
    let count = |counter: &AtomicUsize| counter.fetch_add(1, Ordering::Relaxed);
    let on_exit = |vcpu: usize, exit| {
        let register = &registers[vcpu];
        match exit {
            Exit::Sync(READ, value) => {
                expect_eq!(
                    value,
                    register.written.load(Ordering::SeqCst),
                    "vCPU {vcpu}"
                );
                register.read.store(value, Ordering::SeqCst);
                count(&register.uses);
            }
            Exit::Sync(WRITTEN, value) => {
                expect_eq!(
                    value,
                    register.read.load(Ordering::SeqCst) + 1,
                    "vCPU {vcpu}"
                );
                register.written.store(value, Ordering::SeqCst);
                count(&register.uses);
            }
            exit => {
                expect_eq!(exit, userfaults[vcpu], "vCPU {vcpu}");
                count(&register.exits);
                thread::yield_now();
            }
        }
    };
    machine.run_while(on_exit, |slot| {
        let one_more = |counter: &AtomicUsize, what| {
            let before = counter.load(Ordering::Relaxed);
            ktap::wait_for(what, || counter.load(Ordering::Relaxed) > before);
        };
        let supply = |vcpu: usize, word: u64| {
            slot.write(places[vcpu], register_word(), word);
            registers[vcpu].written.store(word, Ordering::SeqCst);
            bitmap.clear(places[vcpu]);
            one_more(&registers[vcpu].uses, "a register to be used");
        };
        let start = Instant::now();
        for round in 1_u64.. {
            let (one, other) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
            // The flag takes one page. Its vCPU waits for it then.
            bitmap.mark(places[one]);
            let flag = slot.enable(&bitmap);
            one_more(&registers[one].exits, "a register's page to be asked for");
            let last = registers[one].written.load(Ordering::SeqCst);
            expect_eq!(
                slot.read(places[one], register_word()),
                last,
                "round {round}"
            );
            supply(one, round << 32);

            // A drop takes the other, while it is used.
            one_more(&registers[other].uses, "a register to be used again");
            bitmap.mark(places[other]);
            slot.discard(places[other]);
            one_more(
                &registers[other].exits,
                "a register's dropped page to be asked for",
            );
            supply(other, round << 32);
            flag.disable();
            // The vCPU is seldom in the guest just when its page goes.
            if start.elapsed() >= 4 * RACE {
                break;
            }
        }
    });
}

/// KVM reads L1's stage 2 tables for L2.
///
/// A marked page of them exits with its address, as often as it is tried, injects nothing into L1,
/// and is read again when it is clear.
fn marked_stage2_table_of_l1_exits() {
    let (mut machine, table) = with_l2([Backing::Anonymous; 2], 4, 1, run_reader);
    let bitmap = Bitmap::marked(table.slot.pages());
    let entries: Vec<u64> = (0..4).map(|word| table.slot.read(Page(0), word)).collect();
    (0..4).for_each(|word| table.slot.write(Page(0), word, 0));
    let _flag = table.slot.enable(&bitmap);

    let userfault = Exit::userfault(TABLE);
    expect_eq!(machine.run(), userfault);
    expect_eq!(machine.run(), userfault, "again");
    for (word, entry) in entries.into_iter().enumerate() {
        table.slot.write(Page(0), word, entry);
    }
    bitmap.clear(Page(0));
    machine.read_all();
    expect_eq!(machine.vcpus[0].stat(c"userfault_exits"), 2);
}

/// L1 may have its tables in a read-only slot, as firmware has them.
fn marked_table_in_a_read_only_slot_exits() {
    let (mut machine, table) = with_l2([Backing::Anonymous; 2], 4, 1, run_reader);
    let bitmap = Bitmap::marked(table.slot.pages());
    expect_eq!(table.slot.region().delete(), Ok(()));
    let _flag = table.slot.enable_with(&bitmap, KVM_MEM_READONLY);
    expect_eq!(machine.run(), Exit::userfault(TABLE));
    bitmap.clear(Page(0));
    machine.read_all();
}

/// A table that is marked and dropped while KVM waits for it is not read.
fn table_is_dropped_while_kvm_waits_for_it() {
    let (mut machine, table) = with_l2([Backing::Anonymous; 2], 4, 1, translate_for_l2);
    let slot = &table.slot;
    let content = slot.content(Page(0));
    slot.discard(Page(0));
    let bitmap = Bitmap::new(slot.pages());
    let _flag = slot.enable(&bitmap);
    let uffd = Uffd::new(slot.area());
    let exit = uffd.run_and_drop(&mut machine.vcpus[0], slot, &bitmap, &content);
    expect_eq!(exit, Exit::userfault(TABLE));
    bitmap.clear(Page(0));
    expect_eq!(machine.run(), Exit::Sync(0, L1_GPA.0));
}

/// KVM writes to L1's stage 2 tables where L1's CPU is to set the access flag.
///
/// A marked page of them exits all the same, and the flag is set in what was supplied.
fn access_flag_is_set_in_a_supplied_table() {
    let entry = run_reader_without_access_flag;
    let (mut machine, table) = with_l2([Backing::Anonymous; 2], 4, 1, entry);
    need_of_l1(&mut machine, "hardware update of the access flag");
    // L2 accesses the other blocks.
    table.map(L1_GPA..L1_GPA + Bytes(1 << 30), L1_GPA);
    let words = 0..page_size() / size_of::<u64>();
    let entries: Vec<u64> = words.map(|word| table.slot.read(Page(0), word)).collect();
    table.slot.discard(Page(0));
    let bitmap = Bitmap::marked(table.slot.pages());
    let _flag = table.slot.enable(&bitmap);

    expect_eq!(machine.run(), Exit::userfault(TABLE));
    expect_eq!(machine.run(), Exit::userfault(TABLE), "again");
    for (word, entry) in entries.into_iter().enumerate() {
        let entry = entry & !L2Table::ACCESSED;
        table.slot.write(Page(0), word, entry);
    }
    bitmap.clear(Page(0));
    machine.read_all();
    let is_accessed = |block| table.block(block) & L2Table::ACCESSED != 0;
    let accessed = [Gpa(0), Gpa(ELSEWHERE), L1_GPA].map(is_accessed);
    expect_eq!(accessed, [true, true, false]);
}

/// Returns the pages that have the last tables of L1's stage 1 for an address, in a slot that can
/// have the flag.
fn last_table(machine: &mut Machine, address: Gva) -> (Slot, Page) {
    let entry = machine.vm.table_entry(address, 3);
    let tables = Slot::of_tables(&mut machine.vm);
    let page = tables.page_of(entry);
    (tables, page)
}

/// KVM reads L1's stage 1 tables to find the page that VNCR_EL2 points to.
///
/// A marked page of them exits with its address, and injects nothing into L1.
fn marked_stage1_table_of_a_vncr_page_exits() {
    let mut machine = with_registers(Backing::Anonymous, 1, 0);
    let (tables, page) = last_table(&mut machine, Gva(ELSEWHERE));
    machine.slot.write(REGISTERS, register_word(), 100);
    let bitmap = Bitmap::new(tables.pages());
    bitmap.mark(page);
    let _flag = tables.enable(&bitmap);
    expect_eq!(machine.run(), Exit::userfault(tables.gpa(page)));
    expect_eq!(machine.run(), Exit::userfault(tables.gpa(page)), "again");
    bitmap.clear(page);
    expect_eq!(machine.run(), Exit::Sync(READ, 100));
    expect_eq!(machine.run(), Exit::Sync(WRITTEN, 101));
}

/// KVM reads L1's stage 1 tables to translate an address for it.
///
/// A marked page of them exits with its address, and L1 is told the right address when it is clear.
fn check_stage1_table_of_a_translation(entry: guest::Entry) {
    let (mut vm, mut vcpus) = Vm::new(4, 1, entry);
    let slot = Slot::new(&mut vm, Backing::Anonymous, SLOT, L1_GPA, 4);
    vm.map(Gva(ELSEWHERE), L1_GPA, 4);
    vcpus[0].set_args(Gva(ELSEWHERE), 0, 0);
    let mut machine = Machine { vm, vcpus, slot };
    let (tables, page) = last_table(&mut machine, Gva(ELSEWHERE));
    let bitmap = Bitmap::new(tables.pages());
    bitmap.mark(page);
    let _flag = tables.enable(&bitmap);
    expect_eq!(machine.run(), Exit::userfault(tables.gpa(page)));
    expect_eq!(machine.run(), Exit::userfault(tables.gpa(page)), "again");
    bitmap.clear(page);
    expect_eq!(machine.run(), Exit::Sync(0, L1_GPA.0));

    // Marked again and dropped, the page is asked for again.
    bitmap.mark(page);
    let content = tables.content(page);
    tables.discard(page);
    expect_eq!(machine.run(), Exit::userfault(tables.gpa(page)), "dropped");
    tables.fill_page(page, &content);
    bitmap.clear(page);
    expect_eq!(machine.run(), Exit::Sync(0, L1_GPA.0));
}

/// The same for L1's stage 2 tables.
fn marked_stage2_table_of_a_translation_exits() {
    let (mut machine, table) = with_l2([Backing::Anonymous; 2], 4, 1, translate_for_l2);
    let content = table.slot.content(Page(0));
    table.slot.discard(Page(0));
    let bitmap = Bitmap::marked(table.slot.pages());
    let _flag = table.slot.enable(&bitmap);
    expect_eq!(machine.run(), Exit::userfault(TABLE));
    expect_eq!(machine.run(), Exit::userfault(TABLE), "again");
    expect_eq!(table.slot.area().has_page(Page(0)), false, "looked at");
    table.slot.fill_page(Page(0), &content);
    bitmap.clear(Page(0));
    expect_eq!(machine.run(), Exit::Sync(0, L1_GPA.0));
}

/// A table that is nowhere in L1's memory is an abort of the walk, as PAR_EL1 has it, also where
/// other memory has the flag.
fn table_without_memory_is_an_abort() {
    const NOWHERE: u64 = 7 << 30;
    const ABORT_OF_LEVEL_3: u64 = 0x17;
    let (mut vm, mut vcpus) = Vm::new(4, 1, translate);
    let slot = Slot::new(&mut vm, Backing::Anonymous, SLOT, L1_GPA, 4);
    vm.map(Gva(ELSEWHERE), L1_GPA, 4);
    vcpus[0].set_args(Gva(ELSEWHERE), 0, 0);
    let (entry, inside) = (vm.table_entry(Gva(ELSEWHERE), 2), page_size() as u64 - 1);
    let tables = Slot::of_tables(&mut vm);
    let (page, word) = (tables.page_of(entry), (entry.0 & inside) as usize / 8);
    let table = tables.read(page, word);
    tables.write(page, word, table & 0xfff | NOWHERE);
    let bitmap = Bitmap::new(4);
    let _flag = slot.enable(&bitmap);
    let exit = vcpus[0].run();
    let Exit::Sync(0, par) = exit else {
        panic!("L1 was told nothing: {exit:x?}");
    };
    expect_eq!(par & 0x7f, (ABORT_OF_LEVEL_3 << 1) | 1, "{par:#x}");
}

/// A table whose memory cannot be read is an error of KVM_RUN, with the flag and without.
fn table_that_cannot_be_read_is_an_error() {
    for has_flag in [false, true] {
        let (mut machine, table) = with_l2([Backing::Anonymous; 2], 4, 1, run_reader);
        let bitmap = Bitmap::new(table.slot.pages());
        let _flag = has_flag.then(|| table.slot.enable(&bitmap));
        table.slot.area().protect(Access::None);
        expect_eq!(machine.run(), Exit::Error(Errno::EFAULT), "{has_flag}");
    }
}

/// Skips the case where the kernel or the machine does not have what it takes.
fn needs_userfault_and_el2() {
    needs_userfault();
    let (mut vm, _vcpus) = Vm::new(0, 1, run_reader);
    if !vm.has_el2() {
        ktap::skip("guests have no EL2 here (KVM_CAP_ARM_EL2)");
    }
}

test_main! {
    about: "What userfault promises when the guest is a hypervisor.",
    needs: needs_userfault_and_el2,
    cases: [
        marked_page_of_l2_exits_with_l1_address = || check_marked_page_of_l2(Backing::Anonymous),
        marked_page_of_l2_in_guest_memfd_exits = || check_marked_page_of_l2(Backing::GuestMemfd),
        store_of_l2_exits,
        l2_addresses_inside_the_slot,
        marks_inside_a_page_of_l1,
        block_of_l2_never_covers_a_marked_page,
        l2_has_blocks_where_nothing_is_marked: needs_helper,
        enable_leaves_no_marked_page_in_shadow_stage2,
        dropped_page_of_l2_exits = || check_dropped_page_of_l2(Backing::Anonymous),
        hole_in_guest_memfd_of_l2_exits = || check_dropped_page_of_l2(Backing::GuestMemfd),
        recreated_slot_of_l2_exits,
        l2_without_stage2_exits,
        dropped_page_of_two_l2s_exits,
        all_of_l1_is_marked = || check_all_of_l1(Backing::Anonymous),
        all_of_l1_in_guest_memfd_is_marked = || check_all_of_l1(Backing::GuestMemfd),
        race_for_a_page_of_l2,
        marked_vncr_page_exits = || check_vncr_page(Backing::Anonymous),
        marked_vncr_page_of_guest_memfd_exits = || check_vncr_page(Backing::GuestMemfd),
        vncr_page_with_an_unreadable_bitmap,
        vncr_page_is_dropped_while_kvm_waits_for_it,
        mark_that_was_found_before_a_stop,
        race_for_vncr_pages,
        marked_stage2_table_of_l1_exits,
        marked_table_in_a_read_only_slot_exits,
        table_is_dropped_while_kvm_waits_for_it,
        access_flag_is_set_in_a_supplied_table,
        marked_stage1_table_of_a_vncr_page_exits,
        marked_stage1_table_of_a_translation_exits = ||
            check_stage1_table_of_a_translation(translate),
        marked_stage1_table_of_a_translation_for_el2_exits = ||
            check_stage1_table_of_a_translation(translate_for_el2),
        marked_stage2_table_of_a_translation_exits,
        table_without_memory_is_an_abort,
        table_that_cannot_be_read_is_an_error,
    ],
}
