// SPDX-License-Identifier: GPL-2.0-only

//! As much of the selftests' crate as its runner of cases needs, on any machine with Linux.

mod bindings {
    extern "C" {
        pub fn prctl(option: i32, ...) -> i32;
        pub fn kill(pid: i32, signal: i32) -> i32;
    }
    pub const PR_SET_PDEATHSIG: u32 = 1;
    pub const SIGKILL: u32 = 9;
}
#[macro_use]
pub mod ktap;
