// SPDX-License-Identifier: GPL-2.0-only

//! The guest's calls of firmware by the SMC calling convention, and the filter for them.

use crate::bindings;

pub use crate::bindings::{
    kvm_smccc_filter as Filter,
    KVM_HYPERCALL_EXIT_SMC, //
};

/// The action of a filter by which KVM treats the call as it does without a filter.
pub const HANDLE: u8 = bindings::kvm_smccc_filter_action_KVM_SMCCC_FILTER_HANDLE as u8;

/// The action of a filter by which the guest learns that there is no such function.
pub const DENY: u8 = bindings::kvm_smccc_filter_action_KVM_SMCCC_FILTER_DENY as u8;

/// The action of a filter by which the call is an [`Exit::Hypercall`](crate::Exit::Hypercall).
pub const FORWARD: u8 = bindings::kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER as u8;

/// The function of the architecture by which a guest mitigates Spectre variant 2.
pub const ARCH_WORKAROUND_1: u32 = bindings::LIBKVM_ARM_SMCCC_ARCH_WORKAROUND_1;

/// The first function of the architecture that has 64-bit arguments.
pub const ARCH_FIRST_64: u32 = bindings::LIBKVM_ARM_SMCCC_ARCH_FIRST_64;

/// PSCI's function that starts a CPU.
pub const PSCI_CPU_ON: u32 = bindings::LIBKVM_PSCI_CPU_ON;

/// PSCI's function that returns its version.
pub const PSCI_VERSION: u32 = bindings::LIBKVM_PSCI_VERSION;

/// What a call returns whose function does not exist.
pub const NOT_SUPPORTED: u64 = bindings::SMCCC_RET_NOT_SUPPORTED as u64;
