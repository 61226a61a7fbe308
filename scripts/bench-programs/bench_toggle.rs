// SPDX-License-Identifier: GPL-2.0-only

//! What setting and clearing the flag takes while vCPUs run, and what a fault in another slot waits
//! for meanwhile.
//!
//! Most of it is waiting for others: for a grace period of SRCU, whose length goes by the kernel's
//! HZ where another is under way. So these are times by a clock, not numbers of instructions.

use crate::{
    counter::Moment,
    figure::Figure,
    machine,
    need_userfault, //
};
use libkvm::*;
use std::{
    fs,
    os::fd::{
        AsRawFd,
        FromRawFd,
        OwnedFd,
        RawFd, //
    },
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
    thread,
    time::Duration, //
};

/// How many slots are toggled one after the other, and while how many vCPUs run.
const SLOTS: [usize; 3] = [1, 8, 64];
const RUNNING: [usize; 3] = [0, 1, 8];

/// How often, less where there are many, and the size of a slot in pages.
const ROUNDS: usize = 50;
const PAGES: usize = 16;

/// Where the slots are that are toggled, and where a write wakes an eventfd.
const ELSEWHERE: u64 = GPA.0 + (1 << 32);
const DOORBELL: u64 = GPA.0 - (1 << 21);

/// The memory that a vCPU faults in meanwhile.
const FAULTS: usize = 16 << 20;

guest_code! {
    /// Reads the first word of each page, over and over.
    fn read_on(guest: Guest, base: Gva, pages: u64, stride: u64) {
        guest.for_each_page(base, pages, stride, |_, address| {
            guest.read(address);
        })
    }
}

/// Returns slots with a bitmap each.
fn slots_of(vm: &Vm, count: usize) -> Vec<(Slot, Bitmap)> {
    let slot_of = |number: usize| {
        let gpa = Gpa(ELSEWHERE) + Bytes::of_pages(number * PAGES);
        let area = Area::new(Backing::Anonymous, PAGES);
        let slot = Slot::undeclared(vm, &area, SLOT + 1 + number as u32, gpa);
        assert_eq!(slot.region().set(), Ok(()));
        (slot, Bitmap::marked(PAGES))
    };
    (0..count).map(slot_of).collect()
}

/// Sets the flag of all slots and clears it, and returns how long each took.
fn toggle_all(slots: &[(Slot, Bitmap)]) -> [f64; 2] {
    let start = Moment::now();
    let flags: Vec<_> = slots
        .iter()
        .map(|(slot, bitmap)| slot.enable(bitmap))
        .collect();
    let set = start.elapsed();
    let start = Moment::now();
    drop(flags);
    [set, start.elapsed()]
}

/// Setting and clearing the flag.
pub fn toggle() {
    need_userfault();
    for running in RUNNING {
        for slots in SLOTS {
            for doorbell in [false, true] {
                measure(running, slots, doorbell);
            }
        }
    }
}

fn measure(running: usize, slots: usize, with_doorbell: bool) {
    let mut machine = Machine::with_guest(Backing::Anonymous, PAGES, running.max(1), read_on);
    let slots = slots_of(&machine.vm, slots);
    let doorbell = with_doorbell.then(Doorbell::new);
    let rounds = |_: &Slot| {
        // The vCPUs have started by then.
        thread::sleep(Duration::from_millis(50));
        let mut times = [(); 2].map(|()| Vec::new());
        for _ in 0..ROUNDS / slots.len().min(10) {
            let set = doorbell.as_ref().map(Doorbell::set);
            for (times, time) in times.iter_mut().zip(toggle_all(&slots)) {
                times.push(time);
            }
            drop(set);
        }
        times
    };
    let [set, clear] = match running {
        0 => rounds(&machine.slot),
        _ => machine.run_while(|exit| panic!("unexpected exit: {exit:x?}"), rounds),
    };
    let names = match with_doorbell {
        false => ["toggle-set", "toggle-clear"],
        true => ["toggle-set-ioeventfd", "toggle-clear-ioeventfd"],
    };
    for (name, times) in names.into_iter().zip([set, clear]) {
        let figure = Figure::new(name, PAGES * page_size());
        figure.slots(slots.len()).vcpus(running).report_times(times);
    }
}

/// How long a run of a vCPU takes that maps a page and exits at the next, while another thread
/// toggles so many other slots over and over.
pub fn fault_meanwhile() {
    need_userfault();
    for count in [0, 1, 64] {
        let mut machine = machine(Backing::Anonymous, FAULTS);
        let slots = slots_of(&machine.vm, count);
        let bitmap = Bitmap::marked(machine.slot.pages());
        let _flag = machine.slot.enable(&bitmap);
        let vcpu = &mut machine.vcpus[0];
        let (done, mut times) = (AtomicBool::new(false), Vec::new());
        thread::scope(|scope| {
            scope.spawn(|| {
                while count != 0 && !done.load(Ordering::Relaxed) {
                    toggle_all(&slots);
                }
            });
            for page in pages(0..bitmap.pages()) {
                let start = Moment::now();
                vcpu.run();
                times.push(start.elapsed());
                bitmap.clear(page);
            }
            done.store(true, Ordering::Relaxed);
        });
        Figure::new("fault-meanwhile", FAULTS)
            .slots(count)
            .report_times(times);
    }
}

extern "C" {
    fn eventfd(count: u32, flags: i32) -> i32;
    fn ioctl(fd: i32, request: u64, argument: *mut u64) -> i32;
}

/// The request takes a struct kvm_ioeventfd of eight words: what to wait for, its address, its
/// length and the eventfd, flags.
const KVM_IOEVENTFD: u64 = 1 << 30 | 64 << 16 | 0xae << 8 | 0x79;
const DEASSIGN: u64 = 1 << 2;

/// An eventfd that a guest's write wakes, as of a device whose driver is being started.
struct Doorbell {
    vm: RawFd,
    event: OwnedFd,
}

/// It is set, as long as this is there.
struct Set<'d>(&'d Doorbell);

impl Doorbell {
    /// Makes one for the only VM that there is.
    fn new() -> Self {
        let is_vm = |fd: &RawFd| {
            let link = fs::read_link(format!("/proc/self/fd/{fd}"));
            link.is_ok_and(|link| link.to_string_lossy().contains("kvm-vm"))
        };
        let vm = (0..1000).find(is_vm).expect("there is no VM");
        // SAFETY: The call takes numbers.
        let event = unsafe { eventfd(0, 0) };
        assert!(event >= 0, "there is no eventfd");
        // SAFETY: The file descriptor is new and has no other owner.
        let event = unsafe { OwnedFd::from_raw_fd(event) };
        Self { vm, event }
    }

    fn set(&self) -> Set<'_> {
        self.call(0);
        Set(self)
    }

    fn call(&self, flags: u64) {
        let fd = self.event.as_raw_fd() as u64;
        let mut argument = [0, DOORBELL, fd << 32 | 4, flags, 0, 0, 0, 0];
        // SAFETY: The request takes eight words.
        let ret = unsafe { ioctl(self.vm, KVM_IOEVENTFD, argument.as_mut_ptr()) };
        assert_eq!(ret, 0, "KVM_IOEVENTFD");
    }
}

impl Drop for Set<'_> {
    fn drop(&mut self) {
        self.0.call(DEASSIGN);
    }
}
