// SPDX-License-Identifier: GPL-2.0-only

//! Steps in any order: memslots are set, a vCPU accesses them, and something happens to memory and
//! bitmaps.
//!
//! A model says how each step has to end. Where KVM does something else, the program shows what had
//! been done to the page or the slot.
//!
//! This is not run by default: `-h` shows the options.

use libkvm::*;
use std::{
    collections::BTreeSet,
    env,
    fmt::Debug,
    ops::Range,
    sync::atomic::Ordering, //
};

/// The number of pages of each of two memories, and those that are used.
const PAGES: usize = 1024;
const USED: [usize; 12] = [0, 1, 7, 8, 9, 63, 64, 511, 512, 513, 1022, 1023];

/// How many steps a VM lives.
const LIFE: usize = 500;

const USERFAULT: u32 = KVM_MEM_USERFAULT;
const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;
const READONLY: u32 = KVM_MEM_READONLY;

const LOAD: u64 = 0;
const STORE: u64 = 1;
const MAILBOX: Gpa = Gpa(5 << 30);

guest_code! {
    /// Loads a word or stores one, as the mailbox says.
    fn obey(guest: Guest, mailbox: Gva, _first: u64, _second: u64) {
        loop {
            let kind = guest.read(mailbox);
            let address = Gva(guest.read(mailbox + Bytes(8)));
            let mut value = guest.read(mailbox + Bytes(16));
            if kind == LOAD {
                value = guest.read(address);
            } else {
                guest.write(address, value);
            }
            guest.sync(kind, value);
        }
    }
}

/// Numbers that look random and are the same for the same seed: xorshift64*.
struct Random(u64);

impl Random {
    /// Each step has numbers of its own, whatever was done with those of others.
    fn new(seed: u64, step: u64) -> Self {
        Self(((seed << 32) ^ step).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }
}

/// Where slots are: apart, and one across another.
fn places() -> [Gpa; 3] {
    [
        GPA,
        GPA + Page(PAGES / 2).offset(),
        Gpa(3 << 30) + Page(1).offset(),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Pointer {
    Bitmap(usize),
    Bad(u64),
}

/// What KVM is told of a slot: which pages of a memory, and where the first one of all would be.
#[derive(Clone, Debug)]
struct Told {
    flags: u32,
    place: Gpa,
    pages: Range<usize>,
    bitmap: Pointer,
}

impl Told {
    fn gpa(&self, page: usize) -> Gpa {
        self.place + Page(page).offset()
    }

    fn range(&self) -> Range<Gpa> {
        self.gpa(self.pages.start)..self.gpa(self.pages.end)
    }

    fn has_userfault(&self) -> bool {
        self.flags & USERFAULT != 0
    }
}

/// How KVM is told, and which guest_memfd is named.
#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    Set,
    FirstVersion,
    Delete,
    BehindTheEnd,
    NoFile,
}

/// A memory, and the slot that it may have.
struct Memory {
    slot: Slot,
    /// What the slot is with all of the memory.
    whole: Region,
    /// The first word of each page.
    content: Vec<u64>,
    told: Option<Told>,
    /// Pages that KVM may have mapped, so that a mark need not count.
    mapped: Vec<bool>,
    dirty: BTreeSet<usize>,
}

impl Memory {
    fn is_file(&self) -> bool {
        self.area().backing() == Backing::GuestMemfd
    }

    fn is_huge(&self) -> bool {
        matches!(
            self.area().backing(),
            Backing::AnonymousThp | Backing::ShmemThp
        )
    }

    fn area(&self) -> &Area {
        self.slot.area()
    }
}

struct Marks {
    area: Area,
    bitmap: Bitmap,
    is_marked: Vec<bool>,
    is_readable: bool,
}

/// An access that the vCPU has not done yet, or that the VMM has done for it.
struct Try {
    kind: u64,
    gpa: Gpa,
    value: u64,
    is_emulated: bool,
}

struct World {
    vcpu: Vcpu,
    mailbox: Slot,
    memories: Vec<Memory>,
    marks: Vec<Marks>,
    pending: Option<Try>,
    values: u64,
    /// How many steps were done before this one.
    done: u64,
    /// Whether huge pages are left as they are.
    is_calm: bool,
    /// What was done, to which memory and to which page, or to which bit of bitmaps.
    trace: Vec<(Option<usize>, Option<usize>, String)>,
}

impl World {
    fn new(random: &mut Random) -> Self {
        let (mut vm, mut vcpus) = Vm::new(4 * PAGES, 1, obey);
        let [first, _, last] = places();
        vm.map(Gva(first.0), first, PAGES + PAGES / 2);
        vm.map(Gva(last.0), last, PAGES);
        let mailbox = Slot::new(&mut vm, Backing::Anonymous, 3, MAILBOX, 1);
        vcpus[0].set_args(Gva(MAILBOX.0), 0, 0);
        let mut backings = vec![
            Backing::Anonymous,
            Backing::AnonymousThp,
            Backing::Shmem,
            Backing::ShmemThp,
        ];
        backings.retain(|backing| backing.huge_pages().is_some());
        let backing = random.of(&backings);
        let memory = |id, area: Area| {
            let slot = Slot::undeclared(&vm, &area, id, first);
            Memory {
                whole: slot.region(),
                slot,
                content: vec![0; PAGES],
                told: None,
                mapped: vec![false; PAGES],
                dirty: BTreeSet::new(),
            }
        };
        let marks = |backing| {
            let area = Area::new(backing, 1);
            Marks {
                bitmap: Bitmap::within(&area, 5, PAGES),
                area,
                is_marked: vec![false; PAGES],
                is_readable: true,
            }
        };
        let memories = vec![
            memory(1, Area::new(backing, PAGES)),
            memory(2, vm.guest_memfd(PAGES, 0)),
        ];
        Self {
            memories,
            vcpu: vcpus.remove(0),
            mailbox,
            marks: vec![marks(Backing::Anonymous), marks(Backing::Shmem)],
            pending: None,
            values: 0,
            done: 0,
            is_calm: random.one_in(2),
            trace: vec![(None, None, format!("memory 0 is {backing:?}"))],
        }
    }

    fn note(&mut self, memory: Option<usize>, page: Option<usize>, what: String) {
        self.trace.push((memory, page, what));
    }

    /// Fails if something is not as expected, and shows what happened to the memory and the page.
    fn expect<T: Debug + PartialEq>(&self, at: (usize, Option<usize>), seen: T, expected: T) {
        if seen == expected {
            return;
        }
        let (number, page) = at;
        let told = self.memories[number].told.as_ref();
        let first = told.map_or(0, |told| told.pages.start);
        for (memory, other, what) in &self.trace {
            let other = match memory {
                Some(memory) if *memory != number && other.is_some() => continue,
                Some(_) => *other,
                None => other.map(|bit| bit + first),
            };
            if other.is_none() || other == page {
                ktap::diagnostic(what);
            }
        }
        let step = self.done;
        panic!(
            "step {step}, memory {number}, page {page:?}: expected {expected:x?}, saw {seen:x?}"
        );
    }

    /// Returns which page an address belongs to.
    fn find(&self, gpa: Gpa) -> Option<(usize, usize)> {
        let numbered = self.memories.iter().enumerate();
        let mut told =
            numbered.filter_map(|(number, memory)| Some((number, memory.told.as_ref()?)));
        let (number, told) = told.find(|(_, told)| told.range().contains(&gpa))?;
        Some((number, (gpa - told.place).0 as usize / page_size()))
    }

    /// Returns how an access ends that what KVM is told of a page does not let through.
    fn stops(&self, told: &Told, page: usize) -> Option<Exit> {
        let marks = match told.bitmap {
            Pointer::Bitmap(index) if told.has_userfault() => &self.marks[index],
            _ => return None,
        };
        if !marks.is_readable {
            return Some(Exit::Error(Errno::EFAULT));
        }
        marks.is_marked[page - told.pages.start].then(|| Exit::userfault(told.gpa(page)))
    }

    /// Returns what a call has to answer.
    fn answer(&self, number: usize, told: &Told, how: How) -> Result<(), Errno> {
        let memory = &self.memories[number];
        let flags = match how {
            How::FirstVersion if memory.is_file() => return Err(Errno::EINVAL),
            How::FirstVersion => LOG | READONLY,
            _ if memory.is_file() => USERFAULT,
            _ => USERFAULT | LOG | READONLY,
        };
        if told.flags & !flags != 0 || told.place.0 % page_size() as u64 != 0 {
            return Err(Errno::EINVAL);
        }
        let old = memory.told.as_ref();
        if how == How::Delete {
            return old.map(|_| ()).ok_or(Errno::EINVAL);
        }
        if told.has_userfault() && matches!(told.bitmap, Pointer::Bad(_)) {
            return Err(Errno::EINVAL);
        }
        let moves = old.is_none_or(|old| old.range().start != told.range().start);
        if let Some(old) = old {
            let replaces = old.has_userfault() && told.has_userfault() && old.bitmap != told.bitmap;
            let toggles = old.has_userfault() || told.has_userfault();
            if replaces && !moves
                || memory.is_file() && (moves || !toggles)
                || old.pages != told.pages
                || (old.flags ^ told.flags) & READONLY != 0
            {
                return Err(Errno::EINVAL);
            }
        }
        let other = self.memories[1 - number].told.as_ref().map(Told::range);
        let (start, end) = (told.range().start, told.range().end);
        if moves && other.is_some_and(|other| other.start < end && start < other.end) {
            return Err(Errno::EEXIST);
        }
        match how {
            _ if !memory.is_file() || old.is_some() && !told.has_userfault() => Ok(()),
            How::BehindTheEnd => Err(Errno::EINVAL),
            How::NoFile => Err(Errno::EBADF),
            _ => Ok(()),
        }
    }

    /// Makes a call: one that makes sense, or such a one with something changed.
    fn call(&mut self, random: &mut Random) {
        let number = random.below(2);
        let memory = &self.memories[number];
        let bitmap = Pointer::Bitmap(random.below(self.marks.len()));
        let parts = [0..PAGES, 0..PAGES, 1..PAGES, 0..PAGES - 1, 512..521];
        let mut how = How::Set;
        let mut told = memory.told.clone().unwrap_or_else(|| Told {
            flags: random.of(&[0, 0, LOG, READONLY, LOG | READONLY]),
            place: random.of(&places()),
            pages: random.of(&parts),
            bitmap,
        });
        if memory.is_file() {
            told.flags &= USERFAULT;
        }
        match random.below(10) {
            0 => how = How::Delete,
            1 => told.place = random.of(&places()),
            3 => told.bitmap = bitmap,
            4 => (told.place, told.bitmap) = (random.of(&places()), bitmap),
            2 if !memory.is_file() => told.flags ^= LOG,
            _ => {
                told.flags ^= USERFAULT;
                told.bitmap = bitmap;
            }
        }
        match random.below(40) {
            0 => told.flags ^= random.of(&[USERFAULT, LOG, READONLY, 1 << 5]),
            1 => told.place = told.place + Bytes(8),
            2 => told.pages = random.of(&parts),
            3 => told.bitmap = Pointer::Bad(random.of(&[u64::MAX, 1 << 55, (1 << 56) | 4096])),
            4 => told.bitmap = bitmap,
            5 => how = random.of(&[How::BehindTheEnd, How::NoFile]),
            6 | 7 => how = How::FirstVersion,
            _ => {}
        }

        let region = memory.whole.clone().at(told.place);
        let region = region.part(told.pages.clone()).flags(told.flags);
        let region = match told.bitmap {
            Pointer::Bitmap(index) => region.bitmap(&self.marks[index].bitmap),
            Pointer::Bad(address) => region.bitmap_at(Hva(address)),
        };
        let expected = self.answer(number, &told, how);
        let seen = match how {
            How::Set => region.set_unguarded(),
            How::FirstVersion => region.set1(),
            How::Delete => region.delete(),
            How::BehindTheEnd => region.guest_memfd_offset(Bytes(1 << 40)).set_unguarded(),
            How::NoFile => region.guest_memfd(None).set_unguarded(),
        };
        let call = format!("memory {number}: {how:?} {told:x?}: {seen:?}");
        self.note(Some(number), None, call);
        self.expect((number, None), seen, expected);
        if seen.is_ok() {
            self.take(number, (how != How::Delete).then_some(told));
        }
    }

    /// Takes note of what KVM has been told: a slot that was there stays mapped, but for what is
    /// marked when the flag is set.
    fn take(&mut self, number: usize, told: Option<Told>) {
        let old = self.memories[number].told.take();
        let had_userfault = old.as_ref().is_some_and(Told::has_userfault);
        for page in 0..PAGES {
            let stays = |told: &Told| {
                old.as_ref().map(Told::range) == Some(told.range())
                    && told.pages.contains(&page)
                    && (had_userfault || self.stops(told, page).is_none())
            };
            let stays = told.as_ref().is_some_and(stays);
            self.memories[number].mapped[page] &= stays;
        }
        let memory = &mut self.memories[number];
        if old.is_none() || told.as_ref().is_none_or(|told| told.flags & LOG == 0) {
            memory.dirty.clear();
        }
        memory.told = told;
    }

    /// Tells the vCPU what to do next, most often where there is a slot.
    fn ask(&mut self, random: &mut Random) -> Try {
        self.values += 1;
        let place = match &self.memories[random.below(2)].told {
            Some(told) if !random.one_in(20) => told.place,
            _ => random.of(&places()),
        };
        let access = Try {
            kind: random.of(&[LOAD, STORE]),
            gpa: place + Page(random.of(&USED)).offset(),
            value: self.values,
            is_emulated: false,
        };
        let words = [access.kind, access.gpa.0, access.value];
        for (index, word) in words.into_iter().enumerate() {
            self.mailbox.write(Page(0), index, word);
        }
        access
    }

    /// Has the vCPU do an access, or try again what it could not do before.
    fn access(&mut self, random: &mut Random) {
        let mut access = self.pending.take().unwrap_or_else(|| self.ask(random));
        let exit = self.vcpu.run();
        let found = self.find(access.gpa);
        let kind = ["load", "store"][access.kind as usize];
        let what = format!("{kind} {:x?} {:#x}: {exit:x?}", access.gpa, access.value);
        let at = found.map_or((0, None), |(number, page)| (number, Some(page)));
        self.note(found.map(|found| found.0), at.1, what);
        if access.is_emulated {
            // It is over, whatever has become of the address, and what is loaded is not ours.
            let loaded = matches!(exit, Exit::Sync(LOAD, _)) && access.kind == LOAD;
            let done = Exit::Sync(access.kind, access.value);
            return self.expect(at, if loaded { done } else { exit }, done);
        }
        let is_write = access.kind == STORE;
        let is_memory = |told: &&Told| !is_write || told.flags & READONLY == 0;
        let memory = &self.memories[at.0];
        let told = found.and(memory.told.as_ref()).filter(is_memory);
        let (Some(told), Some(page)) = (told, at.1) else {
            let gpa = access.gpa;
            self.expect(at, exit, Exit::Mmio { gpa, is_write });
            access.is_emulated = true;
            self.pending = Some(access);
            return;
        };
        let stops = self.stops(told, page);
        if let Some(stops) = stops.filter(|stops| exit == *stops || !memory.mapped[page]) {
            self.expect(at, exit, stops);
            self.pending = Some(access);
            return;
        }
        let value = if is_write {
            access.value
        } else {
            memory.content[page]
        };
        self.expect(at, exit, Exit::Sync(access.kind, value));

        // A block may have been mapped, of pages that are not marked.
        let is_clear = |other: &usize| self.stops(told, *other).is_none();
        let around = told
            .pages
            .clone()
            .filter(|_| memory.is_huge())
            .filter(is_clear);
        let mapped: Vec<usize> = around.chain([page]).collect();
        let is_logged = told.flags & LOG != 0;
        let memory = &mut self.memories[at.0];
        mapped
            .into_iter()
            .for_each(|page| memory.mapped[page] = true);
        memory.content[page] = value;
        if is_write && is_logged {
            memory.dirty.insert(page);
        }
    }

    /// Sets or clears a mark.
    ///
    /// After it was set the page may be dropped, as is the rule.
    fn change_mark(&mut self, random: &mut Random) {
        let (mut index, mut bit) = (random.below(self.marks.len()), random.of(&USED));
        let set = random.one_in(2);
        // What is cleared is what a vCPU waits for, if one does.
        let waits = self
            .pending
            .as_ref()
            .and_then(|access| self.find(access.gpa));
        if let Some((number, page)) = waits.filter(|_| !set) {
            if let Some(Told {
                pages,
                bitmap: Pointer::Bitmap(its),
                ..
            }) = &self.memories[number].told
            {
                (index, bit) = (*its, page - pages.start);
            }
        }
        let marks = &mut self.marks[index];
        if !marks.is_readable {
            return;
        }
        marks.is_marked[bit] = set;
        if set {
            marks.bitmap.mark(Page(bit));
        } else {
            marks.bitmap.clear(Page(bit));
        }
        self.note(None, Some(bit), format!("bitmap {index}, bit {bit}: {set}"));
        for number in 0..2 {
            let told = self.memories[number].told.as_ref();
            let its = told.filter(|told| told.bitmap == Pointer::Bitmap(index));
            let page = its.map(|told| told.pages.start + bit);
            if let Some(page) = page.filter(|page| set && *page < PAGES && !random.one_in(4)) {
                self.discard(number, page, random);
            }
        }
    }

    fn discard(&mut self, number: usize, page: usize, random: &mut Random) {
        let memory = &mut self.memories[number];
        if self.is_calm && memory.is_huge() {
            return;
        }
        let is_shared = matches!(memory.area().backing(), Backing::Shmem | Backing::ShmemThp);
        let is_punched = memory.is_file() || is_shared && random.one_in(2);
        if is_punched {
            memory.area().punch(page..page + 1);
        } else {
            memory.area().drop_page(Page(page));
        }
        if is_punched || !is_shared {
            memory.content[page] = 0;
        }
        memory.mapped[page] = false;
        let what = if is_punched { "punched" } else { "dropped" };
        self.note(Some(number), Some(page), format!("page {page} {what}"));
    }

    /// Looks at a page as the VMM, and writes to it.
    fn write(&mut self, random: &mut Random) {
        let (number, page) = (random.below(2), random.of(&USED));
        let memory = &self.memories[number];
        let word = memory.area().word(Page(page), 0);
        let seen = word.load(Ordering::Relaxed);
        self.expect((number, Some(page)), seen, memory.content[page]);
        self.values += 1;
        word.store(self.values, Ordering::Relaxed);
        self.memories[number].content[page] = self.values;
        let what = format!("the VMM writes {:#x} to page {page}", self.values);
        self.note(Some(number), Some(page), what);
    }

    /// Makes a bitmap unreadable, or readable again, drops its memory or marks all pages.
    fn change_bitmap(&mut self, random: &mut Random) {
        let unreadable = self.marks.iter().position(|marks| !marks.is_readable);
        let index = unreadable.unwrap_or_else(|| random.below(self.marks.len()));
        let marks = &mut self.marks[index];
        let (readable, marked) = match random.below(6) {
            _ if !marks.is_readable => (true, None),
            0 | 1 => (false, None),
            2 => (true, Some(false)),
            _ => (true, Some(true)),
        };
        match marked {
            Some(true) => pages(0..PAGES).for_each(|page| marks.bitmap.mark(page)),
            Some(false) if index == 0 => marks.area.drop_page(Page(0)),
            Some(false) => marks.area.punch(0..1),
            None if readable => marks.area.protect(Access::ReadWrite),
            None => marks.area.protect(Access::None),
        }
        marks.is_readable = readable;
        if let Some(marked) = marked {
            marks.is_marked.fill(marked);
        }
        let what = format!("bitmap {index}: readable: {readable}, all marked: {marked:?}");
        self.note(None, None, what);
    }

    /// Looks at what is dirty.
    fn look_at_log(&mut self, random: &mut Random) {
        let number = random.below(2);
        let memory = &mut self.memories[number];
        let logged = memory.told.as_ref().filter(|told| told.flags & LOG != 0);
        let Some(told) = logged else {
            return;
        };
        let dirty = memory.slot.dirty_pages();
        let seen: BTreeSet<usize> = dirty.iter().map(|page| page.0 + told.pages.start).collect();
        let expected = std::mem::take(&mut memory.dirty);
        let page = seen.symmetric_difference(&expected).next().copied();
        self.note(Some(number), None, format!("dirty: {seen:?}"));
        self.expect((number, page), seen, expected);
    }

    /// Has the host make huge pages again of what has lost some of its pages.
    fn collapse(&mut self) {
        let memory = &self.memories[0];
        if memory.is_huge() {
            let collapsed = memory.area().advise(0..PAGES, Advice::Collapse);
            self.note(Some(0), None, format!("memory 0: collapsed: {collapsed:?}"));
        }
    }

    fn step(&mut self, random: &mut Random) {
        match random.below(100) {
            0..20 => self.call(random),
            20..70 => self.access(random),
            70..84 => self.change_mark(random),
            84..88 => {
                let (number, page) = (random.below(2), random.of(&USED));
                self.discard(number, page, random);
            }
            88..93 => self.write(random),
            93..96 => self.change_bitmap(random),
            96..98 => self.collapse(),
            _ => self.look_at_log(random),
        }
    }
}

/// Returns a number of the environment, or another if that says none.
fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect("no number"))
}

fn model_and_kvm_agree() {
    let (count, seed) = (setting("STEPS", 10_000), setting("SEED", 1));
    ktap::diagnostic(&format!("STEPS={count} SEED={seed}"));
    // Tags are refused even where the kernel takes them elsewhere, if it does.
    let _ = allow_tagged_pointers();
    for first in (0..count).step_by(LIFE) {
        let mut world = World::new(&mut Random::new(!seed, first));
        let end = count.min(first + LIFE as u64);
        for step in first..end {
            world.done = step;
            world.step(&mut Random::new(seed, step));
        }
        if end % 5_000 == 0 {
            ktap::diagnostic(&format!("{end} steps"));
        }
    }
}

test_main! {
    about: "Steps in any order on userfault slots, compared with a model.\n\n\
        The environment may have the number of steps, STEPS, and the SEED: -t is for all steps.",
    needs: needs_userfault,
    cases: [
        model_and_kvm_agree,
    ],
}
