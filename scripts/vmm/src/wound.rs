// SPDX-License-Identifier: GPL-2.0-only
//! Breaks a restore on purpose, to show that the guest notices. Nothing that a VMM needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::error::{Result, fail};
use crate::layout::page_size;
use crate::pager::Source;
use crate::userfault::Marks;

/// What the pages of the guest's program begin with, see bin/guest.rs.
pub const PROGRAM: [u8; 8] = 0x6673_7561_6c74_7566_u64.to_le_bytes();

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wound {
    None,
    /// A page's mark is cleared, but the page was never filled.
    LostPage,
    /// All marks are cleared, and only then the pages are filled.
    EarlyClear,
}

impl Wound {
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "none" => Ok(Wound::None),
            "lost-page" => Ok(Wound::LostPage),
            "early-clear" => Ok(Wound::EarlyClear),
            _ => fail!("a restore can be broken by lost-page or early-clear, not by '{name}'"),
        }
    }
}

/// A source that does what it should, but once.
pub struct Broken<S> {
    source: S,
    wound: Wound,
    marks: Option<Arc<Marks>>,
    pages: usize,
    healthy: AtomicBool,
}

impl<S: Source> Broken<S> {
    pub fn new(source: S, wound: Wound, marks: Option<Arc<Marks>>, pages: usize) -> Self {
        Self { source, wound, marks, pages, healthy: AtomicBool::new(wound != Wound::None) }
    }
}

impl<S: Source> Source for Broken<S> {
    fn read(&self, first: usize, buffer: &mut [u8]) -> Result<()> {
        self.source.read(first, buffer)?;
        let program = buffer.chunks_mut(page_size()).find(|page| page.starts_with(&PROGRAM));
        let Some(page) = program else { return Ok(()) };
        if self.healthy.swap(false, Ordering::Relaxed) {
            if self.wound == Wound::LostPage {
                page.fill(0);
            } else if let Some(marks) = &self.marks {
                marks.clear(0..self.pages);
                thread::sleep(Duration::from_secs(3));
            }
        }
        Ok(())
    }
}
