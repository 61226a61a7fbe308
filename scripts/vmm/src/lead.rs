// SPDX-License-Identifier: GPL-2.0-only
//! The program's commands, and the thread that leads a machine.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::mem::ManuallyDrop;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use pico_args::Arguments;

use crate::crew::{Crew, Event, demands};

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

/// Does what the command line says.
pub fn program(mut arguments: Arguments) -> Result<ExitCode> {
    if arguments.contains(["-h", "--help"]) {
        println!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    }
    let stats = Arc::new(Stats::default());
    // From now on, so that nothing is wrong with the socket when a machine has come.
    let control = listen(arguments.opt_value_from_str("--control")?)?;
    match arguments.subcommand()?.as_deref() {
        Some("boot") => {
            let guest = boot(arguments)?;
            Leader::new(guest, stats, control)?.lead()
        }
        Some("restore") => {
            stats.begin();
            let way: Option<String> = arguments.opt_value_from_str("--way")?;
            let handler: Option<PathBuf> = arguments.opt_value_from_str("--handler")?;
            let wound: Option<String> = arguments.opt_value_from_str("--break")?;
            let [folder] = words(arguments)?;
            let way = named("way", &Way::NAMES, way.as_deref().unwrap_or("vcpu"))?;
            let wound = named("wound", &Wound::NAMES, wound.as_deref().unwrap_or("nothing"))?;
            let guest = restore(folder.as_ref(), way, handler.as_deref(), wound, &stats)?;
            Leader::new(guest, stats, control)?.lead()
        }
        Some("handler") => {
            let [folder, socket] = words(arguments)?;
            handler::serve(folder.as_ref(), socket.as_ref())?;
            Ok(ExitCode::SUCCESS)
        }
        Some("receive") => {
            let [socket] = words(arguments)?;
            let guest = migrate::receive(socket.as_ref(), &stats)?;
            Leader::new(guest, stats, control)?.lead()
        }
        Some("tell") => {
            let [socket, command] = words(arguments)?;
            tell(socket.as_ref(), &command.to_string_lossy())
        }
        _ => bail!("there is no such command\n{USAGE}"),
    }
}

/// The words of the command line that are left when the options have been taken.
fn words<const N: usize>(arguments: Arguments) -> Result<[OsString; N]> {
    let left = arguments.finish().try_into();
    left.map_err(|left| anyhow!("{N} words were expected, and not {left:?}\n{USAGE}"))
}

/// What a word stands for.
fn named<T: Copy>(what: &str, known: &[(&str, T)], word: &str) -> Result<T> {
    let found = known.iter().find(|(name, _)| *name == word);
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let value = found.map(|(_, value)| *value);
    value.context(format!("there is no {what} '{word}', but {}", names.join(", ")))
}

/// Makes a machine that boots Linux.
fn boot(mut arguments: Arguments) -> Result<Guest> {
    let image: PathBuf = arguments.value_from_str("--image")?;
    let initrd: PathBuf = arguments.value_from_str("--initrd")?;
    let megabytes: Option<u64> = arguments.opt_value_from_str("--memory")?;
    let vcpus: Option<usize> = arguments.opt_value_from_str("--vcpus")?;
    let append: Option<String> = arguments.opt_value_from_str("--append")?;
    let [] = words(arguments)?;
    let config = Config { ram: megabytes.unwrap_or(128) << 20, vcpus: vcpus.unwrap_or(1) };
    let command_line = format!("console=ttyS0 panic=-1 {}", append.unwrap_or_default());
    let vm = Vm::new(config, Kind::Anonymous)?;
    vm.load_linux(&image, &initrd, &command_line)?;
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

/// Where the thread that leads a machine hears of everything.
type Control = (Sender<Event>, Receiver<Event>);

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
    fn new(guest: Guest, stats: Arc<Stats>, control: Control) -> Result<Self> {
        let (sender, events) = control;
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

    fn lead(self) -> Result<ExitCode> {
        // The vCPUs may run until the process ends, and so long they need what a drop takes away.
        ManuallyDrop::new(self).events()
    }

    fn events(&mut self) -> Result<ExitCode> {
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
                    Err(error) => drop(writeln!(stream, "error: {error:#}")),
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
        self.crew.take().context("the machine does not run")
    }

    fn start(&mut self, demands: crate::crew::Demands) -> Result<()> {
        self.crew = Some(Crew::start(&self.vm, &self.stats, &self.sender, demands)?);
        Ok(())
    }

    /// Does what somebody asked for, and returns the answer, or nothing when the VMM is to end.
    fn command(&mut self, line: &str) -> Result<Option<String>> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let any_time = matches!(words[..], ["quit" | "report"]);
        ensure!(self.complete || any_time, "not all of the memory is there yet");
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
                let mode = named("migration", &Mode::NAMES, mode)?;
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
                        bail!("the machine stays here: {error:#}")
                    }
                }
            }
            ["toggle", times] => {
                let times = times.parse().context("toggle")?;
                self.toggle(times).map(Some)
            }
            ["report"] => Ok(Some(self.stats.report())),
            ["quit"] => Ok(None),
            _ => bail!("no command is like '{line}'"),
        }
    }

    /// Marks all of the memory again and again while the guest runs, which tells what it touches.
    fn toggle(&mut self, times: u32) -> Result<String> {
        ensure!(self.vm.userfault, "this kernel has no KVM userfault");
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

/// Takes commands from a socket, one a connection, if there is to be one.
fn listen(path: Option<PathBuf>) -> Result<Control> {
    let (sender, events) = channel();
    let Some(path) = path else {
        return Ok((sender, events));
    };
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).context(format!("listening at {}", path.display()))?;
    let commands = sender.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut line = String::new();
            if BufReader::new(&stream).read_line(&mut line).is_ok() {
                let _ = commands.send(Event::Command(line.trim_end().to_owned(), stream));
            }
        }
    });
    Ok((sender, events))
}
