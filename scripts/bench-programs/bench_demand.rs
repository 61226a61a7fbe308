// SPDX-License-Identifier: GPL-2.0-only

//! Paging on demand, by several vCPUs together: by userfault, and by userfaultfd.

use crate::{
    figure::{
        counts_events,
        sample,
        Figure,
        REPETITIONS, //
    },
    machine_with,
    minor::Minor,
    need_userfault,
    none_marked, //
};
use libkvm::*;
use std::{
    sync::mpsc,
    thread::{
        self,
        Thread, //
    },
    time::Duration, //
};

/// Returns how much memory is paged in on demand: less where events are counted, which takes longer
/// and is the same for each page.
fn demand() -> usize {
    if counts_events() {
        4 << 20
    } else {
        16 << 20
    }
}

/// By how many vCPUs together.
const VCPUS: [usize; 4] = [1, 2, 4, 8];

/// Lets each vCPU touch its share of the pages in a thread of its own, and calls `resolve` for each
/// that is marked.
fn touch_shares(vcpus: &mut [Vcpu], slot: &Slot, resolve: impl Fn(Page) + Sync) {
    let resolve = &resolve;
    thread::scope(|scope| {
        for vcpu in vcpus {
            scope.spawn(move || loop {
                match vcpu.run() {
                    Exit::Userfault { gpa, .. } => resolve(slot.page_of(gpa)),
                    Exit::Sync(0, 0) => return,
                    other => panic!("unexpected exit: {other:x?}"),
                }
            });
        }
    });
}

/// Measures paging by userfault: the vCPU's thread fills the page and clears the mark. `supply` is
/// made for the memory and fills a page of it.
fn by_userfault<S: Fn(Page, &[u8]) + Sync>(
    name: &'static str,
    backing: Backing,
    supply: impl Fn(&Slot) -> S,
) {
    need_userfault();
    let content = vec![2; page_size()];
    for vcpus in VCPUS {
        let figure = Figure::new(name, demand()).vcpus(vcpus).marked(100);
        figure.per_page().report((0..REPETITIONS).map(|_| {
            let mut machine = machine_with(backing, demand(), 1, vcpus);
            let bitmap = Bitmap::marked(machine.slot.pages());
            let slot = machine.slot.clone();
            let _flag = slot.enable(&bitmap);
            let supply = supply(&slot);
            sample(|| {
                touch_shares(&mut machine.vcpus, &slot, |page| {
                    supply(page, &content);
                    bitmap.clear(page);
                })
            })
        }));
    }
}

/// Paging in anonymous memory by userfault.
pub fn userfault() {
    by_userfault("demand-userfault", Backing::Anonymous, |slot| {
        let slot = slot.clone();
        move |page, content: &[u8]| slot.fill_page(page, content)
    });
}

/// The same, where a userfaultfd fills the memory: for KVM's own accesses there has to be one.
pub fn userfault_copy() {
    by_userfault("demand-userfault-copy", Backing::Anonymous, |slot| {
        let uffd = Uffd::new(slot.area());
        move |page, content: &[u8]| uffd.copy(page, content)
    });
}

/// Paging in shared memory by userfault, through another mapping of its file.
pub fn userfault_file() {
    by_userfault("demand-userfault-file", Backing::Shmem, |slot| {
        // As for MINOR, the file has all of its memory.
        let alias = slot.area().alias();
        pages(0..alias.pages()).for_each(|page| alias.fill_page(page, &vec![1; page_size()]));
        move |page, content: &[u8]| alias.fill_page(page, content)
    });
}

/// Paging in anonymous memory by userfault, where one other thread fills the pages of all vCPUs, as
/// with userfaultfd.
pub fn userfault_handler() {
    need_userfault();
    let content = &vec![2; page_size()];
    for vcpus in VCPUS {
        let figure = Figure::new("demand-userfault-handler", demand())
            .vcpus(vcpus)
            .marked(100);
        figure.per_page().report((0..REPETITIONS).map(|_| {
            let mut machine = machine_with(Backing::Anonymous, demand(), 1, vcpus);
            let bitmap = &Bitmap::marked(machine.slot.pages());
            let slot = &machine.slot.clone();
            let _flag = slot.enable(bitmap);
            let (ask, asked) = mpsc::channel::<(Page, Thread)>();
            thread::scope(|scope| {
                scope.spawn(move || {
                    for (page, waiting) in asked {
                        slot.fill_page(page, content);
                        bitmap.clear(page);
                        waiting.unpark();
                    }
                });
                let sample = sample(|| {
                    touch_shares(&mut machine.vcpus, slot, |page| {
                        let sent = ask.send((page, thread::current()));
                        sent.expect("the handler has ended");
                        while bitmap.is_marked(page) {
                            thread::park();
                        }
                    })
                });
                // The handler ends when nobody can ask any more.
                drop(ask);
                sample
            })
        }));
    }
}

/// Measures paging by userfaultfd: a thread of its own supplies each page and wakes who waits for
/// it. `handler` is made for the memory, waits for a page, supplies it and says which it was.
fn by_userfaultfd<H: FnMut() -> Page + Send>(
    name: &'static str,
    backing: Backing,
    handler: impl Fn(&Slot) -> H,
) {
    for vcpus in VCPUS {
        let figure = Figure::new(name, demand()).vcpus(vcpus);
        figure.per_page().report((0..REPETITIONS).map(|_| {
            let mut machine = machine_with(backing, demand(), 1, vcpus);
            let slot = machine.slot.clone();
            let mut handler = handler(&slot);
            let last = Page(slot.pages() - 1);
            thread::scope(|scope| {
                scope.spawn(move || while handler() != last {});
                let sample = sample(|| touch_shares(&mut machine.vcpus, &slot, none_marked));
                // The handler ends with the page that no vCPU has.
                slot.read(last, 0);
                sample
            })
        }));
    }
}

/// Paging in anonymous memory by userfaultfd, which finds it missing.
pub fn missing() {
    by_userfaultfd("demand-missing", Backing::Anonymous, |slot| {
        let uffd = Uffd::new(slot.area());
        let content = vec![2; page_size()];
        move || loop {
            if let Some(page) = uffd.wait(Duration::from_secs(20)) {
                uffd.copy(page, &content);
                return page;
            }
        }
    });
}

/// Paging in shared memory, which is there but not mapped, by userfaultfd.
pub fn minor() {
    by_userfaultfd("demand-minor", Backing::Shmem, |slot| {
        let alias = slot.area().alias();
        let content = vec![2; page_size()];
        pages(0..alias.pages()).for_each(|page| alias.fill_page(page, &content));
        let uffd = Minor::new(slot.area())
            .unwrap_or_else(|| ktap::skip("no userfaultfd for minor faults"));
        move || {
            let page = uffd.wait();
            alias.fill_page(page, &content);
            uffd.resume(page);
            page
        }
    });
}
