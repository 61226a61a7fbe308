// SPDX-License-Identifier: GPL-2.0-only

//! A safe layer over libkvm for KVM selftests written in Rust.
//!
//! A test sets up a [`Vm`] with guest code from [`guest`], adds a [`Slot`], lets a [`Vcpu`] run
//! until its next [`Exit`] and says what it expected. [`ktap`] runs the cases of a program;
//! [`test_main`] lists them. Here is one with a single case:
//!
//! ```ignore
//! use libkvm::*;
//!
//! /// A load exits, and sees what was supplied before the mark was cleared.
//! fn load_exits() {
//!     let mut machine = Machine::new(Backing::Anonymous, 4);
//!     let bitmap = Bitmap::marked(4);
//!     let _flag = machine.enable(&bitmap);
//!
//!     expect_eq!(machine.run(), machine.userfault(Page(0)));
//!     machine.slot.write(Page(0), 0, 7);
//!     bitmap.clear(Page(0));
//!     expect_eq!(machine.run(), Exit::Sync(0, 7));
//! }
//!
//! test_main! {
//!     about: "Tests of loads.",
//!     needs: needs_userfault,
//!     cases: [load_exits],
//! }
//! ```
//!
//! In words: the machine has one vCPU, which reads the first word of each of four pages in turn and
//! hands it to the host with the page's number, and a slot of four pages, all of which are marked.
//! The vCPU exits at page 0 until that is no longer marked. Here the case ends, and with it the
//! flag, the slot and the VM.
//!
//! Tests have no `unsafe` code: what they do not find here should be added here. What is here is
//! safe in one of three ways:
//!
//! - By its type. Nobody drops a [`Bitmap`] that a [`Userfault`] borrows, runs a [`Vcpu`] by two
//!   threads, calls guest code on the host, or takes the address of one kind for another.
//! - By an assertion, when the test runs: that an access is inside the memory, a part inside its
//!   slot, a bitmap as long as the slot that it is enabled for, and a slot's number no other's.
//! - As a VM keeps the memory of all slots and bitmaps that it ever had.
//!
//! [`Region::bitmap_at`] takes any address: KVM does no more than read there. Where libkvm ends the
//! program, as it does when a call fails that always has to work, this fails the case.
//!
//! The modules build on each other in this order: `ktap`, `sys`, `units`, `area`, `bitmap`;
//! `guest`; `handle`, `vcpu`, `vm`, `slot`; then all others, with those of `arm64`.

#[allow(clippy::all, clippy::undocumented_unsafe_blocks)]
#[allow(improper_ctypes, missing_docs, unsafe_op_in_unsafe_fn)]
#[allow(
    dead_code,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals
)]
mod bindings {
    // Made by bindgen, see Makefile.rust.
    include!(env!("LIBKVM_BINDINGS"));
}
#[macro_use]
pub mod ktap;
mod area;
mod bitmap;
mod sys;
mod units;
#[macro_use]
pub mod guest;
mod arm64;
mod dirty;
mod fixture;
mod handle;
mod slot;
mod trace;
mod uffd;
mod vcpu;
mod vm;

// What modules have by `use crate::*`, besides of what tests have.
use guest::Entry;
use handle::VmInner;
use sys::{
    ignore,
    set_attribute,
    Ioctl,
    Number, //
};
use vm::OWN_SLOT;

pub use area::{
    end_of_user_space,
    Access,
    Advice,
    Area,
    Backing, //
};
pub use arm64::*;
pub use bindings::{
    KVM_CAP_ARM_CACHEABLE_PFNMAP_SUPPORTED,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_CAP_USERFAULT,
    KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_MEMORY_EXIT_FLAG_USERFAULT,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEM_USERFAULT, //
};
pub use bitmap::Bitmap;
pub use fixture::{
    needs_helper,
    needs_no_helper,
    needs_userfault,
    Machine,
    GPA,
    SLOT, //
};
pub use guest::Guest;
pub use slot::{
    Region,
    Slot,
    Userfault, //
};
pub use sys::{
    allow_tagged_pointers,
    page_size,
    system_capability,
    Errno, //
};
pub use trace::Trace;
pub use uffd::Uffd;
pub use units::{
    pages,
    Bytes,
    Gpa,
    Gva,
    Hva,
    Page, //
};
pub use vcpu::{
    Exit,
    Kick,
    Vcpu, //
};
pub use vm::{
    Kind,
    Vm, //
};
