// SPDX-License-Identifier: GPL-2.0-only

//! Memory slots, and the flag of userfault.

use crate::*;
use std::{
    marker::PhantomData,
    ops::Range,
    os::fd::AsRawFd,
    sync::{
        atomic::Ordering,
        Arc,
        Mutex,
        MutexGuard, //
    },
};

const USERFAULT: u32 = bindings::KVM_MEM_USERFAULT;

// SAFETY: This takes what api.rst has for it. The address of memory is that of an area that the VM
// keeps.
const SET_USER_MEMORY_REGION: Ioctl<bindings::kvm_userspace_memory_region> =
    unsafe { Ioctl::new(bindings::LIBKVM_SET_USER_MEMORY_REGION) };
// SAFETY: As above, and KVM does no more than read the bitmap.
const SET_USER_MEMORY_REGION2: Ioctl<bindings::kvm_userspace_memory_region2> =
    unsafe { Ioctl::new(bindings::LIBKVM_SET_USER_MEMORY_REGION2) };

/// A memory slot of a VM.
#[derive(Clone)]
pub struct Slot(Arc<SlotInner>);

struct SlotInner {
    vm: Arc<VmInner>,
    id: u32,
    area: Area,
    /// What KVM has been told last.
    state: Mutex<State>,
    /// Held while KVM is told something, or does something whose size is that of the slot.
    ///
    /// The state is not locked meanwhile: memory is accessed at any moment of a change.
    changing: Mutex<()>,
}

#[derive(Clone, Copy)]
struct State {
    region: bindings::kvm_userspace_memory_region2,
    exists: bool,
}

/// What KVM is to be told about a slot: what it has been told last, with changes.
///
/// The memory is always the slot's own, or a part of it.
#[derive(Clone)]
#[must_use]
pub struct Region {
    slot: Slot,
    raw: bindings::kvm_userspace_memory_region2,
    bitmap: Option<Bitmap>,
}

impl Region {
    /// The size of the structure that KVM is given.
    pub const SIZE: usize = size_of::<bindings::kvm_userspace_memory_region2>();

    /// Where the address of the bitmap is in there.
    pub const OFFSET_OF_USERFAULT_BITMAP: usize =
        std::mem::offset_of!(bindings::kvm_userspace_memory_region2, userfault_bitmap);

    /// Sets all flags, but that for guest_memfd.
    pub fn flags(mut self, flags: u32) -> Self {
        self.raw.flags = flags | (self.raw.flags & bindings::KVM_MEM_GUEST_MEMFD);
        self
    }

    /// Sets a flag that is not, or the other way round.
    pub fn toggled(mut self, flag: u32) -> Self {
        self.raw.flags ^= flag;
        self
    }

    /// Sets the bitmap.
    pub fn bitmap(self, bitmap: &Bitmap) -> Self {
        let mut region = self.bitmap_at(bitmap.address());
        region.bitmap = Some(bitmap.clone());
        region
    }

    /// Sets where the bitmap is, be there one or not: KVM does no more than read there.
    pub fn bitmap_at(mut self, address: Hva) -> Self {
        self.raw.userfault_bitmap = address.0;
        self.bitmap = None;
        self
    }

    /// Moves the slot.
    pub fn at(mut self, gpa: Gpa) -> Self {
        self.raw.guest_phys_addr = gpa.0;
        self
    }

    /// Takes a part of the slot's pages, each of which stays where it is.
    #[track_caller]
    pub fn part(mut self, pages: Range<usize>) -> Self {
        let end = Bytes::of_pages(pages.end).0;
        assert!(!pages.is_empty() && end <= self.raw.memory_size);
        let start = Bytes::of_pages(pages.start).0;
        self.raw.guest_phys_addr += start;
        self.raw.userspace_addr += start;
        self.raw.guest_memfd_offset += start;
        self.raw.memory_size = Bytes::of_pages(pages.len()).0;
        self
    }

    /// Sets another place in the guest_memfd.
    pub fn guest_memfd_offset(mut self, offset: Bytes) -> Self {
        self.raw.guest_memfd_offset = offset.0;
        self
    }

    /// Names the file of other memory, or none.
    pub fn guest_memfd(mut self, area: Option<&Area>) -> Self {
        let file = area.map(|area| area.file());
        let file = file.as_ref().and_then(|file| file.as_ref());
        self.raw.guest_memfd = file.map_or(u32::MAX, |file| file.as_raw_fd() as u32);
        self
    }

    /// Calls KVM_SET_USER_MEMORY_REGION2.
    ///
    /// What KVM takes is what the slot is from then on.
    ///
    /// The flag of userfault is set by [`Slot::enable`], which minds the bitmap.
    #[track_caller]
    pub fn set(self) -> Result<(), Errno> {
        assert_eq!(self.raw.flags & USERFAULT, 0, "see Slot::enable()");
        self.set_unguarded()
    }

    /// As [`Region::set`], with the flag of userfault or without it.
    ///
    /// Nobody clears the flag, and nobody minds whether the bitmap is still in use: KVM does no
    /// more than read there, and the VM keeps the area.
    #[track_caller]
    pub fn set_unguarded(self) -> Result<(), Errno> {
        let _changing = self.slot.changing();
        self.tell()
    }

    /// Tells KVM, by whoever has the slot stay as it is.
    #[track_caller]
    fn tell(&self) -> Result<(), Errno> {
        if let Some(bitmap) = &self.bitmap {
            let needed = self.raw.memory_size as usize / page_size();
            assert!(bitmap.pages() >= needed, "the bitmap is too short");
            self.slot.vm().keep(bitmap.area());
        }
        let mut raw = self.raw;
        SET_USER_MEMORY_REGION2.call(self.slot.vm().fd(), &mut raw)?;
        let exists = self.raw.memory_size != 0;
        let mut state = self.slot.lock();
        // What is deleted can be created again as it was.
        let region = if exists { self.raw } else { state.region };
        *state = State { region, exists };
        Ok(())
    }

    /// Calls KVM_SET_USER_MEMORY_REGION, the first version of the call.
    pub fn set1(self) -> Result<(), Errno> {
        let _changing = self.slot.changing();
        let mut raw = bindings::kvm_userspace_memory_region {
            slot: self.raw.slot,
            flags: self.raw.flags,
            guest_phys_addr: self.raw.guest_phys_addr,
            memory_size: self.raw.memory_size,
            userspace_addr: self.raw.userspace_addr,
        };
        SET_USER_MEMORY_REGION.call(self.slot.vm().fd(), &mut raw)?;
        let (region, exists) = (self.raw, true);
        *self.slot.lock() = State { region, exists };
        Ok(())
    }

    /// Deletes the slot.
    #[track_caller]
    pub fn delete(mut self) -> Result<(), Errno> {
        self.raw.memory_size = 0;
        self.set_unguarded()
    }
}

/// A slot that has the flag, which it loses when this is dropped.
///
/// Until then the bitmap has to be there; whoever forgets this instead has the flag stay, and the
/// VM keeps the bitmap's memory.
#[must_use = "the flag is cleared when this is dropped"]
pub struct Userfault<'b> {
    slot: Slot,
    is_set: bool,
    bitmap: PhantomData<&'b Bitmap>,
}

impl Userfault<'_> {
    /// Clears the flag.
    #[track_caller]
    pub fn disable(mut self) {
        self.clear();
        self.is_set = false;
    }

    /// Clears the flag if it is set.
    #[track_caller]
    fn clear(&self) {
        let _changing = self.slot.changing();
        let State { region, exists } = self.slot.state();
        if exists && region.flags & USERFAULT != 0 {
            let disabled = self.slot.region().toggled(USERFAULT).tell();
            assert_eq!(disabled, Ok(()), "clearing the flag");
        }
    }

    /// Clears the flag, and sets others instead of those that the slot has, in one call.
    #[track_caller]
    pub fn disable_with(self, flags: u32) {
        let _changing = self.slot.changing();
        let disabled = self.slot.region().flags(flags & !USERFAULT).tell();
        assert_eq!(disabled, Ok(()), "clearing the flag");
    }
}

impl Drop for Userfault<'_> {
    fn drop(&mut self) {
        if self.is_set {
            self.clear();
        }
    }
}

impl Slot {
    /// Adds a slot of new memory to a VM, and maps it in the guest's own tables, at its address.
    #[track_caller]
    pub fn new(vm: &mut Vm, backing: Backing, id: u32, gpa: Gpa, pages: usize) -> Self {
        let area = match backing {
            Backing::GuestMemfd => vm.guest_memfd(pages, 0),
            _ => Area::new(backing, pages),
        };
        Self::of_area(vm, &area, id, gpa)
    }

    /// As [`Slot::new`], of memory that is there.
    #[track_caller]
    pub fn of_area(vm: &mut Vm, area: &Area, id: u32, gpa: Gpa) -> Self {
        vm.map(Gva(gpa.0), gpa, area.pages());
        let slot = Self::undeclared(vm, area, id, gpa);
        assert_eq!(slot.region().set(), Ok(()), "creating a slot");
        slot
    }

    /// Describes a slot that KVM has not been told of, and the guest's tables do not have.
    #[track_caller]
    pub fn undeclared(vm: &Vm, area: &Area, id: u32, gpa: Gpa) -> Self {
        assert_ne!(id, OWN_SLOT, "libkvm has this slot");
        Self::describe(vm, area, id, gpa)
    }

    #[track_caller]
    fn describe(vm: &Vm, area: &Area, id: u32, gpa: Gpa) -> Self {
        vm.inner().claim(id);
        vm.inner().keep(area);
        let mut region = bindings::kvm_userspace_memory_region2 {
            slot: id,
            guest_phys_addr: gpa.0,
            memory_size: area.len() as u64,
            userspace_addr: area.at(0).0,
            ..Default::default()
        };
        if area.backing() == Backing::GuestMemfd {
            let file = area.file();
            let file = file.as_ref().expect("the file is closed");
            region.flags = bindings::KVM_MEM_GUEST_MEMFD;
            region.guest_memfd = file.as_raw_fd() as u32;
            region.guest_memfd_offset = area.file_start().0;
        }
        let exists = false;
        Self(Arc::new(SlotInner {
            vm: Arc::clone(vm.inner()),
            id,
            area: area.clone(),
            state: Mutex::new(State { region, exists }),
            changing: Mutex::default(),
        }))
    }

    /// Returns libkvm's own slot, which has the guest's code, its stacks and its page tables, where
    /// nothing can be mapped from then on.
    #[track_caller]
    pub fn of_tables(vm: &mut Vm) -> Self {
        let area = vm.own_memory();
        let slot = Self::describe(vm, &area, OWN_SLOT, Gpa(0));
        slot.lock().exists = true;
        slot
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("another thread has failed")
    }

    /// Waits until nobody changes the slot, and has it stay as it is.
    pub(crate) fn changing(&self) -> MutexGuard<'_, ()> {
        self.0.changing.lock().expect("another thread has failed")
    }

    fn state(&self) -> State {
        *self.lock()
    }

    /// Returns the VM.
    pub(crate) fn vm(&self) -> &VmInner {
        &self.0.vm
    }

    /// Returns the slot's number.
    pub fn id(&self) -> u32 {
        self.0.id
    }

    /// Returns what KVM knows of the slot.
    pub fn region(&self) -> Region {
        Region {
            slot: self.clone(),
            raw: self.state().region,
            bitmap: None,
        }
    }

    /// Returns the number of pages.
    pub fn pages(&self) -> usize {
        self.state().region.memory_size as usize / page_size()
    }

    /// Returns the guest address of a page.
    pub fn gpa(&self, page: Page) -> Gpa {
        Gpa(self.state().region.guest_phys_addr) + page.offset()
    }

    /// Returns which page a guest address is in.
    pub fn page_of(&self, gpa: Gpa) -> Page {
        Page((gpa - self.gpa(Page(0))).0 as usize / page_size())
    }

    /// Sets the flag, with a bitmap.
    #[track_caller]
    pub fn enable<'b>(&self, bitmap: &'b Bitmap) -> Userfault<'b> {
        self.enable_with(bitmap, None)
    }

    /// Sets the flag, and others instead of those that the slot has, if any are given, in one call.
    #[track_caller]
    pub fn enable_with<'b>(
        &self,
        bitmap: &'b Bitmap,
        flags: impl Into<Option<u32>>,
    ) -> Userfault<'b> {
        let _changing = self.changing();
        let region = self.region();
        let flags = flags.into().unwrap_or(region.raw.flags);
        let enabled = region.flags(flags | USERFAULT).bitmap(bitmap).tell();
        assert_eq!(enabled, Ok(()), "setting the flag");
        Userfault {
            slot: self.clone(),
            is_set: true,
            bitmap: PhantomData,
        }
    }

    /// Deletes the slot and creates it with the flag, so that nothing of it is mapped.
    #[track_caller]
    pub fn recreate<'b>(&self, bitmap: &'b Bitmap) -> Userfault<'b> {
        assert_eq!(self.region().delete(), Ok(()), "deleting the slot");
        self.enable(bitmap)
    }

    /// Sets all flags but that of userfault, which stays as it is, with its bitmap.
    #[track_caller]
    pub fn set_flags(&self, flags: u32) {
        let _changing = self.changing();
        let userfault = self.state().region.flags & USERFAULT;
        let flags = flags & !USERFAULT | userfault;
        let set = self.region().flags(flags).tell();
        assert_eq!(set, Ok(()), "setting flags {flags:#x}");
    }

    /// Returns the memory.
    pub fn area(&self) -> &Area {
        &self.0.area
    }

    /// Returns the page of the memory that a page is.
    #[track_caller]
    pub(crate) fn inside(&self, page: Page) -> Page {
        let region = self.state().region;
        assert!(
            page.offset().0 < region.memory_size,
            "{page:?} is outside the slot"
        );
        let start = region.userspace_addr - self.area().at(0).0;
        Page(page.0 + start as usize / page_size())
    }

    /// Reads a word of a page.
    #[track_caller]
    pub fn read(&self, page: Page, index: usize) -> u64 {
        let word = self.area().word(self.inside(page), index);
        word.load(Ordering::Relaxed)
    }

    /// Writes a word of a page.
    #[track_caller]
    pub fn write(&self, page: Page, index: usize, value: u64) {
        let word = self.area().word(self.inside(page), index);
        word.store(value, Ordering::Relaxed);
    }

    /// Writes each page's number to its first word.
    #[track_caller]
    pub fn fill(&self) {
        for page in pages(0..self.pages()) {
            self.write(page, 0, page.into());
        }
    }

    /// Fills a page.
    #[track_caller]
    pub fn fill_page(&self, page: Page, content: &[u8]) {
        self.area().fill_page(self.inside(page), content);
    }

    /// Returns what is in a page.
    #[track_caller]
    pub fn content(&self, page: Page) -> Vec<u8> {
        let words = 0..page_size() / size_of::<u64>();
        words
            .flat_map(|index| self.read(page, index).to_ne_bytes())
            .collect()
    }

    /// Drops a page from the host, so that the next access finds it unmapped, and empty if the
    /// memory is anonymous or a guest_memfd.
    #[track_caller]
    pub fn discard(&self, page: Page) {
        let page = self.inside(page);
        if self.area().backing() == Backing::GuestMemfd {
            self.area().punch(page.0..page.0 + 1);
        } else {
            self.area().drop_page(page);
        }
    }
}
