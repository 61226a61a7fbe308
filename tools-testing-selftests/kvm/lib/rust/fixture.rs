// SPDX-License-Identifier: GPL-2.0-only

//! What most userfault tests start from.

use crate::*;
use std::{
    fs,
    ops::Range,
    thread, //
};

/// The number of the slot that is tested.
pub const SLOT: u32 = 1;

/// The guest address of the slot that is tested, aligned for any block.
pub const GPA: Gpa = Gpa(1 << 30);

/// A VM with one slot, and vCPUs that run over its pages.
pub struct Machine {
    /// The VM.
    pub vm: Vm,
    /// Its vCPUs.
    pub vcpus: Vec<Vcpu>,
    /// The slot.
    pub slot: Slot,
}

impl Machine {
    /// Creates a machine with one vCPU that reads the slot's pages one after the other, over and
    /// over, see [`guest::read_pages`].
    #[track_caller]
    pub fn new(backing: Backing, pages: usize) -> Self {
        Self::with_guest(backing, pages, 1, guest::read_pages)
    }

    /// Creates a machine whose vCPUs start at `entry`, with the slot's address, its number of
    /// pages and their size in bytes as arguments.
    #[track_caller]
    pub fn with_guest(backing: Backing, pages: usize, vcpus: usize, entry: Entry) -> Self {
        Self::of_vm(Vm::new(pages, vcpus, entry), backing, pages)
    }

    /// Creates a machine as [`Machine::with_guest`] does, of a VM that is there.
    #[track_caller]
    pub fn of_vm((mut vm, vcpus): (Vm, Vec<Vcpu>), backing: Backing, pages: usize) -> Self {
        let slot = Slot::new(&mut vm, backing, SLOT, GPA, pages);
        Self::of_slot((vm, vcpus), slot)
    }

    /// Creates a machine of a VM that has its slot.
    #[track_caller]
    pub fn of_slot((vm, mut vcpus): (Vm, Vec<Vcpu>), slot: Slot) -> Self {
        for vcpu in &mut vcpus {
            let base = Gva(slot.gpa(Page(0)).0);
            vcpu.set_args(base, slot.pages() as u64, page_size() as u64);
        }
        Self { vm, vcpus, slot }
    }

    /// Creates a machine as [`Machine::new`] does, whose slot is `count` huge pages of the host,
    /// which have all of their memory.
    ///
    /// Skips the case where the host has none.
    #[track_caller]
    pub fn with_huge_pages(backing: Backing, count: usize) -> Self {
        Self::with_huge_pages_and_guest(backing, count, 1, guest::read_pages)
    }

    /// As [`Machine::with_huge_pages`], with other vCPUs.
    #[track_caller]
    pub fn with_huge_pages_and_guest(
        backing: Backing,
        count: usize,
        vcpus: usize,
        entry: Entry,
    ) -> Self {
        let pages = count * backing.need_huge_pages(count);
        let machine = Self::with_guest(backing, pages, vcpus, entry);
        machine.slot.fill();
        machine.slot.need_huge();
        machine
    }

    /// Runs the first vCPU to its next exit.
    #[track_caller]
    pub fn run(&mut self) -> Exit {
        self.vcpus[0].run()
    }

    /// Lets the vCPU read pages, of which none may be marked and each must hold its number.
    #[track_caller]
    pub fn read(&mut self, numbers: Range<usize>) {
        for page in pages(numbers) {
            expect_eq!(self.run(), Exit::numbered(page), "{page:?}");
        }
    }

    /// Lets the vCPU read all pages, as [`Machine::read`] does.
    #[track_caller]
    pub fn read_all(&mut self) {
        self.read(0..self.slot.pages());
    }

    /// Returns the exit that an access to a marked page must cause.
    pub fn userfault(&self, page: Page) -> Exit {
        Exit::userfault(self.slot.gpa(page))
    }

    /// Sets the flag.
    #[track_caller]
    pub fn enable<'b>(&self, bitmap: &'b Bitmap) -> Userfault<'b> {
        self.slot.enable(bitmap)
    }

    /// Runs all vCPUs, each in a thread of its own, while another thread does something, and stops
    /// them when that is done.
    ///
    /// `on_exit` gets all of their exits, with the number of the vCPU.
    #[track_caller]
    pub fn run_while<T>(
        &mut self,
        on_exit: impl Fn(usize, Exit) + Sync,
        something: impl FnOnce(&Slot) -> T,
    ) -> T {
        let (slot, on_exit) = (&self.slot, &on_exit);
        thread::scope(|scope| {
            let mut kickers = Vec::new();
            for (number, vcpu) in self.vcpus.iter_mut().enumerate() {
                kickers.push(vcpu.kicker());
                scope.spawn(move || loop {
                    match vcpu.run() {
                        Exit::Kicked => break,
                        exit => on_exit(number, exit),
                    }
                });
            }
            let done = something(slot);
            kickers.iter().for_each(|kicker| kicker.kick());
            done
        })
    }
}

impl Slot {
    /// Has the kernel put all of the memory into huge pages, or skips the case where it does not,
    /// as there are none to be had.
    #[track_caller]
    pub fn need_huge(&self) {
        let area = self.area();
        if area.backing() != Backing::Anonymous && !area.is_huge() {
            area.collapse();
        }
        if !area.is_huge() {
            ktap::skip("the host's memory is not in huge pages");
        }
    }
}

/// Skips the case where the kernel does not have userfault, after having checked that it refuses
/// the flag there.
pub fn needs_userfault() {
    if system_capability(bindings::KVM_CAP_USERFAULT) != 0 {
        return;
    }
    let machine = Machine::new(Backing::Anonymous, 16);
    let bitmap = Bitmap::new(16);
    let region = machine.slot.region().flags(bindings::KVM_MEM_USERFAULT);
    let set = region.bitmap(&bitmap).set_unguarded();
    expect_eq!(set, Err(Errno::EINVAL), "accepted without the capability");
    ktap::skip("the kernel has no KVM_CAP_USERFAULT");
}

/// Returns whether the kernel has the helper that decides by the bitmap.
fn has_helper() -> bool {
    // Everybody may read the names, if not the addresses.
    let symbols = fs::read_to_string("/proc/kallsyms").expect("cannot read /proc/kallsyms");
    assert!(symbols.contains(" kvm_"), "no KVM in /proc/kallsyms");
    let is_name = |word| word == "kvm_userfault_map_size";
    symbols.split_whitespace().any(is_name)
}

/// Skips the case where blocks are never mapped while the flag is set.
pub fn needs_helper() {
    if !has_helper() {
        ktap::skip("needs: helper (CONFIG_KVM_ARM64_USERFAULT_HELPER)");
    }
}

/// Skips the case where blocks may be mapped while the flag is set.
pub fn needs_no_helper() {
    if has_helper() {
        ktap::skip("needs: a kernel without CONFIG_KVM_ARM64_USERFAULT_HELPER");
    }
}
