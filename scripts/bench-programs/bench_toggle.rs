// SPDX-License-Identifier: GPL-2.0-only

//! What setting and clearing the flag takes while vCPUs run, and what a fault in another slot waits
//! for meanwhile.
//!
//! Most of it is waiting for others: for a grace period of SRCU, whose length goes by the kernel's
//! HZ where another is under way. So these are times by a clock, not numbers of instructions.

use super::*;

/// How often, less where there are many slots, and the size of a slot in pages.
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

/// Sets the flag of all slots, one after the other, and clears it, and returns how long each took.
fn toggle_all(slots: &[(Slot, Bitmap)]) -> [f64; 2] {
    let mut flags = Vec::new();
    let set = time(|| flags.extend(slots.iter().map(|(slot, bitmap)| slot.enable(bitmap))));
    [set, time(|| drop(flags))]
}

/// Setting and clearing the flag.
pub fn toggle() {
    needs_userfault();
    for running in [0, 1, 8] {
        for slots in [1, 8, 64] {
            toggle_while(running, slots, ["toggle-set", "toggle-clear"], false);
            let names = ["toggle-set-ioeventfd", "toggle-clear-ioeventfd"];
            toggle_while(running, slots, names, true);
        }
    }
}

/// Sets and clears the flag of so many slots while so many vCPUs run.
fn toggle_while(running: usize, slots: usize, names: [&str; 2], with_doorbell: bool) {
    let mut machine = Machine::with_guest(Backing::Anonymous, PAGES, running.max(1), read_on);
    let toggled = slots_of(&machine.vm, slots);
    let doorbell = with_doorbell.then(Doorbell::new);
    let rounds = |_: &Slot| {
        // The vCPUs have started by then.
        thread::sleep(Duration::from_millis(50));
        let round = |_| {
            if let Some(doorbell) = &doorbell {
                doorbell.set(0);
            }
            let times = toggle_all(&toggled);
            if let Some(doorbell) = &doorbell {
                doorbell.set(DEASSIGN);
            }
            times
        };
        (0..ROUNDS / slots.min(10)).map(round).collect()
    };
    let times: Vec<[f64; 2]> = match running {
        0 => rounds(&machine.slot),
        _ => machine.run_while(|_, exit| panic!("unexpected exit: {exit:x?}"), rounds),
    };
    let mut figure = Figure::new(PAGES * page_size(), 0);
    (figure.slots, figure.vcpus) = (slots, running);
    for (which, name) in names.into_iter().enumerate() {
        figure.show_times(name, times.iter().map(|times| times[which]).collect());
    }
}

/// How long a run of a vCPU takes that maps a page and exits at the next, while another thread
/// toggles so many other slots over and over.
pub fn fault_meanwhile() {
    needs_userfault();
    for slots in [0, 1, 64] {
        let mut machine = machine(Backing::Anonymous, FAULTS);
        let toggled = slots_of(&machine.vm, slots);
        let bitmap = Bitmap::marked(machine.slot.pages());
        let _flag = machine.slot.enable(&bitmap);
        let vcpu = &mut machine.vcpus[0];
        let (done, mut times) = (AtomicBool::new(false), Vec::new());
        thread::scope(|scope| {
            scope.spawn(|| {
                while slots != 0 && !done.load(Ordering::Relaxed) {
                    toggle_all(&toggled);
                }
            });
            for page in pages(0..bitmap.pages()) {
                times.push(time(|| vcpu.run()));
                bitmap.clear(page);
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut figure = Figure::new(FAULTS, 0);
        figure.slots = slots;
        figure.show_times("fault-meanwhile", times);
    }
}

/// An eventfd that a guest's write wakes, as of a device whose driver is being started.
struct Doorbell {
    vm: RawFd,
    event: File,
}

const DEASSIGN: u64 = 1 << 2;

impl Doorbell {
    /// Makes one for the only VM that there is.
    fn new() -> Self {
        const EVENTFD2: i64 = 19;
        let is_vm = |fd: &RawFd| {
            let link = fs::read_link(format!("/proc/self/fd/{fd}"));
            link.is_ok_and(|link| link.to_string_lossy().contains("kvm-vm"))
        };
        let vm = (0..1000).find(is_vm).expect("there is no VM");
        // SAFETY: The call takes numbers.
        let event = opened(unsafe { syscall(EVENTFD2, 0i64, 0i64) }).expect("there is no eventfd");
        Self { vm, event }
    }

    /// Has KVM wake it, or not any more.
    fn set(&self, flags: u64) {
        // A struct kvm_ioeventfd: what to wait for, its address, its length and the eventfd, flags.
        let fd = self.event.as_raw_fd() as u64;
        let mut argument = [0, DOORBELL, fd << 32 | 4, flags, 0, 0, 0, 0];
        let is_done = ioctl(self.vm, 1 << 30 | 0xae << 8 | 0x79, &mut argument);
        assert!(is_done, "KVM_IOEVENTFD");
    }
}
