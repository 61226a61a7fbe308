// SPDX-License-Identifier: GPL-2.0-only
//! Breaks a restore on purpose, to show that the guest notices. Nothing that a VMM needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::layout::page_size;
use crate::pager::Source;
use crate::userfault::Marks;

/// What the pages of the guest's program begin with, see bin/guest.rs.
pub const PROGRAM: [u8; 8] = 0x6673_7561_6c74_7566_u64.to_le_bytes();

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wound {
    None,
    /// A byte of a page is another.
    WrongByte,
    /// A page's mark is cleared, but the page was never filled.
    LostPage,
    /// The marks are cleared, and only then the pages are filled.
    EarlyClear,
    /// KVM says that it has no userfault.
    NoCapability,
}

impl Wound {
    pub const NAMES: [(&'static str, Wound); 5] = [
        ("nothing", Wound::None),
        ("wrong-byte", Wound::WrongByte),
        ("lost-page", Wound::LostPage),
        ("early-clear", Wound::EarlyClear),
        ("no-capability", Wound::NoCapability),
    ];
}

/// A source that does what it should, but for one page.
pub struct Broken<S> {
    source: S,
    wound: Wound,
    marks: Option<Arc<Marks>>,
    pages: usize,
    healthy: AtomicBool,
}

impl<S: Source> Broken<S> {
    pub fn new(source: S, wound: Wound, marks: Option<Arc<Marks>>, pages: usize) -> Self {
        let healthy = matches!(wound, Wound::WrongByte | Wound::LostPage | Wound::EarlyClear);
        Self { source, wound, marks, pages, healthy: AtomicBool::new(healthy) }
    }

    /// Clears the marks of all pages of the guest's program.
    fn clear_early(&self) -> Result<()> {
        let mut content = vec![0; page_size()];
        for page in 0..self.pages {
            self.source.read(page, &mut content)?;
            if let (true, Some(marks)) = (content.starts_with(&PROGRAM), &self.marks) {
                marks.clear(page..page + 1);
            }
        }
        Ok(())
    }
}

impl<S: Source> Source for Broken<S> {
    fn read(&self, first: usize, buffer: &mut [u8]) -> Result<()> {
        self.source.read(first, buffer)?;
        if !self.healthy.load(Ordering::Relaxed) {
            return Ok(());
        }
        // A page alone is one that a vCPU waits for. Others may be left over in the guest's free memory.
        if buffer.len() != page_size() || !buffer.starts_with(&PROGRAM) {
            return Ok(());
        }
        if self.healthy.swap(false, Ordering::Relaxed) {
            match self.wound {
                Wound::WrongByte => buffer[1234] ^= 1,
                Wound::LostPage => buffer.fill(0),
                _ => {
                    self.clear_early()?;
                    thread::sleep(Duration::from_secs(5));
                }
            }
        }
        Ok(())
    }
}
