// SPDX-License-Identifier: GPL-2.0-only
//! Migrates a machine to another process: rounds of pre-copy by the dirty log, and what they did
//! not bring is fetched on demand after the switch.
//!
//! A message is four words, kind, two arguments and the bytes that follow it:
//!
//!     source       START    RAM, vCPUs      page size, whether by userfaultfd
//!                  PAGES    first           content
//!                  SWITCH   bytes of state  state, and the words of the bitmap of what is missing
//!                  DONE                     every page was sent
//!     destination  REQUEST  page
//!                  RUNNING                  the source has to let go of the machine
//!                  END

use std::fs;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Error, Result, bail, ensure};

use crate::crew::{Crew, Demands, demands};
use crate::layout::{BLOCK_PAGES, Config, page_size};
use crate::memory::{self, Fill};
use crate::restore::{Guest, Job};
use crate::state::{State, to_bytes, to_words};
use crate::stats::Stats;
use crate::userfault::{self, Demand, Marks};
use crate::vm::{Kind, Vm, open_kvm};

const START: u64 = 1;
const PAGES: u64 = 2;
const SWITCH: u64 = 3;
const DONE: u64 = 4;
const REQUEST: u64 = 5;
const RUNNING: u64 = 6;
const END: u64 = 7;

/// Pre-copy alone goes on until so few pages are left, or so many rounds were made.
const FEW_PAGES: usize = 256;
const MANY_ROUNDS: usize = 8;
/// Post-copy follows after the first copy and one round.
const ROUNDS_BEFORE_POSTCOPY: usize = 2;

/// How a migration ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// The machine stops until all of its memory has been sent.
    Precopy,
    /// It runs by marks.
    Postcopy,
    /// It runs by userfaultfd.
    Userfaultfd,
}

impl Mode {
    pub const NAMES: [(&'static str, Mode); 3] = [
        ("precopy", Mode::Precopy),
        ("postcopy", Mode::Postcopy),
        ("userfaultfd", Mode::Userfaultfd),
    ];
}

/// One end of the connection.
struct Link(UnixStream);

struct Message {
    kind: u64,
    a: u64,
    b: u64,
    content: Vec<u8>,
}

impl Link {
    fn send(&mut self, kind: u64, a: u64, b: u64, content: &[u8]) -> Result<()> {
        let head = to_bytes(&[kind, a, b, content.len() as u64]);
        self.0
            .write_all(&head)
            .and_then(|()| self.0.write_all(content))
            .context("the other side has gone")
    }

    fn receive(&mut self) -> Result<Message> {
        let mut head = [0; 32];
        self.0.read_exact(&mut head).context("the other side has gone")?;
        let words = to_words(&head);
        let (kind, a, b, bytes) = (words[0], words[1], words[2], words[3]);
        // The largest are a block of pages and the state of a machine.
        ensure!(bytes <= 64 << 20, "a message of {bytes} bytes, which no migration sends");
        let mut content = vec![0; bytes as usize];
        self.0.read_exact(&mut content).context("the other side has gone")?;
        Ok(Message { kind, a, b, content })
    }

    fn expect(&mut self, kind: u64) -> Result<Message> {
        let message = self.receive()?;
        ensure!(
            message.kind == kind,
            "message {} instead of {kind}: the other side is no VMM of this kind",
            message.kind
        );
        Ok(message)
    }

    fn try_clone(&self) -> Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

impl Message {
    /// The pages that a message brings to a machine, which has that many.
    fn pages(&self, of: usize) -> Result<Range<usize>> {
        let (first, bytes) = (self.a as usize, self.content.len());
        let pages = first..first.saturating_add(bytes / page_size());
        let fit = !pages.is_empty() && bytes % page_size() == 0 && pages.end <= of;
        ensure!(fit, "{bytes} bytes for page {first}, which do not fit the machine");
        Ok(pages)
    }
}

/// Sends pages that nobody has sent, and counts them.
struct Sender<'a> {
    vm: &'a Vm,
    link: Mutex<Link>,
    missing: Marks,
    bytes: u64,
}

impl Sender<'_> {
    fn send(&self, pages: Range<usize>) -> Result<u64> {
        // A page that is taken is sent before anybody else sends anything, DONE above all.
        let mut link = self.link.lock().unwrap();
        let mut bytes = 0;
        for run in self.missing.take(pages) {
            let mut content = vec![0; run.len() * page_size()];
            self.vm.memory.read(run.start, &mut content)?;
            link.send(PAGES, run.start as u64, 0, &content)?;
            bytes += content.len() as u64;
        }
        Ok(bytes)
    }

    /// Sends all that is missing, block by block.
    fn send_all(&self) -> Result<u64> {
        let pages = self.vm.memory.config().pages();
        let blocks = (0..pages).step_by(BLOCK_PAGES);
        blocks.map(|start| self.send(start..(start + BLOCK_PAGES).min(pages))).sum()
    }
}

/// What became of the machine on the side that sends.
pub enum Sent {
    /// It runs on the other side; the figures are for the user.
    Away(String),
    /// It goes on here, as it has not left; why, and what runs it.
    Here(Error, Crew),
}

/// Migrates the machine that a crew runs.
pub fn send(
    vm: &Vm,
    crew: Crew,
    restart: impl FnOnce(Demands) -> Result<Crew>,
    path: &Path,
    mode: Mode,
) -> Result<Sent> {
    let (mut sender, rounds) = match precopy(vm, path, mode) {
        Ok(done) => done,
        Err(error) => {
            vm.set_slot(None, false)?;
            return Ok(Sent::Here(error, crew));
        }
    };
    let stopped = Instant::now();
    let demands = crew.stop()?;
    match switch(vm, &mut sender, mode) {
        Ok(missing) => {
            let downtime = stopped.elapsed().as_secs_f64() * 1e3;
            let requests = finish(&mut sender)?;
            let bytes = sender.bytes;
            Ok(Sent::Away(format!(
                "downtime={downtime:.1} rounds={rounds} missing={missing} requests={requests} \
                 sent={bytes}"
            )))
        }
        Err(error) => {
            vm.set_slot(None, false)?;
            Ok(Sent::Here(error, restart(demands)?))
        }
    }
}

/// Copies the memory while the machine runs, until what is left is for the switch.
fn precopy<'a>(vm: &'a Vm, path: &Path, mode: Mode) -> Result<(Sender<'a>, usize)> {
    let config = vm.memory.config();
    let stream = UnixStream::connect(path).context(format!("connecting to {}", path.display()))?;
    let mut link = Link(stream);
    let how = to_bytes(&[page_size() as u64, u64::from(mode == Mode::Userfaultfd)]);
    link.send(START, config.ram, config.vcpus as u64, &how)?;
    let missing = Marks::all(config.pages())?;
    let mut sender = Sender { vm, link: Mutex::new(link), missing, bytes: 0 };
    vm.set_slot(None, true)?;
    let mut rounds = 0;
    loop {
        sender.bytes += sender.send_all()?;
        rounds += 1;
        sender.missing.load_words(&vm.dirty()?);
        let enough = match mode {
            Mode::Precopy => rounds == MANY_ROUNDS || sender.missing.count() <= FEW_PAGES,
            _ => rounds == ROUNDS_BEFORE_POSTCOPY,
        };
        if enough {
            return Ok((sender, rounds));
        }
    }
}

/// Sends the stopped machine's state, and waits until it runs on the other side. Returns how many
/// pages it lacks there.
fn switch(vm: &Vm, sender: &mut Sender, mode: Mode) -> Result<usize> {
    let state = vm.save(0)?.encode();
    // What was written since the last round, or in it, is missing on the other side.
    let last: Vec<u64> =
        vm.dirty()?.iter().zip(sender.missing.to_words()).map(|(a, b)| a | b).collect();
    sender.missing.load_words(&last);
    if mode == Mode::Precopy {
        sender.bytes += sender.send_all()?;
    }
    let words = to_bytes(&sender.missing.to_words());
    let mut link = sender.link.lock().unwrap();
    link.send(SWITCH, state.len() as u64, 0, &[state, words].concat())?;
    link.expect(RUNNING)?;
    Ok(sender.missing.count())
}

/// Sends what is missing, what is asked for first. Returns how many pages were asked for.
fn finish(sender: &mut Sender) -> Result<u64> {
    let mut requests = sender.link.lock().unwrap().try_clone()?;
    let shared = &*sender;
    let (asked, bytes) = thread::scope(|scope| -> Result<_> {
        let answers = scope.spawn(move || -> Result<(u64, u64)> {
            let (mut asked, mut bytes) = (0, 0);
            loop {
                let message = requests.receive()?;
                match message.kind {
                    REQUEST => {
                        let page = message.a as usize;
                        ensure!(page < shared.missing.pages(), "a request for page {page}");
                        bytes += shared.send(page..page + 1)?;
                    }
                    END => return Ok((asked, bytes)),
                    kind => bail!("message {kind} from the destination, which is not for now"),
                }
                asked += 1;
            }
        });
        let streamed = shared.send_all()?;
        shared.link.lock().unwrap().send(DONE, 0, 0, &[])?;
        let (asked, answered) = answers.join().expect("the thread that answers panicked")?;
        Ok((asked, streamed + answered))
    })?;
    sender.bytes += bytes;
    Ok(asked)
}

/// Pages that come over the connection.
struct Incoming {
    fill: Fill,
    /// The pages that have not come.
    missing: Arc<Marks>,
    /// The pages that nobody has asked for.
    unasked: Marks,
    link: Mutex<Link>,
    arrivals: (Mutex<()>, Condvar),
    stats: Arc<Stats>,
}

impl Incoming {
    fn ask(&self, page: usize) -> Result<()> {
        if !self.unasked.take(page..page + 1).is_empty() {
            self.link.lock().unwrap().send(REQUEST, page as u64, 0, &[])?;
        }
        Ok(())
    }

    /// Takes pages until all are there. Each comes once, as the source sends it once.
    fn receive(&self, link: &mut Link) -> Result<()> {
        loop {
            let message = link.receive()?;
            match message.kind {
                PAGES => {
                    let pages = message.pages(self.missing.pages())?;
                    self.fill.put(pages.clone(), &message.content)?;
                    self.stats.bytes.fetch_add(message.content.len() as u64, Ordering::Relaxed);
                    self.missing.clear(pages);
                    let _guard = self.arrivals.0.lock().unwrap();
                    self.arrivals.1.notify_all();
                }
                DONE => {
                    let missing = self.missing.count();
                    ensure!(missing == 0, "the source is done, and {missing} pages never came");
                    return self.link.lock().unwrap().send(END, 0, 0, &[]);
                }
                kind => bail!("message {kind} from the source, which is not for now"),
            }
        }
    }

    fn serve(&self, uffd: &userfaultfd::Uffd, base: u64) -> Result<()> {
        memory::serve(uffd, base, &self.stats, |page| self.ask(page))
    }
}

/// A vCPU's thread sleeps until its page has come; others may ask for it as well.
impl Demand for Arc<Incoming> {
    fn page(&mut self, page: usize) -> Result<()> {
        self.ask(page)?;
        let mut guard = self.arrivals.0.lock().unwrap();
        while self.missing.is_set(page) {
            guard = self.arrivals.1.wait(guard).unwrap();
        }
        Ok(())
    }
}

/// Waits for a machine that comes over a socket, and returns it ready to run.
pub fn receive(path: &Path, stats: &Arc<Stats>) -> Result<Guest> {
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path).context(format!("listening at {}", path.display()))?;
    eprintln!("vmm: waiting for a machine");
    let (stream, _) = listener.accept().context("waiting for the source")?;
    let mut link = Link(stream);
    let start = link.expect(START)?;
    eprintln!("vmm: a machine is coming");
    let config = Config { ram: start.a, vcpus: start.b as usize };
    let [pages_of, by_userfaultfd] = to_words(&start.content)[..] else {
        bail!("the source says too little");
    };
    ensure!(pages_of == page_size() as u64, "the source has pages of another size");
    let mut by_marks = by_userfaultfd == 0;
    if by_marks && !userfault::supported(&open_kvm()?) {
        eprintln!("vmm: this kernel has no KVM userfault: falling back to userfaultfd");
        by_marks = false;
    }
    let vm = Vm::new(config, Kind::Anonymous)?;
    vm.set_slot(None, false)?;
    let switch = loop {
        let message = link.receive()?;
        match message.kind {
            PAGES => {
                let pages = message.pages(config.pages())?;
                vm.memory.write(pages.start, &message.content)?;
            }
            SWITCH => break message,
            kind => bail!("message {kind} from the source, which is not for now"),
        }
    };
    stats.begin();
    let Some((state, words)) = switch.content.split_at_checked(switch.a as usize) else {
        bail!("the source's last message is truncated");
    };
    let state = State::decode(state)?;
    let missing = Arc::new(Marks::new(config.pages())?);
    missing.load_words(&to_words(words));
    let guest = incomplete(vm, missing, by_marks, link.try_clone()?, stats)?;
    guest.vm.load(&state)?;
    guest.vm.record_stolen_time()?;
    // Before it runs: so the machine never runs on both sides.
    link.send(RUNNING, 0, 0, &[])?;
    Ok(guest)
}

/// Makes the machine ready that lacks some pages.
fn incomplete(
    vm: Vm,
    missing: Arc<Marks>,
    by_marks: bool,
    link: Link,
    stats: &Arc<Stats>,
) -> Result<Guest> {
    let config = vm.memory.config();
    let base = vm.memory.host_address();
    // Registered before pages are dropped: khugepaged fills holes with zeros to make a huge page of
    // what is around them, but not where userfaultfd waits for what is missing.
    let uffd = memory::register(&vm.memory)?;
    // What earlier rounds brought of these pages is old: it goes, before anybody may see it.
    let unasked = Marks::new(config.pages())?;
    unasked.load_words(&missing.to_words());
    for run in unasked.take(0..config.pages()) {
        vm.memory.drop_pages(run)?;
    }
    unasked.load_words(&missing.to_words());
    let marks = by_marks.then(|| missing.clone());
    if let Some(marks) = &marks {
        vm.set_slot(Some(marks), false)?;
    }
    let mut reader = link.try_clone()?;
    let incoming = Arc::new(Incoming {
        fill: Fill::Uffd(uffd.clone(), base),
        missing,
        unasked,
        link: Mutex::new(link),
        arrivals: Default::default(),
        stats: stats.clone(),
    });
    let demands = demands(&vm, &incoming);
    let service = {
        let (incoming, uffd) = (incoming.clone(), uffd.clone());
        Box::new(move || incoming.serve(&uffd, base)) as Job
    };
    let stream: Job = Box::new(move || incoming.receive(&mut reader));
    let (vm, uffd) = (Arc::new(vm), Some(uffd));
    Ok(Guest { vm, demands, marks, uffd, service: Some(service), stream: Some(stream) })
}
