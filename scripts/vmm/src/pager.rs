// SPDX-License-Identifier: GPL-2.0-only
//! Supplies pages: on demand of vCPUs and of userfaultfd, and in a stream of its own.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use userfaultfd::Uffd;

use crate::layout::{BLOCK_PAGES, page_size};
use crate::memory::{self, Fill};
use crate::stats::Stats;
use crate::userfault::{Demand, Marks};

/// Where the content of pages comes from.
pub trait Source: Send + Sync {
    /// Reads pages from `first` on.
    fn read(&self, first: usize, buffer: &mut [u8]) -> Result<()>;
}

impl Source for File {
    fn read(&self, first: usize, buffer: &mut [u8]) -> Result<()> {
        self.read_exact_at(buffer, (first * page_size()) as u64)
            .context(format!("reading page {first} of the snapshot"))
    }
}

/// Gets each page once from where it is to where it belongs.
pub struct Pager {
    source: Box<dyn Source>,
    fill: Fill,
    marks: Option<Arc<Marks>>,
    /// The pages that nobody has begun to fill.
    pending: Marks,
    /// The number of pages that are filled and published.
    supplied: AtomicUsize,
    stats: Arc<Stats>,
}

impl Pager {
    /// Makes a pager for a slot of which no page is there. Without marks userfaultfd alone stops
    /// who touches a page.
    pub fn new(
        pages: usize,
        source: Box<dyn Source>,
        fill: Fill,
        marks: Option<Arc<Marks>>,
        stats: Arc<Stats>,
    ) -> Result<Arc<Self>> {
        let pending = Marks::all(pages)?;
        Ok(Arc::new(Self { source, fill, marks, pending, supplied: AtomicUsize::new(0), stats }))
    }

    /// Supplies those of some pages that nobody has begun with, and returns how many that were.
    ///
    /// A page is taken before it is filled, so that it is filled once: the second fill of a page
    /// would undo what the guest did to it after the first. The fill comes before the mark is
    /// cleared, so that no vCPU sees a page that is not filled.
    pub fn supply(&self, pages: Range<usize>) -> Result<usize> {
        let mut supplied = 0;
        for run in self.pending.take(pages) {
            let mut content = Vec::new();
            if self.fill.needs_content() {
                content.resize(run.len() * page_size(), 0);
                self.source.read(run.start, &mut content)?;
            }
            self.fill.put(run.clone(), &content)?;
            self.stats.bytes.fetch_add(content.len() as u64, Ordering::Relaxed);
            let count = run.len();
            if let Some(marks) = &self.marks {
                marks.clear(run);
            }
            supplied += count;
            self.supplied.fetch_add(count, Ordering::Release);
        }
        Ok(supplied)
    }

    /// Supplies all pages, block by block: where a whole block is clear KVM may map it as one.
    ///
    /// Returns when all are there, those that other threads have taken included: who then clears
    /// the flag, or unregisters from userfaultfd, leaves nobody with a page that is half filled.
    pub fn stream(&self, pages: usize) -> Result<()> {
        for start in (0..pages).step_by(BLOCK_PAGES) {
            self.supply(start..(start + BLOCK_PAGES).min(pages))?;
            // vCPUs that wait for one page come first.
            std::thread::yield_now();
        }
        while self.supplied.load(Ordering::Acquire) < pages {
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Returns when a page that a vCPU exited for is there.
    pub fn demand(&self, page: usize) -> Result<()> {
        if self.supply(page..page + 1)? == 0 {
            // Another thread is at it. To enter the vCPU now would only make it exit again. A VMM
            // whose pages come from afar sleeps here, as `migrate` does.
            while self.marks.as_ref().is_some_and(|marks| marks.is_set(page)) {
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Supplies what userfaultfd asks for, until it is gone.
    pub fn serve(&self, uffd: &Uffd, base: u64) -> Result<()> {
        memory::serve(uffd, base, &self.stats, |page| self.supply(page..page + 1).map(drop))
    }
}

/// A vCPU's thread serves its own exits.
impl Demand for Arc<Pager> {
    fn page(&mut self, page: usize) -> Result<()> {
        self.demand(page)
    }
}

/// There are no marks.
#[derive(Clone)]
pub struct NoDemand;

impl Demand for NoDemand {
    fn page(&mut self, page: usize) -> Result<()> {
        bail!("an exit for page {page}, which has no mark")
    }
}

/// The marks of memory that is all there: an exit tells that the guest touched a page.
impl Demand for Arc<Marks> {
    fn page(&mut self, page: usize) -> Result<()> {
        self.clear(page..page + 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Config;
    use crate::memory::{Backing, Memory};

    /// A page's content is its number, and reading it twice is an error of the pager.
    struct Numbers(Marks);

    impl Source for Numbers {
        fn read(&self, first: usize, buffer: &mut [u8]) -> Result<()> {
            for (offset, page) in buffer.chunks_mut(page_size()).enumerate() {
                assert!(!self.0.is_set(first + offset), "page {} is read twice", first + offset);
                page.fill((first + offset) as u8);
            }
            self.0.set(first..first + buffer.len() / page_size());
            Ok(())
        }
    }

    #[test]
    fn each_page_is_filled_before_its_mark_is_cleared() {
        let config = Config { ram: 4 << 20, vcpus: 1 };
        let pages = config.pages();
        let memory = Memory::new(config, Backing::Anonymous).unwrap();
        let marks = Arc::new(Marks::all(pages).unwrap());
        let source = Box::new(Numbers(Marks::new(pages).unwrap()));
        let fill = Fill::Write(memory.clone());
        let stats = Arc::new(Stats::default());
        let pager = Pager::new(pages, source, fill, Some(marks.clone()), stats.clone()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| pager.stream(pages).unwrap());
            for _ in 0..3 {
                scope.spawn(|| {
                    for page in (0..pages).rev() {
                        while marks.is_set(page) {
                            pager.clone().page(page).unwrap();
                        }
                        let mut byte = [0];
                        memory.read(page, &mut byte).unwrap();
                        assert_eq!(byte[0], page as u8);
                    }
                });
            }
        });
        assert_eq!(marks.count(), 0);
        assert_eq!(stats.bytes.load(Ordering::Relaxed), (pages * page_size()) as u64);
    }
}
