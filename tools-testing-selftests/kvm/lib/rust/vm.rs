// SPDX-License-Identifier: GPL-2.0-only

//! Virtual machines.

use crate::*;
use std::{
    fs::File,
    os::fd::FromRawFd,
    ptr::NonNull,
    sync::Arc, //
};

// SAFETY: This takes what api.rst has for it, in which there is no address.
const CREATE_GUEST_MEMFD: Ioctl<bindings::kvm_create_guest_memfd> =
    unsafe { Ioctl::new(bindings::LIBKVM_CREATE_GUEST_MEMFD) };
// SAFETY: As above.
const ENABLE_CAP: Ioctl<bindings::kvm_enable_cap> =
    unsafe { Ioctl::new(bindings::LIBKVM_ENABLE_CAP) };
// SAFETY: This takes a number's address.
const ARM_VCPU_FINALIZE: Ioctl<i32> = unsafe { Ioctl::new(bindings::LIBKVM_ARM_VCPU_FINALIZE) };

/// libkvm's own slot.
///
/// The guest has its code, its stacks and its page tables there, from guest address 0 on.
pub(crate) const OWN_SLOT: u32 = 0;

/// A virtual machine.
pub struct Vm(Arc<VmInner>);

/// What is special about a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its vCPUs have dirty rings of so many entries.
    DirtyRing(usize),
    /// KVM splits blocks in advance when a log starts, so many bytes at a time.
    EagerSplit(Bytes),
    /// Its memory has tags.
    Mte,
    /// Its vCPUs have vectors of FEAT_SVE.
    Sve,
}

impl Kind {
    /// Skips the case where KVM says that it has no such VMs.
    fn need(self) {
        let (capability, name) = match self {
            Self::DirtyRing(_) => (bindings::KVM_CAP_DIRTY_LOG_RING_ACQ_REL, "dirty ring"),
            Self::EagerSplit(_) => (bindings::KVM_CAP_ARM_SUPPORTED_BLOCK_SIZES, "block sizes"),
            Self::Mte => (bindings::KVM_CAP_ARM_MTE, "memory tagging"),
            Self::Sve => (bindings::KVM_CAP_ARM_SVE, "SVE"),
        };
        if system_capability(capability) == 0 {
            ktap::skip(format!("KVM has no {name} here"));
        }
    }
}

impl Vm {
    /// Skips the case where guests do not have all addresses up to `end`.
    pub fn need_addresses(end: Gpa) {
        let bits = system_capability(bindings::KVM_CAP_ARM_VM_IPA_SIZE);
        // libkvm's default.
        if end > Gpa(1 << bits.min(40)) {
            ktap::skip("guests have no addresses for so many pages of this size");
        }
    }

    /// Creates a VM with vCPUs that start at `entry`.
    ///
    /// `pages` is the number of host pages that slots are going to have; libkvm has to reserve
    /// memory for the guest's own page tables.
    #[track_caller]
    pub fn new(pages: usize, vcpus: usize, entry: Entry) -> (Self, Vec<Vcpu>) {
        Self::with(None, pages, vcpus, entry)
    }

    /// Creates a special VM as [`Vm::new`] does, or skips the case where KVM has none.
    #[track_caller]
    pub fn special(kind: Kind, pages: usize, vcpus: usize, entry: Entry) -> (Self, Vec<Vcpu>) {
        kind.need();
        Self::with(Some(kind), pages, vcpus, entry)
    }

    #[track_caller]
    fn with(kind: Option<Kind>, pages: usize, vcpus: usize, entry: Entry) -> (Self, Vec<Vcpu>) {
        let address = Gva(entry as usize as u64);
        assert!(address.is_in_guest_code(), "not in guest_code!");
        // What __vm_create() does, but for capabilities that want a VM without memory.
        let shape = bindings::vm_shape {
            // SAFETY: libkvm sets this before main().
            mode: unsafe { bindings::vm_mode_default } as u8,
            ..Default::default()
        };
        // SAFETY: libkvm checks what it is asked for.
        let raw = NonNull::new(unsafe { bindings::____vm_create(shape) });
        let raw = raw.expect("libkvm returned no VM");
        // SAFETY: The VM is valid, and `Self` uses it only where it is borrowed mutably.
        let mut vm = Self(Arc::new(unsafe { VmInner::new(raw) }));
        match kind {
            Some(Kind::DirtyRing(entries)) => {
                let size = entries * size_of::<bindings::kvm_dirty_gfn>();
                // SAFETY: The VM is valid.
                unsafe { bindings::vm_enable_dirty_ring(vm.raw(), size as u32) };
            }
            Some(Kind::EagerSplit(size)) => {
                vm.enable_capability(bindings::KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE, size.0)
                    .expect("no eager splitting with the size of a block");
            }
            Some(Kind::Mte) => {
                let enabled = vm.enable_capability(bindings::KVM_CAP_ARM_MTE, 0);
                enabled.expect("no memory tagging, though KVM says so");
            }
            Some(Kind::Sve) | None => {}
        }
        vm.load(pages, vcpus);
        let vcpus = vm.add_vcpus(vcpus, kind == Some(Kind::Sve), entry);
        (vm, vcpus)
    }

    /// Gives the VM libkvm's own slot, with the program in it and room for tables and stacks.
    fn load(&mut self, pages: usize, vcpus: usize) {
        // A guest page is at least 4K. A table has 512 of them at least, and there are sets of
        // tables for code, for slots, and for slots at other addresses.
        let guest_pages = pages * (page_size() / 4096);
        let memory = (2048 + 64 * vcpus + guest_pages / 128).next_multiple_of(1024) as u64;
        let raw = self.raw();
        // SAFETY: The pointers are valid, and the calls are those of __vm_create().
        unsafe {
            let source = bindings::vm_mem_backing_src_type_VM_MEM_SRC_ANONYMOUS;
            bindings::vm_userspace_mem_region_add(raw, source, 0, 0, memory, 0);
            bindings::kvm_vm_elf_load(raw, bindings::program_invocation_name);
            bindings::ucall_init(raw, memory * u64::from((*raw).page_size));
            bindings::kvm_arch_vm_post_create(raw, vcpus as u32);
            bindings::vm_init_descriptor_tables(raw);
        }
    }

    fn add_vcpus(&mut self, vcpus: usize, sve: bool, entry: Entry) -> Vec<Vcpu> {
        let raw = self.raw();
        let mut init = bindings::kvm_vcpu_init::default();
        // SAFETY: The VM is valid.
        unsafe { bindings::kvm_get_default_vcpu_target(raw, &mut init) };
        // As VMMs have it: PSCI as guests know it, not its version 0.1.
        init.features[0] |= 1 << bindings::KVM_ARM_VCPU_PSCI_0_2;
        if sve {
            init.features[0] |= 1 << bindings::KVM_ARM_VCPU_SVE;
        }
        // SAFETY: The VM has its slot, and the function is guest code.
        let add = |id| unsafe {
            let vcpu = bindings::aarch64_vcpu_add(raw, id as u32, &mut init, entry as *mut _);
            if sve {
                let mut feature = bindings::KVM_ARM_VCPU_SVE as i32;
                ARM_VCPU_FINALIZE
                    .call((*vcpu).fd, &mut feature)
                    .expect("cannot finalize SVE");
            }
            // With libkvm's vectors, but no handler of them, every exception of the guest reaches
            // the host.
            bindings::vcpu_init_descriptor_tables(vcpu);
            vcpu
        };
        let added: Vec<_> = (0..vcpus).map(add).collect();
        // SAFETY: The VM has all of its vCPUs.
        unsafe { bindings::kvm_arch_vm_finalize_vcpus(raw) };
        // SAFETY: Each is wrapped once.
        let wrap = |vcpu| unsafe { Vcpu::new(vcpu, Arc::clone(&self.0)) };
        added.into_iter().map(wrap).collect()
    }

    /// Creates a VM whose memory the host cannot access, or skips the case where there is none.
    #[track_caller]
    pub fn protected() -> Self {
        match VmInner::bare(bindings::LIBKVM_VM_TYPE_PROTECTED) {
            Ok(vm) => Self(Arc::new(vm)),
            Err(Errno::EINVAL) if !sys::is_protected_host() => {
                ktap::skip("no protected VMs (kvm-arm.mode=protected)")
            }
            Err(error) => panic!("cannot create a protected VM: {error:?}"),
        }
    }

    pub(crate) fn inner(&self) -> &Arc<VmInner> {
        &self.0
    }

    /// Returns libkvm's pointer, for the exclusive use of it.
    fn raw(&mut self) -> *mut bindings::kvm_vm {
        self.0.raw()
    }

    /// As [`Vm::raw`], for the guest's own tables, which libkvm accesses plainly: nobody may have
    /// their memory.
    #[track_caller]
    pub(crate) fn raw_for_tables(&mut self) -> *mut bindings::kvm_vm {
        assert!(!self.0.is_claimed(OWN_SLOT), "after Slot::of_tables()");
        self.raw()
    }

    /// Creates a guest_memfd of `pages` pages and maps those from `first` on, or skips the case
    /// where KVM has none that can be mapped.
    #[track_caller]
    pub fn guest_memfd(&self, pages: usize, first: usize) -> Area {
        let flags = bindings::LIBKVM_GUEST_MEMFD_FLAGS;
        let known = self.capability(bindings::KVM_CAP_GUEST_MEMFD_FLAGS) as u32;
        if known & flags != flags {
            ktap::skip("KVM has no guest_memfd that can be mapped");
        }
        let mut argument = bindings::kvm_create_guest_memfd {
            size: Bytes::of_pages(pages).0,
            flags: flags.into(),
            ..Default::default()
        };
        let fd = CREATE_GUEST_MEMFD
            .call(self.0.fd(), &mut argument)
            .expect("KVM_CREATE_GUEST_MEMFD failed");
        // SAFETY: The file descriptor is new and has no other owner.
        let file = unsafe { File::from_raw_fd(fd) };
        Area::of_file(
            Backing::GuestMemfd,
            file,
            Bytes::of_pages(first),
            pages - first,
        )
    }

    /// Maps `pages` host pages from a guest physical address on in the guest's own tables.
    #[track_caller]
    pub fn map(&mut self, gva: Gva, gpa: Gpa, pages: usize) {
        let raw = self.raw_for_tables();
        // SAFETY: The pointer is valid, and libkvm checks what it is asked for.
        unsafe {
            let guest_pages = Bytes::of_pages(pages).0 / u64::from((*raw).page_size);
            bindings::virt_map(raw, gva.0, gpa.0, guest_pages as u32);
        }
    }

    /// Returns the memory of [`OWN_SLOT`].
    #[track_caller]
    pub(crate) fn own_memory(&mut self) -> Area {
        let (raw, owner) = (self.raw(), Arc::clone(&self.0));
        // SAFETY: The VM has this slot, and its memory for as long as it is there itself.
        unsafe {
            let region = (*bindings::memslot2region(raw, OWN_SLOT)).region;
            let start = NonNull::new(region.userspace_addr as *mut u8).expect("no memory");
            Area::of_others(start, region.memory_size as usize, owner)
        }
    }

    /// Returns where the entry is by which the guest's own tables translate an address, in the
    /// table of a level that they have.
    #[track_caller]
    pub fn table_entry(&mut self, gva: Gva, level: i32) -> Gpa {
        let raw = self.raw_for_tables();
        // SAFETY: The pointer is valid.
        let levels = unsafe { (*raw).mmu.pgtable_levels };
        assert!((4 - levels..4).contains(&level), "no level {level}");
        // SAFETY: The pointer is valid. libkvm does not look whether an entry is valid, and goes on
        // with guest address 0 where none is: what it returns is in its own memory in any case.
        Gpa(unsafe {
            let entry = bindings::virt_get_pte_hva_at_level(raw, gva.0, level);
            bindings::addr_hva2gpa(raw, entry.cast())
        })
    }

    /// Returns whether the VM's vCPUs have EL2, where they start then.
    pub fn has_el2(&mut self) -> bool {
        // SAFETY: The pointer is valid.
        unsafe { bindings::vm_supports_el2(self.raw()) }
    }

    /// Returns what this VM says about a capability.
    pub fn capability(&self, capability: u32) -> i32 {
        self.0.capability(capability)
    }

    /// Enables a capability, with its first argument.
    pub fn enable_capability(&self, capability: u32, first: u64) -> Result<(), Errno> {
        let mut argument = bindings::kvm_enable_cap {
            cap: capability,
            args: [first, 0, 0, 0],
            ..Default::default()
        };
        ENABLE_CAP.call(self.0.fd(), &mut argument).map(|_| ())
    }
}
