// SPDX-License-Identifier: GPL-2.0-only
//! Restores a machine from a snapshot, on demand, in one of several ways.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};

use crate::crew::{Demands, demands};
use crate::handler::{self, Handler};
use crate::memory::{self, Fill};
use crate::pager::{NoDemand, Pager, Source};
use crate::snapshot;
use crate::stats::Stats;
use crate::userfault::{self, Marks};
use crate::vm::{Kind, Vm, open_kvm};
use crate::wound::{Broken, Wound};

/// Who fills the pages that are missing, and how.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// Everything is read before the guest runs.
    Copy,
    /// A vCPU's thread fills the page that its vCPU left KVM_RUN for.
    Vcpu,
    /// Another process does, which shares the bitmap.
    Process,
    /// Without marks: vCPUs sleep in the kernel until userfaultfd is served.
    Userfaultfd,
    /// Memory is a private mapping of the snapshot: to clear the bit is to fill the page.
    Mapping,
    /// Memory is a guest_memfd, which is filled through its mapping.
    GuestMemfd,
}

impl Way {
    pub const NAMES: [(&'static str, Way); 6] = [
        ("copy", Way::Copy),
        ("vcpu", Way::Vcpu),
        ("process", Way::Process),
        ("userfaultfd", Way::Userfaultfd),
        ("mapping", Way::Mapping),
        ("guest_memfd", Way::GuestMemfd),
    ];

    fn needs_marks(self) -> bool {
        !matches!(self, Way::Copy | Way::Userfaultfd)
    }

    /// What this kernel can do instead, where it has no userfault.
    fn possible(self, userfault: bool) -> Self {
        if self.needs_marks() && !userfault {
            eprintln!("vmm: this kernel has no KVM userfault: falling back to userfaultfd");
            return Way::Userfaultfd;
        }
        self
    }
}

/// Work for a thread of its own.
pub type Job = Box<dyn FnOnce() -> Result<()> + Send>;

/// A machine that may lack some of its memory.
pub struct Guest {
    pub vm: Arc<Vm>,
    pub demands: Demands,
    /// What KVM reads as long as the flag is set.
    pub marks: Option<Arc<Marks>>,
    pub uffd: Option<Arc<userfaultfd::Uffd>>,
    /// Serves userfaultfd; it only ends when something is wrong.
    pub service: Option<Job>,
    /// Ends when all of the memory is there.
    pub stream: Option<Job>,
}

impl Guest {
    /// A machine that has all of its memory.
    pub fn whole(vm: Vm) -> Self {
        let demands = demands(&vm, &NoDemand);
        Self { vm: Arc::new(vm), demands, marks: None, uffd: None, service: None, stream: None }
    }
}

/// Makes a machine from a snapshot. Its vCPUs can run at once.
pub fn restore(
    folder: &Path,
    way: Way,
    handler: Option<&Path>,
    wound: Wound,
    stats: &Arc<Stats>,
) -> Result<Guest> {
    let (state, file) = snapshot::open(folder)?;
    let supported = userfault::supported(&open_kvm()?) && wound != Wound::NoCapability;
    let way = way.possible(supported);
    let kind = match way {
        Way::Mapping => Kind::Private(file.try_clone()?),
        Way::GuestMemfd => Kind::GuestMemfd,
        _ => Kind::Anonymous,
    };
    let vm = Vm::new(state.config, kind)?;
    let marks = match way.needs_marks() {
        true => Some(Arc::new(Marks::all(state.config.pages())?)),
        false => None,
    };
    // With the marks from its first moment on: nothing of the slot is ever mapped without them.
    vm.set_slot(marks.as_deref(), false)?;
    let guest = match way {
        Way::Process => by_process(vm, marks, handler, stats)?,
        _ => by_this_process(vm, way, file, marks, wound, stats)?,
    };
    guest.vm.load(&state)?;
    guest.vm.record_stolen_time()?;
    Ok(guest)
}

/// Pages are filled by threads of this process.
fn by_this_process(
    vm: Vm,
    way: Way,
    file: File,
    marks: Option<Arc<Marks>>,
    wound: Wound,
    stats: &Arc<Stats>,
) -> Result<Guest> {
    let config = vm.memory.config();
    let base = vm.memory.host_address();
    let uffd = match way {
        Way::Userfaultfd => Some(memory::register(&vm.memory)?),
        Way::Vcpu => memory::register(&vm.memory)
            .inspect_err(|error| {
                eprintln!("vmm: {error:#}: what KVM itself accesses is supplied first")
            })
            .ok(),
        _ => None,
    };
    let fill = match (&uffd, way) {
        (Some(uffd), _) => Fill::Uffd(uffd.clone(), base),
        (None, Way::Mapping) => Fill::InPlace(vm.memory.clone()),
        (None, _) => Fill::Write(vm.memory.clone()),
    };
    // Nothing stops KVM at a mark. Where nothing else does, these pages have to be there.
    let kvm_needs = uffd.is_none() && fill.needs_content();
    let source: Box<dyn Source> = Box::new(Broken::new(file, wound, marks.clone(), config.pages()));
    let pager = Pager::new(config.pages(), source, fill, marks.clone(), stats.clone())?;
    if kvm_needs && way != Way::Copy {
        let first = pager.supply(config.pages_of_kvm())?;
        stats.first_pages.fetch_add(first as u64, Ordering::Relaxed);
    }
    if way == Way::Copy {
        pager.stream(config.pages())?;
        stats.complete();
        return Ok(Guest { stream: Some(Box::new(|| Ok(()))), ..Guest::whole(vm) });
    }
    let service = uffd.clone().map(|uffd| {
        let pager = pager.clone();
        Box::new(move || pager.serve(&uffd, base)) as Job
    });
    let demands = demands(&vm, &pager);
    let stream: Job = Box::new(move || pager.stream(config.pages()));
    Ok(Guest { vm: Arc::new(vm), demands, marks, uffd, service, stream: Some(stream) })
}

/// Pages are filled by a handler in another process.
fn by_process(
    vm: Vm,
    marks: Option<Arc<Marks>>,
    path: Option<&Path>,
    stats: &Arc<Stats>,
) -> Result<Guest> {
    let path = path.context("the way 'process' needs --handler SOCKET")?;
    let marks = marks.context("the way 'process' needs marks")?;
    let uffd = memory::register(&vm.memory)?;
    let handler = Handler::connect(path, &vm.memory, &uffd, &marks, stats.clone())?;
    let demands = (0..vm.vcpus.len())
        .map(|_| Ok(Box::new(handler::Requests::connect(path)?) as _))
        .collect::<Result<Demands>>()?;
    let stream: Job = Box::new(move || handler.wait());
    let (vm, marks, uffd) = (Arc::new(vm), Some(marks), Some(uffd));
    Ok(Guest { vm, demands, marks, uffd, service: None, stream: Some(stream) })
}
