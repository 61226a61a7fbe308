// SPDX-License-Identifier: GPL-2.0-only

//! As much of the selftests' crate as its runner of cases needs, on any machine with Linux.

#[allow(non_upper_case_globals)]
mod bindings {
    type Handler = unsafe extern "C" fn(i32);
    extern "C" {
        pub fn dup2(old: i32, new: i32) -> i32;
        pub fn fork() -> i32;
        pub fn kill(pid: i32, signal: i32) -> i32;
        pub fn prctl(option: i32, ...) -> i32;
        pub fn setpgid(pid: i32, group: i32) -> i32;
        pub fn signal(signal: i32, handler: Option<Handler>) -> Option<Handler>;
        pub fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    }
    pub const LIBKVM_MPOL_LOCAL: u32 = 4;
    pub const PR_SET_PDEATHSIG: u32 = 1;
    pub const SIGCHLD: u32 = 17;
    pub const SIGHUP: u32 = 1;
    pub const SIGINT: u32 = 2;
    pub const SIGKILL: u32 = 9;
    pub const SIGTERM: u32 = 15;
    pub const SYS_set_mempolicy: u32 = 0;
    pub const WNOHANG: u32 = 1;

    /// The numbers of system calls differ, and nothing here depends on the one that is called.
    pub unsafe fn syscall(_call: i64, _policy: u32, _nodes: u64, _count: u64) -> i64 {
        0
    }
}
#[macro_use]
pub mod ktap;
