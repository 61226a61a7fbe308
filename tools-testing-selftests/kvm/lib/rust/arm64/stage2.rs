// SPDX-License-Identifier: GPL-2.0-only

//! The stage 2 page tables of a VM, as debugfs shows them.

use crate::*;
use std::{
    fs,
    ops::Range,
    os::fd::RawFd,
    path::{
        Path,
        PathBuf, //
    },
    process, //
};

/// A range of guest addresses that is mapped by valid entries of one level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The guest addresses.
    pub range: Range<Gpa>,
    /// The level of the tables that the entries are in: pages are in level 3.
    pub level: u8,
    /// Whether the guest may write there.
    pub is_writable: bool,
}

/// The level of the tables whose entries map pages.
const PAGE_LEVEL: u8 = 3;

impl Mapping {
    /// Returns whether these are blocks, not pages.
    pub fn is_block(&self) -> bool {
        self.level < PAGE_LEVEL
    }

    /// Reads a line such as
    /// `0x0000000040000000-0x0000000040200000           2M 2     R W px ux AF BLK`.
    ///
    /// Returns [`None`] if it is about entries that are not valid, and an error if this is not what
    /// such a line looks like.
    fn parse(line: &str) -> Result<Option<Self>, &str> {
        let mut words = line.split_whitespace();
        let mut word = || words.next().ok_or("too short");
        let (range, _size, level) = (word()?, word()?, word()?);
        let (start, end) = range.split_once('-').ok_or("no range")?;
        let address = |hex: &str| {
            let hex = hex.strip_prefix("0x").ok_or("no address")?;
            u64::from_str_radix(hex, 16)
                .map(Gpa)
                .map_err(|_| "no address")
        };
        let range = address(start)?..address(end)?;
        let level = level.parse().map_err(|_| "no level")?;
        let attributes: Vec<&str> = words.collect();
        match attributes.first() {
            None | Some(&"F") => Ok(None),
            Some(&"R" | &"W") => Ok(Some(Self {
                range,
                level,
                is_writable: attributes.contains(&"W"),
            })),
            Some(_) => Err("unknown attributes"),
        }
    }
}

/// Returns the directory of a VM of this process in debugfs, or skips the case where it is not for
/// this user.
#[track_caller]
fn directory(vm: RawFd) -> PathBuf {
    if sys::is_protected_host() {
        ktap::skip("the hypervisor has stage 2 for itself (kvm-arm.mode=protected)");
    }
    let all = Path::new("/sys/kernel/debug/kvm");
    let what = format!("cannot look at stage 2 in {all:?}");
    ktap::need(fs::read_dir(all), what);
    let directory = all.join(format!("{}-{vm}", process::id()));
    assert!(directory.is_dir(), "there is no {directory:?}");
    directory
}

/// Reads a file of tables, or skips the case where KVM has none.
#[track_caller]
fn read(path: &Path) -> Vec<Mapping> {
    let what = "KVM shows no stage 2 (CONFIG_PTDUMP_STAGE2_DEBUGFS)";
    let text = ktap::need(fs::read_to_string(path), what);
    // Headings say where a range begins, and what a shadow is for.
    let is_heading = |line: &&str| line.starts_with("---[") || line.starts_with("VTCR: ");
    let entries = text.lines().filter(|line| !is_heading(line));
    let parse = |line| {
        let parsed = Mapping::parse(line);
        parsed.unwrap_or_else(|error| panic!("{path:?}, '{line}': {error}"))
    };
    entries.filter_map(parse).collect()
}

/// Returns the mappings of a range of guest addresses, cut to the range.
///
/// Neighbours that are alike are one, whatever else the kernel shows of them.
fn within(mappings: impl IntoIterator<Item = Mapping>, range: Range<Gpa>) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    for mapping in mappings {
        let start = mapping.range.start.max(range.start);
        let end = mapping.range.end.min(range.end);
        match found.last_mut() {
            _ if start >= end => {}
            Some(last)
                if last.range.end == start
                    && last.level == mapping.level
                    && last.is_writable == mapping.is_writable =>
            {
                last.range.end = end;
            }
            _ => found.push(Mapping {
                range: start..end,
                ..mapping
            }),
        }
    }
    found
}

impl Vm {
    /// Returns the directory that debugfs has while KVM has the VM, or skips the case where nothing
    /// shows it.
    #[track_caller]
    pub fn debugfs(&self) -> PathBuf {
        directory(self.inner().fd())
    }

    /// Returns what KVM maps of a range of addresses of the guest's own guests, by all tables that
    /// it has for them as if they were one, or skips the case where nothing shows it.
    #[track_caller]
    pub fn shadow_mappings(&self, range: Range<Gpa>) -> Vec<Mapping> {
        let what = "KVM shows no shadow stage 2 (CONFIG_PTDUMP_STAGE2_DEBUGFS)";
        let directory = directory(self.inner().fd()).join("nested");
        let files = ktap::need(fs::read_dir(directory), what);
        let path = |file: std::io::Result<fs::DirEntry>| file.expect("cannot list debugfs").path();
        within(files.map(path).flat_map(|path| read(&path)), range)
    }
}

impl Slot {
    /// Returns what stage 2 maps of the slot, or skips the case where nothing shows it.
    #[track_caller]
    pub fn mappings(&self) -> Vec<Mapping> {
        let range = self.gpa(Page(0))..self.gpa(Page(self.pages()));
        let tables = directory(self.vm().fd()).join("stage2_page_tables");
        within(read(&tables), range)
    }

    /// Returns the pages of which `like` says so of their mappings.
    #[track_caller]
    fn pages_like(&self, like: impl Fn(&Mapping) -> bool) -> Vec<Page> {
        let pages = |mapping: Mapping| {
            let Range { start, end } = mapping.range;
            crate::pages(self.page_of(start).0..self.page_of(end).0)
        };
        let mappings = self.mappings().into_iter().filter(like);
        mappings.flat_map(pages).collect()
    }

    /// Returns the pages that stage 2 maps, or skips the case where nothing shows it.
    #[track_caller]
    pub fn mapped(&self) -> Vec<Page> {
        self.pages_like(|_| true)
    }

    /// Returns the pages that stage 2 maps by blocks, or skips the case where nothing shows it.
    #[track_caller]
    pub fn in_blocks(&self) -> Vec<Page> {
        self.pages_like(Mapping::is_block)
    }
}
