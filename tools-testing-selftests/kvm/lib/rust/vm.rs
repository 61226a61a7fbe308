// SPDX-License-Identifier: GPL-2.0-only

//! Virtual machines and their vCPUs.

use crate::{
    bindings,
    errno::Errno,
    guest::Entry,
    ktap,
    slot::{
        Backing,
        Slot, //
    },
    smccc,
    Mapping,
    Region,
    Region1,
    Stage2, //
};
use std::{
    ffi::CStr,
    fs::File,
    ops::Range,
    os::fd::{
        AsRawFd,
        FromRawFd, //
    },
    ptr::{
        self,
        NonNull, //
    },
    sync::Arc, //
};

/// Returns the size of the host's pages, in bytes.
pub fn host_page_size() -> usize {
    // SAFETY: Always safe to call.
    (unsafe { bindings::getpagesize() }) as usize
}

/// Has the kernel take tagged pointers from this thread, where it knows how to.
pub fn allow_tagged_pointers() -> Result<(), Errno> {
    let (control, enable) = (
        bindings::PR_SET_TAGGED_ADDR_CTRL as i32,
        bindings::PR_TAGGED_ADDR_ENABLE as u64,
    );
    // SAFETY: The call takes numbers only.
    Errno::check(unsafe { bindings::prctl(control, enable, 0_u64, 0_u64, 0_u64) }).map(|_| ())
}

/// Returns what the system says about a capability.
pub fn system_capability(capability: u32) -> u32 {
    // SAFETY: Always safe to call.
    unsafe { bindings::kvm_check_cap(capability.into()) }
}

/// Leaves the interrupt controller out of VMs that are created from now on.
pub fn without_interrupt_controller() {
    // SAFETY: This sets what libkvm reads when it creates a VM.
    unsafe { bindings::test_disable_default_vgic() }
}

/// Calls an ioctl that reads `argument`, which has to be what the request wants, and returns what
/// it returned.
fn ioctl<T>(fd: i32, request: u32, argument: &T) -> Result<i32, Errno> {
    // SAFETY: The argument is of the type that the request wants, and KVM only reads it.
    Errno::check(unsafe { bindings::ioctl(fd, request.into(), ptr::from_ref(argument)) })
}

/// Sets an attribute of a VM or a vCPU, of which `value` has to be what the attribute wants.
fn set_attribute<T>(fd: i32, group: u32, attr: u32, value: &T) -> Result<(), Errno> {
    let attribute = bindings::kvm_device_attr {
        group,
        attr: attr.into(),
        addr: ptr::from_ref(value) as u64,
        ..Default::default()
    };
    ioctl(fd, bindings::LIBKVM_SET_DEVICE_ATTR, &attribute).map(|_| ())
}

/// A VM of libkvm, freed with its last user.
pub(crate) struct VmInner(NonNull<bindings::kvm_vm>);

// SAFETY: libkvm has no state of its own for each thread.
unsafe impl Send for VmInner {}
// SAFETY: What is shared is used for system calls, and for reading what does not change once the
// slots are there: `Vm`, which adds them, cannot be shared while it does.
unsafe impl Sync for VmInner {}

impl VmInner {
    /// Returns libkvm's pointer.
    pub(crate) fn raw(&self) -> *mut bindings::kvm_vm {
        self.0.as_ptr()
    }

    /// Returns the file descriptor.
    fn fd(&self) -> i32 {
        // SAFETY: The pointer is valid until `self` is dropped.
        unsafe { (*self.raw()).fd }
    }

    /// Calls KVM_SET_USER_MEMORY_REGION2.
    pub(crate) fn set_region(&self, region: &Region) -> Result<(), Errno> {
        self.ioctl(bindings::LIBKVM_SET_USER_MEMORY_REGION2, region)
            .map(|_| ())
    }

    /// Calls an ioctl of the VM that reads `argument`, and returns what it returned.
    pub(crate) fn ioctl<T>(&self, request: u32, argument: &T) -> Result<i32, Errno> {
        ioctl(self.fd(), request, argument)
    }

    /// Reads the stage 2 tables, where debugfs shows them: that takes
    /// `CONFIG_PTDUMP_STAGE2_DEBUGFS` and a host that is not protected.
    pub(crate) fn stage2(&self) -> Option<Stage2> {
        Stage2::read(self.fd())
    }

    /// Reads the shadow stage 2 tables, or skips the case where debugfs does not show them.
    fn shadow_stage2(&self) -> Stage2 {
        Stage2::read_shadow(self.fd()).unwrap_or_else(|| {
            ktap::skip("no shadow stage 2 in debugfs (CONFIG_PTDUMP_STAGE2_DEBUGFS)")
        })
    }
}

impl Drop for VmInner {
    fn drop(&mut self) {
        // SAFETY: The pointer is valid, and this is its last user.
        unsafe { bindings::kvm_vm_free(self.raw()) }
    }
}

/// A virtual machine.
pub struct Vm(Arc<VmInner>);

impl Vm {
    /// Creates a VM with vCPUs that start at `entry`.
    ///
    /// `pages` is the number of host pages that slots are going to have; libkvm has to reserve
    /// memory for the guest's own page tables.
    pub fn new(vcpus: usize, pages: usize, entry: Entry) -> (Self, Vec<Vcpu>) {
        let vm = Self::without_vcpus(vcpus, pages);
        let vcpus = vm.add_vcpus(vcpus, entry);
        (vm, vcpus)
    }

    /// Creates a VM as [`Vm::new`] does, of which `enable` makes something special before there are
    /// vCPUs.
    fn with(
        vcpus: usize,
        pages: usize,
        entry: Entry,
        enable: impl FnOnce(&Self) -> Result<(), Errno>,
    ) -> Result<(Self, Vec<Vcpu>), Errno> {
        let vm = Self::without_vcpus(vcpus, pages);
        enable(&vm)?;
        let vcpus = vm.add_vcpus(vcpus, entry);
        Ok((vm, vcpus))
    }

    /// Creates a VM as [`Vm::new`] does, whose vCPUs have dirty rings, or returns why that is not
    /// possible here.
    pub fn with_dirty_ring(
        vcpus: usize,
        pages: usize,
        entry: Entry,
        entries: usize,
    ) -> Result<(Self, Vec<Vcpu>), Errno> {
        Self::with(vcpus, pages, entry, |vm| vm.enable_dirty_ring(entries))
    }

    /// Creates a VM as [`Vm::new`] does, whose memory has tags, or returns why that is not
    /// possible here.
    pub fn with_mte(vcpus: usize, pages: usize, entry: Entry) -> Result<(Self, Vec<Vcpu>), Errno> {
        Self::with(vcpus, pages, entry, |vm| {
            vm.enable_capability(bindings::KVM_CAP_ARM_MTE, 0)
        })
    }

    /// Returns libkvm's description of an ordinary VM.
    fn shape() -> bindings::vm_shape {
        bindings::vm_shape {
            // SAFETY: libkvm sets this before main().
            mode: unsafe { bindings::vm_mode_default } as u8,
            ..Default::default()
        }
    }

    fn wrap(vm: *mut bindings::kvm_vm) -> Self {
        let vm = NonNull::new(vm).expect("libkvm returned no VM");
        Self(Arc::new(VmInner(vm)))
    }

    fn without_vcpus(vcpus: usize, pages: usize) -> Self {
        // For these libkvm reserves memory for tables; a guest page is at least 4K.
        let pages = pages * (host_page_size() / 4096);
        // SAFETY: libkvm checks what it is asked for.
        let vm = unsafe { bindings::__vm_create(Self::shape(), vcpus as u32, pages as u64) };
        Self::wrap(vm)
    }

    /// Creates a VM with one vCPU, for which KVM splits blocks of `size` bytes in advance when a
    /// log starts, or returns why that is not possible here.
    pub fn with_eager_splitting(
        pages: usize,
        entry: Entry,
        size: usize,
    ) -> Result<(Self, Vec<Vcpu>), Errno> {
        // What __vm_create() does, but for the capability, which wants a VM without memory.
        let tables = pages * (host_page_size() / 4096) / 512 + 512;
        let anonymous = Backing::Anonymous.source();
        // SAFETY: libkvm checks what it is asked for.
        let vm = Self::wrap(unsafe { bindings::____vm_create(Self::shape()) });
        vm.enable_capability(bindings::KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE, size as u64)?;
        let memory = (tables + 1024).next_multiple_of(1024) as u64;
        // SAFETY: The pointers are valid, and the calls are those of __vm_create().
        unsafe {
            let raw = vm.raw();
            bindings::vm_userspace_mem_region_add(raw, anonymous, 0, 0, memory, 0);
            bindings::kvm_vm_elf_load(raw, bindings::program_invocation_name);
            bindings::ucall_init(raw, memory * u64::from((*raw).page_size));
            bindings::kvm_arch_vm_post_create(raw, 1);
        }
        let vcpus = vm.add_vcpus(1, entry);
        Ok((vm, vcpus))
    }

    fn add_vcpus(&self, vcpus: usize, entry: Entry) -> Vec<Vcpu> {
        // SAFETY: The VM is valid and has no vectors yet.
        unsafe { bindings::vm_init_descriptor_tables(self.raw()) };
        let mut init = bindings::kvm_vcpu_init::default();
        // SAFETY: The VM is valid.
        unsafe { bindings::kvm_get_default_vcpu_target(self.raw(), &mut init) };
        // As VMMs have it: PSCI as guests know it, not its version 0.1.
        init.features[0] |= 1 << bindings::KVM_ARM_VCPU_PSCI_0_2;
        let add = |id| {
            // SAFETY: The VM is valid, and `entry` is guest code.
            let raw = unsafe {
                bindings::aarch64_vcpu_add(self.raw(), id as u32, &mut init, entry as *mut _)
            };
            // SAFETY: The vCPU is valid. With libkvm's vectors, but no handler of them, every
            // exception of the guest reaches the host.
            unsafe { bindings::vcpu_init_descriptor_tables(raw) };
            Vcpu {
                raw: NonNull::new(raw).expect("libkvm returned no vCPU"),
                _vm: Arc::clone(&self.0),
            }
        };
        let vcpus = (0..vcpus).map(add).collect();
        // SAFETY: The VM is valid and has all of its vCPUs.
        unsafe { bindings::kvm_arch_vm_finalize_vcpus(self.raw()) };
        vcpus
    }

    /// Returns libkvm's pointer.
    pub(crate) fn raw(&self) -> *mut bindings::kvm_vm {
        self.0.raw()
    }

    /// Adds a slot of `pages` host pages at a guest physical address, and maps it there in the
    /// guest's own tables.
    pub fn add_slot(&mut self, backing: Backing, id: u32, gpa: u64, pages: usize) -> Slot {
        let vm = self.raw();
        let (flags, file) = match backing {
            Backing::GuestMemfd => (bindings::KVM_MEM_GUEST_MEMFD, Some(self.guest_memfd(pages))),
            _ => (0, None),
        };
        let fd = file.as_ref().map_or(-1, File::as_raw_fd);
        let (source, size) = (backing.source(), self.guest_pages(pages) as u64);
        // SAFETY: The pointer is valid, and libkvm checks what it is asked for.
        unsafe { bindings::vm_mem_add(vm, source, gpa, id, size, flags, fd, 0) };
        self.map(gpa, gpa, pages);
        Slot::new(Arc::clone(&self.0), id, gpa, pages, file)
    }

    /// Creates a guest_memfd that can be mapped, or skips the case where there is none.
    fn guest_memfd(&self, pages: usize) -> File {
        let argument = bindings::kvm_create_guest_memfd {
            size: (pages * host_page_size()) as u64,
            flags: bindings::LIBKVM_GUEST_MEMFD_FLAGS.into(),
            ..Default::default()
        };
        match self.0.ioctl(bindings::LIBKVM_CREATE_GUEST_MEMFD, &argument) {
            // SAFETY: The file descriptor is new and has no other owner.
            Ok(fd) => unsafe { File::from_raw_fd(fd) },
            Err(error) => ktap::skip(format!("no guest_memfd that can be mapped: {error:?}")),
        }
    }

    /// Maps `pages` host pages from a guest physical address on in the guest's own tables.
    pub fn map(&mut self, gva: u64, gpa: u64, pages: usize) {
        let size = self.guest_pages(pages) as u32;
        // SAFETY: The pointer is valid, and libkvm checks what it is asked for.
        unsafe { bindings::virt_map(self.raw(), gva, gpa, size) };
    }

    /// Returns how many of the guest's own pages a number of host pages is.
    fn guest_pages(&self, pages: usize) -> usize {
        // SAFETY: The pointer is valid.
        let guest_page_size = unsafe { (*self.raw()).page_size } as usize;
        pages * host_page_size() / guest_page_size
    }

    /// Maps a host page in the guest's own tables, as [`Vm::map`] does, and takes the memory of
    /// the tables that are missing for that from a slot.
    pub fn map_with_tables_in(&mut self, slot: &Slot, gva: u64, gpa: u64) {
        let pt = bindings::kvm_mem_region_type_MEM_REGION_PT as usize;
        // SAFETY: The pointer is valid, and nothing else uses the VM meanwhile.
        let before =
            unsafe { ptr::replace(&raw mut (*self.raw()).memslots[pt], slot.region().slot) };
        self.map(gva, gpa, 1);
        // SAFETY: As above.
        unsafe { (*self.raw()).memslots[pt] = before };
    }

    /// Returns whether the VM's vCPUs have EL2, where they start then.
    pub fn has_el2(&self) -> bool {
        // SAFETY: The pointer is valid.
        unsafe { bindings::vm_supports_el2(self.raw()) }
    }

    /// Returns what KVM maps of a range of addresses of the guest's own guests, or skips the case
    /// where nothing shows it.
    pub fn shadow_mappings(&self, range: Range<u64>) -> Vec<Mapping> {
        self.0.shadow_stage2().within(range)
    }

    /// Returns what this VM says about a capability.
    pub fn capability(&self, capability: u32) -> i32 {
        // SAFETY: The file descriptor is open; the request has no pointer.
        unsafe {
            bindings::ioctl(
                self.0.fd(),
                bindings::LIBKVM_CHECK_EXTENSION.into(),
                u64::from(capability),
            )
        }
    }

    /// Enables a capability, with its first argument.
    pub fn enable_capability(&self, capability: u32, first: u64) -> Result<(), Errno> {
        let argument = bindings::kvm_enable_cap {
            cap: capability,
            args: [first, 0, 0, 0],
            ..Default::default()
        };
        self.0
            .ioctl(bindings::LIBKVM_ENABLE_CAP, &argument)
            .map(|_| ())
    }

    /// Sets what becomes of the guest's calls of some functions of firmware.
    pub fn set_smccc_filter(&self, filter: &smccc::Filter) -> Result<(), Errno> {
        set_attribute(
            self.0.fd(),
            bindings::KVM_ARM_VM_SMCCC_CTRL,
            bindings::KVM_ARM_VM_SMCCC_FILTER,
            filter,
        )
    }

    /// Calls KVM_SET_USER_MEMORY_REGION2.
    pub fn set_region(&self, region: &Region) -> Result<(), Errno> {
        self.0.set_region(region)
    }

    /// Deletes a slot, and creates it as `region` describes it.
    pub fn recreate(&self, slot: &Slot, region: Region) -> Result<(), Errno> {
        let deleted = Region {
            memory_size: 0,
            ..region
        };
        self.set_region(&deleted)?;
        slot.set_region(&region)
    }

    /// Calls KVM_SET_USER_MEMORY_REGION, the first version of the call.
    pub fn set_region1(&self, region: &Region1) -> Result<(), Errno> {
        self.0
            .ioctl(bindings::LIBKVM_SET_USER_MEMORY_REGION, region)
            .map(|_| ())
    }
}

/// A VM of which libkvm does not know: there is nothing in it but slots.
pub struct BareVm(File);

impl BareVm {
    /// Creates a VM whose memory the host cannot access, or returns why that is not possible here.
    pub fn protected() -> Result<Self, Errno> {
        Self::of_type(bindings::LIBKVM_VM_TYPE_PROTECTED)
    }

    /// Creates a VM whose guest addresses have so many bits, or returns why that is not possible
    /// here.
    pub fn with_addresses(bits: u32) -> Result<Self, Errno> {
        // KVM_VM_TYPE_ARM_IPA_SIZE().
        Self::of_type(bits)
    }

    fn of_type(kind: u32) -> Result<Self, Errno> {
        let kvm = File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .map_err(|_| Errno::last())?;
        let (fd, request) = (kvm.as_raw_fd(), bindings::LIBKVM_CREATE_VM.into());
        // SAFETY: The request takes a number.
        let fd = unsafe { bindings::ioctl(fd, request, u64::from(kind)) };
        // SAFETY: The file descriptor is new and has no other owner.
        Errno::check(fd).map(|fd| Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Calls KVM_SET_USER_MEMORY_REGION2.
    pub fn set_region(&self, region: &Region) -> Result<(), Errno> {
        let request = bindings::LIBKVM_SET_USER_MEMORY_REGION2;
        ioctl(self.0.as_raw_fd(), request, region).map(|_| ())
    }
}

/// Why a vCPU stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It touched a marked page.
    Userfault {
        /// The guest address of the page.
        gpa: u64,
        /// The size of the page in bytes.
        size: u64,
    },
    /// It touched memory that KVM could not provide, for another reason.
    MemoryFault {
        /// What KVM says about the access.
        flags: u64,
        /// The guest address.
        gpa: u64,
        /// The number of bytes.
        size: u64,
    },
    /// KVM_RUN failed without saying where.
    Error {
        /// The error of the call.
        errno: Errno,
        /// The exit reason that came with it.
        reason: u32,
    },
    /// The guest called [`guest::sync`](crate::guest::sync).
    Sync(u64, u64),
    /// The guest called [`guest::done`](crate::guest::done).
    Done,
    /// The guest took an exception.
    Exception {
        /// The number of the vector: 0 to 3 for the current EL with SP_EL0, 4 to 7 for the current
        /// EL, 8 to 11 for a lower one.
        vector: u64,
        /// The exception class, or 0 where the exception has none.
        class: u64,
    },
    /// It made a call that a [filter](crate::smccc) forwards.
    Hypercall {
        /// The function that was called.
        function: u64,
        /// What KVM says about the call.
        flags: u64,
    },
    /// Any other exit, by its reason.
    Other(u32),
}

/// A virtual CPU.
pub struct Vcpu {
    raw: NonNull<bindings::kvm_vcpu>,
    _vm: Arc<VmInner>,
}

// SAFETY: A vCPU may be run by any thread, and whoever runs it has it exclusively.
unsafe impl Send for Vcpu {}

impl Vcpu {
    /// Sets the arguments of the guest's entry point.
    pub fn set_args(&mut self, [first, second, third]: [u64; 3]) {
        // SAFETY: The pointer is valid, and the number of arguments is right.
        unsafe { bindings::vcpu_args_set(self.raw.as_ptr(), 3, first, second, third) }
    }

    /// Returns libkvm's pointer.
    pub(crate) fn raw(&self) -> *mut bindings::kvm_vcpu {
        self.raw.as_ptr()
    }

    /// Lets KVM report to the guest, at a guest address, how much time was stolen from the vCPU,
    /// or returns why that is not possible here.
    pub fn set_steal_time(&mut self, gpa: u64) -> Result<(), Errno> {
        // SAFETY: The vCPU is valid.
        let fd = unsafe { (*self.raw()).fd };
        set_attribute(
            fd,
            bindings::KVM_ARM_VCPU_PVTIME_CTRL,
            bindings::KVM_ARM_VCPU_PVTIME_IPA,
            &gpa,
        )
    }

    /// Returns a statistic of the vCPU.
    pub fn stat(&self, name: &CStr) -> u64 {
        let mut value = 0;
        // SAFETY: The vCPU is valid, and there is room for one element.
        unsafe { bindings::kvm_get_stat(&mut (*self.raw()).stats, name.as_ptr(), &mut value, 1) };
        value
    }

    /// Runs the vCPU until it stops for a reason other than a signal.
    pub fn run(&mut self) -> Exit {
        let result = self.enter();
        self.exit(result)
    }

    /// Calls KVM_RUN until it returns for a reason other than a signal, and leaves it at that, for
    /// those who measure it.
    #[inline]
    pub fn enter(&mut self) -> Result<(), Errno> {
        loop {
            // Not libkvm's function, which ends the program when the guest takes an exception.
            //
            // SAFETY: The vCPU is valid; the request wants no argument but zero.
            let ret =
                unsafe { bindings::ioctl((*self.raw()).fd, bindings::LIBKVM_RUN.into(), 0u64) };
            match Errno::check(ret) {
                Err(Errno::EINTR) => {}
                result => return result.map(|_| ()),
            }
        }
    }

    /// Returns why [`Vcpu::enter`] has returned with this result.
    fn exit(&self, result: Result<(), Errno>) -> Exit {
        let vcpu = self.raw();
        // SAFETY: The pointers are valid, and KVM writes there only while the vCPU runs.
        let run = unsafe { &*(*vcpu).run };

        if let Err(errno) = result {
            if errno != Errno::EFAULT || run.exit_reason != bindings::KVM_EXIT_MEMORY_FAULT {
                return Exit::Error {
                    errno,
                    reason: run.exit_reason,
                };
            }
            // SAFETY: This member is the one for the exit reason.
            let fault = unsafe { run.__bindgen_anon_1.memory_fault };
            let (flags, gpa, size) = (fault.flags, fault.gpa, fault.size);
            return if flags == u64::from(bindings::KVM_MEMORY_EXIT_FLAG_USERFAULT) {
                Exit::Userfault { gpa, size }
            } else {
                Exit::MemoryFault { flags, gpa, size }
            };
        }

        if run.exit_reason == bindings::KVM_EXIT_HYPERCALL {
            // SAFETY: This member is the one for the exit reason.
            let call = unsafe { run.__bindgen_anon_1.hypercall };
            return Exit::Hypercall {
                function: call.nr,
                // SAFETY: Every member of the union is a number.
                flags: unsafe { call.__bindgen_anon_1.flags },
            };
        }

        let mut call = bindings::ucall::default();
        // SAFETY: Both pointers are valid.
        match unsafe { bindings::get_ucall(vcpu, &mut call) } as u32 {
            bindings::UCALL_SYNC => Exit::Sync(call.args[0], call.args[1]),
            bindings::UCALL_DONE => Exit::Done,
            bindings::UCALL_UNHANDLED => Exit::Exception {
                vector: call.args[0],
                class: call.args[1],
            },
            _ => Exit::Other(run.exit_reason),
        }
    }
}
