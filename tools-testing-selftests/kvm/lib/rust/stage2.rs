// SPDX-License-Identifier: GPL-2.0-only

//! The stage 2 page tables of a VM, as debugfs shows them.

use std::{
    fs,
    ops::Range,
    path::PathBuf, //
};

/// What KVM writes about its stage 2 tables with `CONFIG_PTDUMP_STAGE2_DEBUGFS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage2 {
    mappings: Vec<Mapping>,
}

/// Neighbouring valid leaf entries of one level that have the same attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The guest addresses that they map.
    pub range: Range<u64>,
    /// The level of the tables that they are in: pages are in level 3.
    pub level: u8,
    /// Permissions and other attributes, as KVM writes them.
    pub attributes: String,
}

/// The level of the tables whose entries map pages.
const PAGE_LEVEL: u8 = 3;

impl Mapping {
    /// Returns whether these are blocks, not pages.
    pub fn is_block(&self) -> bool {
        self.level < PAGE_LEVEL
    }

    /// Reads a line such as
    /// `0x0000000040000000-0x0000000040200000           2M 2     R W px ux AF BLK`,
    /// or returns [`None`] for one that is not about valid entries.
    fn parse(line: &str) -> Option<Self> {
        let (range, rest) = line.trim().split_once(char::is_whitespace)?;
        let (start, end) = range.split_once('-')?;
        let mut words = rest.split_whitespace();
        let (_size, level) = (words.next()?, words.next()?);
        let attributes = words.collect::<Vec<_>>().join(" ");
        let address = |hex: &str| u64::from_str_radix(hex.strip_prefix("0x")?, 16).ok();
        if attributes.is_empty() || attributes.split(' ').any(|word| word == "F") {
            return None;
        }
        Some(Self {
            range: address(start)?..address(end)?,
            level: level.parse().ok()?,
            attributes,
        })
    }
}

/// Returns the directory of a VM of this process in debugfs.
fn directory(vm_fd: i32) -> PathBuf {
    format!("/sys/kernel/debug/kvm/{}-{vm_fd}", std::process::id()).into()
}

impl Stage2 {
    /// Reads the tables of a VM of this process, or returns [`None`] where debugfs has none.
    pub(crate) fn read(vm_fd: i32) -> Option<Self> {
        let text = fs::read_to_string(directory(vm_fd).join("stage2_page_tables")).ok()?;
        Some(Self {
            mappings: text.lines().filter_map(Mapping::parse).collect(),
        })
    }

    /// Reads the tables that a VM of this process has for guests of its guests, all of them as if
    /// they were one, or returns [`None`] where debugfs has none.
    pub(crate) fn read_shadow(vm_fd: i32) -> Option<Self> {
        let mut mappings = Vec::new();
        for file in fs::read_dir(directory(vm_fd).join("nested")).ok()? {
            let text = fs::read_to_string(file.ok()?.path()).ok()?;
            mappings.extend(text.lines().filter_map(Mapping::parse));
        }
        Some(Self { mappings })
    }

    /// Returns the mappings of a range of guest addresses, cut to the range.
    pub fn within(&self, range: Range<u64>) -> Vec<Mapping> {
        self.mappings
            .iter()
            .filter(|mapping| mapping.range.start < range.end && range.start < mapping.range.end)
            .map(|mapping| Mapping {
                range: mapping.range.start.max(range.start)..mapping.range.end.min(range.end),
                ..mapping.clone()
            })
            .collect()
    }
}
