// SPDX-License-Identifier: GPL-2.0-only

//! Memory that KVM maps by another way than a fault of the guest: KVM_PRE_FAULT_MEMORY.
//!
//! A failure means that a marked page gets mapped, or that the exit which a vCPU has not completed
//! yet is lost.

use libkvm::*;

const PAGES: usize = 8;

/// Where no memory is.
const DEVICE: Gpa = Gpa(3 << 30);

guest_code! {
    /// Reads from a device, and then the pages.
    fn read_device_and_pages(guest: Guest, base: Gva, pages: u64, stride: u64) {
        guest.read(Gva(DEVICE.0));
        guest.for_each_page(base, pages, stride, |page, address| {
            guest.sync(page, guest.read(address));
        })
    }
}

/// A page that is not marked is mapped. One that is marked is not: the caller hears that there is
/// no data, and the exit to a device that waits for its answer stays as it is.
fn check_pre_fault(backing: Backing) {
    let mut machine = Machine::with_guest(backing, PAGES, 1, read_device_and_pages);
    machine.vm.map(Gva(DEVICE.0), DEVICE, 1);
    machine.slot.fill();
    let bitmap = Bitmap::new(PAGES).with(3..4);
    let _flag = machine.enable(&bitmap);
    let device = Exit::Mmio {
        gpa: DEVICE,
        is_write: false,
    };
    expect_eq!(machine.run(), device);

    let before = machine.vcpus[0].shared();
    let [clear, marked] = [2, 3].map(|page| machine.slot.gpa(Page(page)));
    expect_eq!(machine.vcpus[0].pre_fault(clear), Ok(()));
    expect_eq!(machine.vcpus[0].pre_fault(marked), Err(Errno::ENODATA));
    let changed = machine.vcpus[0].shared();
    let changed = changed.iter().zip(&before).enumerate();
    let changed: Vec<_> = changed.filter(|(_, (new, old))| new != old).collect();
    expect_eq!(changed, [], "what differs of the exit, and where");
    expect_eq!(machine.slot.mapped(), [Page(2)]);

    machine.read(0..3);
    expect_eq!(machine.run(), machine.userfault(Page(3)));
    bitmap.clear(Page(3));
    expect_eq!(machine.vcpus[0].pre_fault(marked), Ok(()));
    machine.read(3..PAGES);
}

fn pre_fault_of_anonymous_memory() {
    check_pre_fault(Backing::Anonymous);
}

fn pre_fault_of_guest_memfd() {
    check_pre_fault(Backing::GuestMemfd);
}

test_main! {
    about: "Memory that KVM maps by KVM_PRE_FAULT_MEMORY while the flag of userfault is set.",
    needs: needs_userfault,
    cases: [
        pre_fault_of_anonymous_memory,
        pre_fault_of_guest_memfd,
    ],
}
