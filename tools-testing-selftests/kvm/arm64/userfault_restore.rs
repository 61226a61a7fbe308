// SPDX-License-Identifier: GPL-2.0-only

//! Restores a guest from a snapshot file on demand, as a VMM would.
//!
//! The guest runs at once, with none of the memory there that it verifies. Pages come from the file
//! as they are touched: read by a handler thread, by the vCPU's own thread, or by a handler thread
//! of userfaultfd without userfault. Each way is measured. A failure means that a restored guest
//! would have seen a page that is not the one that was saved.

use libkvm::*;
use std::{
    fs::{
        self,
        File, //
    },
    io::Write,
    os::unix::fs::FileExt,
    process,
    sync::{
        atomic::{
            AtomicUsize,
            Ordering, //
        },
        mpsc, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

const VCPUS: usize = 4;

/// The size of the guest's memory: 16 MiB, so that the program is quick under emulation too.
const SIZE: usize = 16 << 20;

/// How long a page may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Returns what a word of the snapshot is, known to host and guest alike.
#[inline(always)]
const fn word(number: u64) -> u64 {
    (number ^ 0x7573_6572_6661_756c).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

guest_code! {
    /// Verifies the memory from `base` on, starting at an offset so that vCPUs meet pages in
    /// different orders.
    ///
    /// Reports the offset of the first wrong word, if there is one.
    fn verify(guest: Guest, base: Gva, size: u64, start: u64) {
        let mut done = 0;
        let mut offset = start;
        while done < size {
            let value = guest.read(base + Bytes(offset));
            if value != word(offset >> 3) {
                guest.sync(offset, value);
            }
            offset = offset.wrapping_add(8);
            if offset == size {
                offset = 0;
            }
            done = done.wrapping_add(8);
        }
        guest.done()
    }
}

/// The snapshot file.
struct Snapshot(File);

impl Snapshot {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("userfault-snapshot-{}", process::id()));
        let content: Vec<u8> = (0..SIZE as u64 / 8)
            .flat_map(|n| word(n).to_le_bytes())
            .collect();
        let mut file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .expect("cannot create the snapshot file");
        // Whatever happens, nothing is left behind.
        fs::remove_file(&path).expect("cannot remove the snapshot file");
        file.write_all(&content)
            .expect("cannot write the snapshot file");
        Self(file)
    }

    fn read(&self, page: Page) -> Vec<u8> {
        let mut content = vec![0; page_size()];
        self.0
            .read_exact_at(&mut content, page.offset().0)
            .expect("cannot read the snapshot file");
        content
    }
}

/// Reports what a restore took that began at `start`.
fn report(name: &str, pages: usize, faults: usize, start: Instant) {
    let millis = start.elapsed().as_secs_f64() * 1e3;
    let micros = millis * 1e3 / pages as f64;
    ktap::diagnostic(&format!(
        "{name:<27} {VCPUS:>2} vCPUs {pages:>6} pages {faults:>6} faults {millis:>8.1} ms \
         {micros:>7.1} us/page"
    ));
}

/// Returns a VM whose vCPUs are ready to verify a slot that is still empty.
fn machine() -> (Slot, Vec<Vcpu>) {
    let pages = SIZE / page_size();
    let (mut vm, mut vcpus) = Vm::new(pages, VCPUS, verify);
    let slot = Slot::new(&mut vm, Backing::Anonymous, SLOT, GPA, pages);
    for (number, vcpu) in vcpus.iter_mut().enumerate() {
        vcpu.set_args(Gva(GPA.0), SIZE as u64, (SIZE / VCPUS * number) as u64);
    }
    (slot, vcpus)
}

/// Runs a vCPU to the end of its verification, calling `userfault` for each such exit.
fn run(vcpu: &mut Vcpu, mut userfault: impl FnMut(Gpa)) {
    let (mut last, mut since) = (Gpa(0), Instant::now());
    loop {
        match vcpu.run() {
            Exit::Userfault { gpa, .. } => {
                // Another vCPU may be at it, but not for ever.
                if gpa != last {
                    (last, since) = (gpa, Instant::now());
                }
                assert!(since.elapsed() < PATIENCE, "{gpa:?} stays marked");
                userfault(gpa);
            }
            Exit::Done => return,
            Exit::Sync(offset, value) => panic!(
                "the guest found {value:#x} at {offset:#x}, not {:#x}",
                word(offset >> 3)
            ),
            other => panic!("unexpected exit: {other:x?}"),
        }
    }
}

/// Each vCPU that exits sends the page's number to a handler thread and waits for its answer.
fn restore_by_handler() {
    let snapshot = Snapshot::new();
    let (slot, mut vcpus) = machine();
    let bitmap = Bitmap::marked(slot.pages());
    let _flag = slot.enable(&bitmap);

    let start = Instant::now();
    let (faults, restored) = thread::scope(|scope| {
        let (ask, asked) = mpsc::channel::<(Page, mpsc::SyncSender<()>)>();
        for vcpu in &mut vcpus {
            let (ask, slot) = (ask.clone(), &slot);
            scope.spawn(move || {
                let (answer, answered) = mpsc::sync_channel(1);
                run(vcpu, |gpa| {
                    let request = (slot.page_of(gpa), answer.clone());
                    ask.send(request).expect("the handler is gone");
                    answered.recv().expect("the handler is gone");
                });
            });
        }
        drop(ask);

        let (mut faults, mut restored) = (0, 0);
        for (page, answer) in asked {
            faults += 1;
            // Another vCPU may have asked for the same page before.
            if bitmap.is_marked(page) {
                slot.fill_page(page, &snapshot.read(page));
                bitmap.clear(page);
                restored += 1;
            }
            answer.send(()).expect("the vCPU is gone");
        }
        (faults, restored)
    });

    expect_eq!(restored, slot.pages(), "pages restored");
    report("userfault, handler thread", restored, faults, start);
}

/// Each vCPU that exits reads the page itself.
fn restore_by_vcpu() {
    let snapshot = Snapshot::new();
    let (slot, mut vcpus) = machine();
    let bitmap = Bitmap::marked(slot.pages());
    let unclaimed = Bitmap::marked(slot.pages());
    let _flag = slot.enable(&bitmap);

    let faults = AtomicUsize::new(0);
    let start = Instant::now();
    thread::scope(|scope| {
        for vcpu in &mut vcpus {
            scope.spawn(|| {
                run(vcpu, |gpa| {
                    let page = slot.page_of(gpa);
                    faults.fetch_add(1, Ordering::Relaxed);
                    // The first to ask fills the page; the others run into it again.
                    if unclaimed.clear(page) {
                        slot.fill_page(page, &snapshot.read(page));
                        bitmap.clear(page);
                    } else {
                        thread::yield_now();
                    }
                });
            });
        }
    });
    let faults = faults.into_inner();
    report("userfault, vCPU's thread", slot.pages(), faults, start);
}

/// The guest gives pages back while a handler thread reads the snapshot from its end: whoever is
/// first has the page, and what was given back is empty, without an exit, and stays so.
fn restore_with_a_balloon() {
    let snapshot = Snapshot::new();
    let mut machine = Machine::new(Backing::Anonymous, SIZE / page_size() / 4);
    let slot = machine.slot.clone();
    let bitmap = Bitmap::marked(slot.pages());
    let unclaimed = Bitmap::marked(slot.pages());
    let _flag = machine.enable(&bitmap);

    let fetch = |page| {
        if unclaimed.clear(page) {
            slot.fill_page(page, &snapshot.read(page));
            bitmap.clear(page);
        }
    };
    let give_back = |page| {
        if !unclaimed.clear(page) {
            ktap::wait_for("the page to be filled", || !bitmap.is_marked(page));
        }
        slot.discard(page);
        bitmap.clear(page);
    };
    let is_given_back = |page: Page| page.0 % 4 == 3;
    let expected = |page: Page| match is_given_back(page) {
        true => Exit::Sync(page.into(), 0),
        false => Exit::Sync(page.into(), word(page.offset().0 / 8)),
    };
    thread::scope(|scope| {
        for page in pages(0..slot.pages()) {
            // So that some pages are given back before they are there.
            if page == Page(16) {
                scope.spawn(|| pages(0..slot.pages()).rev().for_each(fetch));
            }
            if is_given_back(page) {
                give_back(page);
                expect_eq!(machine.run(), expected(page), "given back");
                continue;
            }
            let mut exit = machine.run();
            while exit == machine.userfault(page) {
                fetch(page);
                exit = machine.run();
            }
            expect_eq!(exit, expected(page));
        }
    });
    for page in pages(0..slot.pages()) {
        expect_eq!(machine.run(), expected(page), "all is there");
    }
}

/// The kernel suspends each thread that touches a missing page until the handler has filled it.
fn restore_by_userfaultfd() {
    let snapshot = Snapshot::new();
    let (slot, mut vcpus) = machine();
    let uffd = Uffd::new(slot.area());

    let start = Instant::now();
    let run_all = || {
        thread::scope(|scope| {
            for vcpu in &mut vcpus {
                scope.spawn(|| run(vcpu, |gpa| panic!("userfault at {gpa:?} without the flag")));
            }
        });
    };
    let ((), asked) = uffd.serve(|page| snapshot.read(page), run_all);
    let faults = asked.len();
    report("userfaultfd, handler thread", slot.pages(), faults, start);
}

test_main! {
    about: "Restores a guest from a snapshot file on demand, as a VMM would.",
    needs: needs_userfault,
    cases: [
        restore_by_handler,
        restore_by_vcpu,
        restore_with_a_balloon,
        restore_by_userfaultfd,
    ],
}
