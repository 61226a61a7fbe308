// SPDX-License-Identifier: GPL-2.0-only

//! Paging on demand, by several vCPUs together: by userfault, and by userfaultfd.

use super::*;

/// Returns how much memory is paged in on demand: less where events are counted, which takes longer
/// and is the same for each page.
fn demand() -> usize {
    if counts_events() {
        4 << 20
    } else {
        16 << 20
    }
}

/// Reports what paging takes by one vCPU and by several together. `take` gets a machine with a page
/// more than the vCPUs touch.
fn by_several(
    name: &str,
    backing: Backing,
    marked: usize,
    take: impl Fn(&mut Machine, &Slot) -> Sample,
) {
    for vcpus in [1, 2, 4, 8] {
        let mut figure = Figure::new(demand(), marked).per_page();
        figure.vcpus = vcpus;
        figure.report([name], || {
            let mut machine = machine_with(backing, demand(), 1, vcpus);
            let slot = machine.slot.clone();
            [take(&mut machine, &slot)]
        });
    }
}

/// Lets each vCPU touch its share of the pages in a thread of its own, and calls `resolve` for each
/// that is marked.
fn touch_shares(machine: &mut Machine, resolve: impl Fn(Page) + Sync) {
    let (slot, resolve) = (&machine.slot, &resolve);
    thread::scope(|scope| {
        for vcpu in &mut machine.vcpus {
            scope.spawn(move || touch_share(vcpu, slot, resolve));
        }
    });
}

/// Measures paging by userfault: the vCPU's thread fills the page and clears the mark. `supply` is
/// made for the memory and fills a page of it.
fn by_userfault<S: Fn(Page, &[u8]) + Sync>(
    name: &str,
    backing: Backing,
    supply: impl Fn(&Slot) -> S,
) {
    needs_userfault();
    let content = vec![2; page_size()];
    by_several(name, backing, 100, |machine, slot| {
        let bitmap = Bitmap::marked(slot.pages());
        let _flag = slot.enable(&bitmap);
        let supply = supply(slot);
        sample(|| {
            touch_shares(machine, |page| {
                supply(page, &content);
                bitmap.clear(page);
            })
        })
    });
}

/// Paging in anonymous memory by userfault.
pub fn demand_userfault() {
    by_userfault("demand-userfault", Backing::Anonymous, |slot| {
        let slot = slot.clone();
        move |page, content: &[u8]| slot.fill_page(page, content)
    });
}

/// The same, where a userfaultfd fills the memory: for KVM's own accesses there has to be one.
pub fn demand_userfault_copy() {
    by_userfault("demand-userfault-copy", Backing::Anonymous, |slot| {
        let uffd = Uffd::new(slot.area());
        move |page, content: &[u8]| uffd.copy(page, content)
    });
}

/// Paging in shared memory by userfault, through another mapping of its file.
pub fn demand_userfault_file() {
    by_userfault("demand-userfault-file", Backing::Shmem, |slot| {
        // As for MINOR, the file has all of its memory.
        let alias = slot.area().alias();
        alias.fill();
        move |page, content: &[u8]| alias.fill_page(page, content)
    });
}

/// Paging in anonymous memory by userfault, where one other thread fills the pages of all vCPUs, as
/// with userfaultfd.
pub fn demand_userfault_handler() {
    needs_userfault();
    let content = &vec![2; page_size()];
    let (name, backing) = ("demand-userfault-handler", Backing::Anonymous);
    by_several(name, backing, 100, |machine, slot| {
        let bitmap = &Bitmap::marked(slot.pages());
        let _flag = slot.enable(bitmap);
        let (ask, asked) = mpsc::channel::<(Page, thread::Thread)>();
        thread::scope(|scope| {
            // The handler ends when nobody can ask any more.
            scope.spawn(move || {
                for (page, waiting) in asked {
                    slot.fill_page(page, content);
                    bitmap.clear(page);
                    waiting.unpark();
                }
            });
            sample(move || {
                touch_shares(machine, |page| {
                    let sent = ask.send((page, thread::current()));
                    sent.expect("the handler has ended");
                    while bitmap.is_marked(page) {
                        thread::park();
                    }
                })
            })
        })
    });
}

/// Measures paging by userfaultfd: a thread of its own supplies each page and wakes who waits for
/// it. `handler` is made for the memory, waits for a page, supplies it and says which it was.
fn by_userfaultfd<H: FnMut() -> Page + Send>(
    name: &str,
    backing: Backing,
    handler: impl Fn(&Slot) -> H,
) {
    by_several(name, backing, 0, |machine, slot| {
        let mut handler = handler(slot);
        let last = Page(slot.pages() - 1);
        thread::scope(|scope| {
            scope.spawn(move || while handler() != last {});
            let sample = sample(|| touch_shares(machine, none_marked));
            // The handler ends with the page that no vCPU has.
            slot.read(last, 0);
            sample
        })
    });
}

/// Paging in anonymous memory by userfaultfd, which finds it missing.
pub fn demand_missing() {
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
pub fn demand_minor() {
    by_userfaultfd("demand-minor", Backing::Shmem, |slot| {
        let alias = slot.area().alias();
        let content = vec![2; page_size()];
        alias.fill();
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

/// A userfaultfd for pages of shared memory that are in a file but not mapped, which the tests have
/// no need of.
struct Minor {
    file: File,
    base: u64,
}

impl Minor {
    /// Registers an area, or returns nothing where that is not possible.
    fn new(area: &Area) -> Option<Self> {
        const USERFAULTFD: i64 = 282;
        const O_CLOEXEC: i64 = 0o2000000;
        const UFFD_API: u64 = 0xaa;
        const UFFD_FEATURE_MINOR_SHMEM: u64 = 1 << 10;
        const REGISTER_MODE_MINOR: u64 = 1 << 2;
        // SAFETY: The system call takes flags only.
        let file = opened(unsafe { syscall(USERFAULTFD, O_CLOEXEC) })?;
        let base = area.at(0).0;
        let minor = Self { file, base };
        let is_there = minor.call(0x3f, [UFFD_API, UFFD_FEATURE_MINOR_SHMEM, 0])
            && minor.call(0, [base, area.len() as u64, REGISTER_MODE_MINOR, 0]);
        is_there.then_some(minor)
    }

    /// Makes a request with a struct uffdio_api, uffdio_register or uffdio_continue.
    fn call<const WORDS: usize>(&self, number: u64, mut argument: [u64; WORDS]) -> bool {
        let request = 3 << 30 | 0xaa << 8 | number;
        ioctl(self.file.as_raw_fd(), request, &mut argument)
    }

    /// Returns the next page that a thread waits for.
    fn wait(&self) -> Page {
        const EVENT_PAGEFAULT: u64 = 0x12;
        let mut message = [0; 32];
        let count = (&self.file)
            .read(&mut message)
            .expect("cannot read the userfaultfd");
        let word = |n: usize| u64::from_ne_bytes(std::array::from_fn(|byte| message[n * 8 + byte]));
        assert!(count == 32 && word(0) & 0xff == EVENT_PAGEFAULT);
        Page((word(2) - self.base) as usize / page_size())
    }

    /// Maps a page and wakes whoever waits for it.
    fn resume(&self, page: Page) {
        let start = self.base + page.offset().0;
        // That it is mapped already is no error.
        self.call(7, [start, page_size() as u64, 0, 0]);
    }
}
