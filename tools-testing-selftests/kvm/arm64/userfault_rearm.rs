// SPDX-License-Identifier: GPL-2.0-only

//! Marking a page again while vCPUs use it.
//!
//! A failure means that a VMM which takes a page back, e.g. to throw it out of memory, would have
//! the guest go on with a page of zeroes.

use libkvm::{
    fixture::{
        needs_userfault,
        Machine, //
    },
    guest,
    ktap::Finish,
    test_main,
    Access,
    Area,
    Backing,
    Bitmap,
    Exit, //
};
use std::{
    sync::atomic::{
        AtomicBool,
        AtomicUsize,
        Ordering, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

/// A page that is marked and then dropped exits at the next access, without a call of KVM.
fn marked_and_dropped_page_exits() {
    for backing in [Backing::Anonymous, Backing::AnonymousThp, Backing::Shmem] {
        let pages = backing.pages_per_page().max(16);
        let mut machine = Machine::new(backing, pages);
        let bitmap = Bitmap::new(pages);
        machine.fill();
        machine.enable(&bitmap);
        machine.read_all();

        for page in [0, 7, pages - 1] {
            bitmap.mark(page);
            machine.slot.discard(page);
        }
        for page in 0..pages {
            if bitmap.is_marked(page) {
                assert_eq!(machine.run(), machine.userfault(page), "{backing:?}");
                machine.slot.write(page, 0, page as u64);
                bitmap.clear(page);
            }
            machine.read(page..page + 1);
        }
    }
}

/// The same against faults in flight: vCPUs never see the page while it is dropped, however their
/// faults meet with the mark and the drop.
fn no_access_slips_through() {
    rearm_under_vcpus(Backing::Anonymous, 3, 3_000);
}

/// The same with a guest_memfd, whose pages go by punching a hole.
fn no_access_slips_through_to_guest_memfd() {
    rearm_under_vcpus(Backing::GuestMemfd, 3, 3_000);
}

/// Has vCPUs look for a zero in a page that is dropped and filled again over and over.
///
/// Another thread keeps mmap_lock busy. Faults wait for that, and so have the page marked and
/// dropped between any two steps of theirs.
fn rearm_under_vcpus(backing: Backing, vcpus: usize, rounds: usize) {
    let mut machine = Machine::with_guest(backing, 1, vcpus, guest::hunt_zero);
    let bitmap = Bitmap::marked(1);
    machine.enable(&bitmap);

    let finished = AtomicBool::new(false);
    let (exits, slipped) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let userfault = machine.userfault(0);
    let (slot, ended) = (&machine.slot, &finished);
    let busy = Area::new(4096);
    busy.fill();
    thread::scope(|scope| {
        for vcpu in &mut machine.vcpus {
            let (exits, slipped) = (&exits, &slipped);
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    match vcpu.run() {
                        exit if exit == userfault => exits.fetch_add(1, Ordering::Relaxed),
                        Exit::Sync(0, 0) if ended.load(Ordering::Relaxed) => break,
                        Exit::Sync(0, 0) => slipped.fetch_add(1, Ordering::Relaxed),
                        other => panic!("unexpected exit: {other:x?}"),
                    };
                }
            });
        }
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                busy.protect(Access::Read);
                busy.protect(Access::ReadWrite);
            }
        });
        let _finish = Finish(&finished);
        for round in 0..rounds {
            slot.write(0, 0, 1 + round as u64);
            bitmap.clear(0);
            // Let faults get to different points.
            let start = Instant::now();
            let wait = Duration::from_micros(round as u64 * 7 % 300);
            while start.elapsed() < wait {
                std::hint::spin_loop();
            }
            bitmap.mark(0);
            slot.discard(0);
            // Whoever has slipped through sees the empty page now.
            thread::yield_now();
        }
        finished.store(true, Ordering::Relaxed);
        // This gets vCPUs out of the guest that a wrong kernel keeps there.
        slot.write(0, 0, 0);
        bitmap.clear(0);
    });

    assert_eq!(
        slipped.into_inner(),
        0,
        "accesses that saw the dropped page"
    );
    assert!(exits.into_inner() > 0, "no vCPU met a marked page");
}

/// Setting and clearing the flag, over and over, under running vCPUs: none sees a page while it is
/// marked, and none sees anything but userfaults.
fn toggle_under_vcpus() {
    let mut machine = Machine::with_guest(Backing::Anonymous, 4, 2, guest::hunt_zero);
    let bitmap = Bitmap::new(4);
    for page in 0..4 {
        machine.slot.write(page, 0, 1);
    }

    let finished = AtomicBool::new(false);
    let (slot, ended, bitmap) = (&machine.slot, &finished, &bitmap);
    thread::scope(|scope| {
        for vcpu in &mut machine.vcpus {
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    match vcpu.run() {
                        Exit::Userfault { .. } => thread::yield_now(),
                        Exit::Sync(_, 0) if ended.load(Ordering::Relaxed) => break,
                        other => panic!("unexpected exit: {other:x?}"),
                    }
                }
            });
        }
        let _finish = Finish(&finished);
        for _ in 0..200 {
            bitmap.mark(2);
            let enabled = slot.set_flags(libkvm::KVM_MEM_USERFAULT, Some(bitmap));
            assert_eq!(enabled, Ok(()));
            // Nothing may be seen of this by a vCPU: the page is marked.
            slot.write(2, 0, 0);
            thread::yield_now();
            slot.write(2, 0, 1);
            bitmap.clear(2);
            assert_eq!(slot.set_flags(0, None), Ok(()));
        }
        finished.store(true, Ordering::Relaxed);
        slot.write(0, 0, 0);
    });
}

test_main! {
    needs: needs_userfault,
    cases: [
        marked_and_dropped_page_exits,
        no_access_slips_through,
        no_access_slips_through_to_guest_memfd,
        toggle_under_vcpus,
    ]
}
