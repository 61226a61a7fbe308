// SPDX-License-Identifier: GPL-2.0-only
//! A small VMM that restores and migrates arm64 Linux guests by KVM userfault. An example to read:
//! userfault.rs is the file to begin with, then pager.rs, restore.rs and migrate.rs.
#![cfg_attr(not(target_arch = "aarch64"), allow(dead_code, unused_imports))]

mod bus;
mod fdt;
mod layout;
mod memory;
mod pager;
mod snapshot;
mod state;
mod stats;
mod userfault;
mod wound;

// What only KVM for arm64 has; the rest is tested on any host.
#[cfg(target_arch = "aarch64")]
mod crew;
#[cfg(target_arch = "aarch64")]
mod gic;
#[cfg(target_arch = "aarch64")]
mod handler;
#[cfg(target_arch = "aarch64")]
mod lead;
#[cfg(target_arch = "aarch64")]
mod migrate;
#[cfg(target_arch = "aarch64")]
mod restore;
#[cfg(target_arch = "aarch64")]
mod vm;

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(target_arch = "aarch64")]
    match lead::program(pico_args::Arguments::from_env()) {
        Ok(code) => return code,
        Err(error) => eprintln!("vmm: error: {error:#}"),
    }
    #[cfg(not(target_arch = "aarch64"))]
    eprintln!("vmm: error: this VMM is for arm64 hosts");
    ExitCode::FAILURE
}
