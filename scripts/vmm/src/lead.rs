// SPDX-License-Identifier: GPL-2.0-only
//! The program's commands, and the thread that leads a machine.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::mem::ManuallyDrop;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::crew::{Crew, Event, demands};
use crate::error::{Context, Error, Result, fail};
use crate::handler;
use crate::layout::Config;
use crate::migrate::{self, Mode, Sent};
use crate::restore::{Guest, Job, Way, restore};
use crate::snapshot;
use crate::stats::Stats;
use crate::userfault::{Marks, Stop};
use crate::vm::{Kind, Vm};
use crate::wound::Wound;

const USAGE: &str = "\
usage: vmm boot --image FILE --initrd FILE [--memory MIB] [--vcpus N] [--append WORDS] [--control SOCKET]
       vmm restore FOLDER [--way WAY] [--handler SOCKET] [--control SOCKET]
       vmm handler FOLDER SOCKET
       vmm receive SOCKET [--control SOCKET]
       vmm tell SOCKET COMMAND

WAY is copy, vcpu, process, userfaultfd, mapping or guest_memfd.
COMMAND is 'snapshot FOLDER', 'migrate SOCKET precopy|postcopy|userfaultfd', 'toggle N', 'report' or 'quit'.
The VMM ends with 0 when the guest powers off, with 3 when the guest resets.";

/// The words of the command line: those with a name, and the others.
struct Options {
    named: HashMap<String, String>,
    words: Vec<String>,
}

impl Options {
    fn parse(arguments: Vec<String>, known: &[&str], words: usize) -> Result<Self> {
        let mut options = Self { named: HashMap::new(), words: Vec::new() };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.strip_prefix("--") {
                Some(name) if known.contains(&name) => {
                    let Some(value) = arguments.next() else {
                        fail!("--{name} wants a value\n{USAGE}")
                    };
                    options.named.insert(name.to_owned(), value);
                }
                Some(name) => fail!("there is no option --{name}\n{USAGE}"),
                None => options.words.push(argument),
            }
        }
        if options.words.len() != words {
            fail!("{words} words were expected, and {} given\n{USAGE}", options.words.len());
        }
        Ok(options)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(String::as_str)
    }

    fn path(&self, name: &str) -> Option<&Path> {
        self.get(name).map(Path::new)
    }

    fn needed(&self, name: &str) -> Result<&Path> {
        self.path(name).ok_or_else(|| Error(format!("--{name} is missing\n{USAGE}")))
    }

    fn number(&self, name: &str, default: u64) -> Result<u64> {
        self.get(name).map_or(Ok(default), |text| text.parse().context(format!("--{name} {text}")))
    }
}

/// Does what the command line says.
pub fn program(mut arguments: Vec<String>) -> Result<ExitCode> {
    if arguments.is_empty() || arguments.iter().any(|word| word == "--help" || word == "-h") {
        println!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    }
    let stats = Arc::new(Stats::new());
    let command = arguments.remove(0);
    match command.as_str() {
        "boot" => {
            let known = ["image", "initrd", "memory", "vcpus", "append", "control"];
            let options = Options::parse(arguments, &known, 0)?;
            let guest = boot(&options)?;
            Leader::new(guest, stats, options.path("control"))?.lead(None)
        }
        "restore" => {
            stats.begin();
            let options = Options::parse(arguments, &["way", "handler", "control", "break"], 1)?;
            let way = Way::parse(options.get("way").unwrap_or("vcpu"))?;
            let wound = Wound::parse(options.get("break").unwrap_or("nothing"))?;
            let folder = Path::new(&options.words[0]);
            let guest = restore(folder, way, options.path("handler"), wound, &stats)?;
            Leader::new(guest, stats, options.path("control"))?.lead(None)
        }
        "handler" => {
            let options = Options::parse(arguments, &[], 2)?;
            handler::serve(Path::new(&options.words[0]), Path::new(&options.words[1]))?;
            Ok(ExitCode::SUCCESS)
        }
        "receive" => {
            let options = Options::parse(arguments, &["control"], 1)?;
            let (guest, running) = migrate::receive(Path::new(&options.words[0]), &stats)?;
            Leader::new(guest, stats, options.path("control"))?.lead(Some(running))
        }
        "tell" => {
            let options = Options::parse(arguments, &[], 2)?;
            tell(Path::new(&options.words[0]), &options.words[1])
        }
        other => fail!("there is no command '{other}'\n{USAGE}"),
    }
}

/// Makes a machine that boots Linux.
fn boot(options: &Options) -> Result<Guest> {
    let config = Config {
        ram: options.number("memory", 128)? << 20,
        vcpus: options.number("vcpus", 1)? as usize,
    };
    let command_line = format!("console=ttyS0 panic=-1 {}", options.get("append").unwrap_or(""));
    let vm = Vm::new(config, Kind::Anonymous)?;
    vm.load_linux(options.needed("image")?, options.needed("initrd")?, &command_line)?;
    vm.set_slot(None, false)?;
    vm.record_stolen_time()?;
    Ok(Guest::whole(vm))
}

/// Sends a command to a VMM and shows the answer.
fn tell(path: &Path, command: &str) -> Result<ExitCode> {
    let mut stream =
        UnixStream::connect(path).context(format!("connecting to {}", path.display()))?;
    writeln!(stream, "{command}").context("sending the command")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).context("waiting for the answer")?;
    println!("{}", answer.trim_end());
    Ok(if answer.starts_with("ok") { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Leads a machine to its end.
struct Leader {
    vm: Arc<Vm>,
    crew: Option<Crew>,
    stats: Arc<Stats>,
    sender: Sender<Event>,
    events: Receiver<Event>,
    /// What KVM may read. Kept to the end, as a flag that cannot be cleared would leave KVM with it.
    marks: Option<Arc<Marks>>,
    uffd: Option<Arc<userfaultfd::Uffd>>,
    /// Whether all of the memory is there.
    complete: bool,
    stream: Option<Job>,
}

impl Leader {
    fn new(guest: Guest, stats: Arc<Stats>, control: Option<&Path>) -> Result<Self> {
        let (sender, events) = channel();
        if let Some(path) = control {
            listen(path, sender.clone())?;
        }
        if let Some(service) = guest.service {
            let sender = sender.clone();
            thread::spawn(move || {
                service().map_err(|error| sender.send(Event::Complete(Err(error))))
            });
        }
        let crew = Some(Crew::start(&guest.vm, &stats, &sender, guest.demands)?);
        let complete = guest.stream.is_none();
        Ok(Self {
            vm: guest.vm,
            crew,
            stats,
            sender,
            events,
            marks: guest.marks,
            uffd: guest.uffd,
            complete,
            stream: guest.stream,
        })
    }

    fn lead(self, running: Option<Job>) -> Result<ExitCode> {
        // The vCPUs may run until the process ends, and so long they need what a drop takes away.
        let mut leader = ManuallyDrop::new(self);
        leader.events(running)
    }

    fn events(&mut self, running: Option<Job>) -> Result<ExitCode> {
        running.map_or(Ok(()), |say| say())?;
        eprintln!("vmm: the vCPUs run");
        if let Some(stream) = self.stream.take() {
            let sender = self.sender.clone();
            thread::spawn(move || sender.send(Event::Complete(stream())));
        }
        loop {
            match self.events.recv().context("waiting for the machine")? {
                Event::Ended(end) => {
                    let end = end?;
                    eprintln!("vmm: report {}", self.stats.report());
                    if end == Stop::PowerOff {
                        return Ok(ExitCode::SUCCESS);
                    }
                    eprintln!("vmm: the guest asked for a reset: something is wrong in it");
                    return Ok(ExitCode::from(3));
                }
                Event::Complete(result) => {
                    result?;
                    self.complete()?;
                }
                Event::Command(line, mut stream) => match self.command(&line) {
                    Ok(Some(answer)) => drop(writeln!(stream, "ok {answer}")),
                    Ok(None) => {
                        eprintln!("vmm: report {}", self.stats.report());
                        let _ = writeln!(stream, "ok");
                        return Ok(ExitCode::SUCCESS);
                    }
                    Err(error) => drop(writeln!(stream, "error: {error}")),
                },
            }
        }
    }

    /// All of the memory is there: what served to get it goes, and large mappings come back.
    fn complete(&mut self) -> Result<()> {
        self.stats.complete();
        self.complete = true;
        if self.marks.is_some() {
            // Not one mapping of stage 2 is touched by this.
            self.vm.set_slot(None, false)?;
        }
        if let Some(uffd) = self.uffd.take() {
            let memory = &self.vm.memory;
            uffd.unregister(memory.host_address() as *mut _, memory.config().slot_bytes())
                .context("unregistering from userfaultfd")?;
            // Huge pages where the kernel has them; then the slot is made anew, so that it is mapped
            // by blocks at once and not as faults happen to come. A slot that is gone for a moment
            // is nothing that a vCPU should see.
            let huge = self.vm.memory.collapse();
            let demands = self.crew()?.stop()?;
            self.vm.delete_slot()?;
            self.vm.set_slot(None, false)?;
            self.start(demands)?;
            if let Err(error) = huge {
                eprintln!("vmm: no huge pages: {error}");
            }
        }
        eprintln!("vmm: all of the memory is there");
        Ok(())
    }

    fn crew(&mut self) -> Result<Crew> {
        self.crew.take().ok_or_else(|| Error("the machine does not run".into()))
    }

    fn start(&mut self, demands: crate::crew::Demands) -> Result<()> {
        self.crew = Some(Crew::start(&self.vm, &self.stats, &self.sender, demands)?);
        Ok(())
    }

    /// Does what somebody asked for, and returns the answer, or nothing when the VMM is to end.
    fn command(&mut self, line: &str) -> Result<Option<String>> {
        let words: Vec<&str> = line.split_whitespace().collect();
        if !self.complete && !matches!(words[..], ["quit" | "report"]) {
            fail!("not all of the memory is there yet");
        }
        match words[..] {
            ["snapshot", folder] => {
                let demands = self.crew()?.stop()?;
                let result = self
                    .vm
                    .save(identity())
                    .and_then(|state| snapshot::write(Path::new(folder), &self.vm.memory, &state));
                self.start(demands)?;
                result.map(|()| Some(format!("snapshot in {folder}")))
            }
            ["migrate", path, mode] => {
                let mode = Mode::parse(mode)?;
                let crew = self.crew()?;
                let (vm, stats, sender) =
                    (self.vm.clone(), self.stats.clone(), self.sender.clone());
                let restart = |demands| Crew::start(&vm, &stats, &sender, demands);
                match migrate::send(&self.vm, crew, restart, Path::new(path), mode)? {
                    Sent::Away(report) => {
                        eprintln!("vmm: report {report}");
                        Ok(None)
                    }
                    Sent::Here(error, crew) => {
                        self.crew = Some(crew);
                        fail!("the machine stays here: {error}")
                    }
                }
            }
            ["toggle", times] => {
                let times = times.parse().context("toggle")?;
                self.toggle(times).map(Some)
            }
            ["report"] => Ok(Some(self.stats.report())),
            ["quit"] => Ok(None),
            _ => fail!("no command is like '{line}'"),
        }
    }

    /// Marks all of the memory again and again while the guest runs, which tells what it touches.
    fn toggle(&mut self, times: u32) -> Result<String> {
        if !self.vm.userfault {
            fail!("this kernel has no KVM userfault");
        }
        let pages = self.vm.memory.config().pages();
        let marks = Arc::new(Marks::new(pages)?);
        // Threads whose vCPUs exit for these marks. One that exits late finds its mark cleared.
        let stopped = self.crew()?.stop()?;
        drop(stopped);
        self.start(demands(&self.vm, &marks))?;
        self.marks = Some(marks.clone());
        let mut touched = 0;
        for _ in 0..times {
            marks.set(0..pages);
            self.vm.set_slot(Some(&marks), false)?;
            thread::sleep(Duration::from_millis(20));
            touched += pages - marks.count();
            self.vm.set_slot(None, false)?;
        }
        Ok(format!("toggles={times} pages={pages} touched={touched}"))
    }
}

/// Something that no other snapshot has.
fn identity() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64 ^ (u64::from(std::process::id()) << 48)
}

/// Takes commands from a socket, one a connection.
fn listen(path: &Path, sender: Sender<Event>) -> Result<()> {
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path).context(format!("listening at {}", path.display()))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut line = String::new();
            if BufReader::new(&stream).read_line(&mut line).is_ok() {
                let _ = sender.send(Event::Command(line.trim_end().to_owned(), stream));
            }
        }
    });
    Ok(())
}
