// SPDX-License-Identifier: GPL-2.0-only

//! A safe layer over libkvm for KVM selftests written in Rust.
//!
//! A test sets up a [`Vm`] with guest code from [`guest`], adds a [`Slot`], lets a [`Vcpu`] run
//! until its next [`Exit`] and says what it expected. [`ktap`] runs the cases of a program and
//! reports them; [`test_main`] lists them. What a test does not find here it should add here:
//! tests have no `unsafe` code.
//!
//! libkvm itself ends the program when a call fails that always has to work, such as creating a
//! VM. Functions of this crate do the same unless they return a [`Result`].

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
mod area;
mod bitmap;
mod counter;
mod dirty;
mod errno;
mod events;
pub mod fixture;
pub mod guest;
pub mod guest_el2;
pub mod ktap;
mod nested;
mod slot;
pub mod smccc;
mod stage2;
mod uffd;
mod vm;

pub use area::{
    Access,
    Area, //
};
pub use bindings::{
    kvm_userspace_memory_region as Region1,
    kvm_userspace_memory_region2 as Region,
    KVM_CAP_USERFAULT,
    KVM_EXIT_MMIO,
    KVM_MEMORY_EXIT_FLAG_USERFAULT,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEM_USERFAULT, //
};
pub use bitmap::Bitmap;
pub use counter::{
    lateness,
    Moment, //
};
pub use errno::Errno;
pub use events::{
    Counter,
    Event, //
};
pub use nested::L2Table;
pub use slot::{
    Backing,
    Slot, //
};
pub use stage2::{
    Mapping,
    Stage2, //
};
pub use uffd::{
    Fault,
    Uffd, //
};
pub use vm::{
    allow_tagged_pointers,
    host_page_size,
    system_capability,
    without_interrupt_controller,
    BareVm,
    Exit,
    Vcpu,
    Vm, //
};
