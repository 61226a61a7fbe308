// SPDX-License-Identifier: GPL-2.0-only

//! The filter by which a VMM decides what becomes of the guest's calls of firmware.
//!
//! The cases are those of smccc_filter.c. A failure means that KVM takes a filter that it cannot
//! honour, or that it does not do what a filter says.

use libkvm::{
    guest,
    ktap,
    smccc::{
        Filter,
        ARCH_FIRST_64,
        ARCH_WORKAROUND_1,
        DENY,
        FORWARD,
        HANDLE,
        KVM_HYPERCALL_EXIT_SMC,
        NOT_SUPPORTED,
        PSCI_CPU_ON,
        PSCI_VERSION, //
    },
    test_main,
    Errno,
    Exit,
    Vm, //
};

/// Guest code that calls a function by HVC, and hands the host the function and its result.
extern "C" fn call_by_hvc(function: u64, _: u64, _: u64) -> ! {
    guest::sync(function, guest::hvc(function as u32));
    guest::done()
}

/// Guest code as [`call_by_hvc`], by SMC.
extern "C" fn call_by_smc(function: u64, _: u64, _: u64) -> ! {
    guest::sync(function, guest::smc(function as u32));
    guest::done()
}

/// Returns a filter that denies `nr_functions` functions from `base` on.
fn deny(base: u32, nr_functions: u32) -> Filter {
    Filter {
        base,
        nr_functions,
        action: DENY,
        ..Default::default()
    }
}

/// Returns how KVM takes a filter, the first one of its VM.
fn set(filter: Filter) -> Result<(), Errno> {
    let (vm, _vcpus) = Vm::new(1, 0, call_by_smc);
    vm.set_smccc_filter(&filter)
}

fn padding_must_be_zero() {
    let filter = Filter {
        pad: [u8::MAX; 15],
        ..deny(PSCI_VERSION, 1)
    };
    assert_eq!(set(filter), Err(Errno::EINVAL));
}

fn range_must_not_be_empty() {
    assert_eq!(set(deny(PSCI_CPU_ON, 0)), Err(Errno::EINVAL));
    assert_eq!(set(deny(0, 0)), Err(Errno::EINVAL));
}

fn range_must_not_overflow() {
    assert_eq!(set(deny(u32::MAX, u32::MAX)), Err(Errno::EINVAL));
}

fn action_must_be_known() {
    let filter = Filter {
        action: u8::MAX,
        ..deny(PSCI_CPU_ON, 1)
    };
    assert_eq!(set(filter), Err(Errno::EINVAL));
}

/// What the architecture's functions say about the CPU is for KVM alone to say.
fn functions_of_the_architecture_are_reserved() {
    assert_eq!(set(deny(ARCH_WORKAROUND_1, 1)), Err(Errno::EEXIST));
    assert_eq!(set(deny(ARCH_FIRST_64, 1)), Err(Errno::EEXIST));
}

fn ranges_must_not_overlap() {
    let (vm, _vcpus) = Vm::new(1, 0, call_by_smc);
    assert_eq!(vm.set_smccc_filter(&deny(PSCI_CPU_ON, 1)), Ok(()));
    let again = vm.set_smccc_filter(&deny(PSCI_CPU_ON, 1));
    assert_eq!(again, Err(Errno::EEXIST));
}

/// Lets a guest ask for the version of PSCI, which is subject to `action`, and returns its exit.
fn ask_for_version(entry: guest::Entry, action: u8) -> Exit {
    let (vm, mut vcpus) = Vm::new(1, 0, entry);
    let filter = Filter {
        action,
        ..deny(PSCI_VERSION, 1)
    };
    assert_eq!(vm.set_smccc_filter(&filter), Ok(()));
    vcpus[0].set_args([PSCI_VERSION.into(), 0, 0]);
    vcpus[0].run()
}

/// Skips the case where a guest's HVC does not reach KVM.
fn needs_hvc() {
    if Vm::new(1, 0, call_by_hvc).0.has_el2() {
        ktap::skip("HVC calls the guest's own EL2");
    }
}

/// Checks that a call was answered, so that it is the filter that makes the difference below.
fn expect_answer(exit: Exit) {
    assert!(
        matches!(exit, Exit::Sync(_, version) if version != NOT_SUPPORTED),
        "{exit:x?}"
    );
}

fn handled_hvc_is_answered() {
    needs_hvc();
    expect_answer(ask_for_version(call_by_hvc, HANDLE));
}

fn handled_smc_is_answered() {
    expect_answer(ask_for_version(call_by_smc, HANDLE));
}

fn denied_hvc_is_not_supported() {
    needs_hvc();
    let denied = Exit::Sync(PSCI_VERSION.into(), NOT_SUPPORTED);
    assert_eq!(ask_for_version(call_by_hvc, DENY), denied);
}

fn denied_smc_is_not_supported() {
    let denied = Exit::Sync(PSCI_VERSION.into(), NOT_SUPPORTED);
    assert_eq!(ask_for_version(call_by_smc, DENY), denied);
}

fn forwarded_hvc_exits() {
    needs_hvc();
    let forwarded = Exit::Hypercall {
        function: PSCI_VERSION.into(),
        flags: 0,
    };
    assert_eq!(ask_for_version(call_by_hvc, FORWARD), forwarded);
}

fn forwarded_smc_exits() {
    let forwarded = Exit::Hypercall {
        function: PSCI_VERSION.into(),
        flags: KVM_HYPERCALL_EXIT_SMC.into(),
    };
    assert_eq!(ask_for_version(call_by_smc, FORWARD), forwarded);
}

/// Ends the program where KVM has no such filter.
fn needs_filter() {
    if set(deny(PSCI_VERSION, 1)) == Err(Errno::ENXIO) {
        ktap::skip_all("the kernel has no SMCCC filter");
    }
}

test_main! {
    needs: needs_filter,
    cases: [
        padding_must_be_zero,
        range_must_not_be_empty,
        range_must_not_overflow,
        action_must_be_known,
        functions_of_the_architecture_are_reserved,
        ranges_must_not_overlap,
        handled_hvc_is_answered,
        handled_smc_is_answered,
        denied_hvc_is_not_supported,
        denied_smc_is_not_supported,
        forwarded_hvc_exits,
        forwarded_smc_exits,
    ]
}
