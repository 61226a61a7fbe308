// SPDX-License-Identifier: GPL-2.0-only

//! Runs the cases of a test program, each in a process of its own, and reports them in KTAP.
//!
//! A case ends well by returning, is skipped by [`skip`] and fails by a panic, in whatever thread
//! that happens. Its process ends then and there, and so does all that it has started.

use crate::bindings;
use std::{
    env,
    ffi::{
        c_int,
        c_void, //
    },
    fs,
    io::{
        self,
        Read,
        Write, //
    },
    os::{
        fd::AsRawFd,
        unix::{
            net::UnixStream,
            process::{
                parent_id,
                ExitStatusExt, //
            }, //
        },
    },
    panic,
    process,
    ptr,
    sync::{
        atomic::{
            AtomicBool,
            Ordering, //
        },
        Mutex,
        OnceLock, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    }, //
};

extern "C" {
    fn fflush(stream: *mut c_void) -> c_int;
}

/// A case of a program.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name, which says what it finds to be so.
    pub name: &'static str,
    /// What it does.
    pub run: fn(),
    /// What it needs besides of what all cases of the program need, in words and as a function
    /// that skips the case where it is not there.
    pub needs: &'static [(&'static str, fn())],
}

/// What kselftest's runner takes for a program that had nothing to run, and libkvm exits with.
const EXIT_SKIP: i32 = 4;

const EXIT_OK: i32 = 0;
const EXIT_FAILED: i32 = 1;

/// How long a case may take, if that is said.
static LIMIT: OnceLock<Duration> = OnceLock::new();

/// Returns how long a case may take.
///
/// Where kselftest's runner gives all of them so many seconds, one that hangs leaves most of these
/// to the others.
fn limit() -> Duration {
    *LIMIT.get_or_init(|| {
        let all = env::var("kselftest_timeout").ok();
        let all = all.and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
        Duration::from_secs(match all {
            0 => 100,
            _ => (all / 3).clamp(1, 300),
        })
    })
}

/// Counts the rounds of a loop that goes on until something is so, which is looked at after `least`
/// rounds.
///
/// Fails if that takes half of the time that the case has, from then on.
#[track_caller]
pub fn rounds(
    least: usize,
    what: &'static str,
    is_so: impl Fn() -> bool,
) -> impl Iterator<Item = usize> {
    let (mut start, caller) = (None, panic::Location::caller());
    (0..).take_while(move |&round| {
        if round < least {
            return true;
        }
        let is_over = is_so();
        let waited = start.get_or_insert_with(Instant::now).elapsed();
        assert!(
            is_over || waited < limit() / 2,
            "{caller}: waited {waited:.1?} for {what}"
        );
        !is_over
    })
}

/// Waits until something is so, and fails if that takes half of the time that the case has.
#[track_caller]
pub fn wait_for(what: &'static str, is_so: impl Fn() -> bool) {
    rounds(0, what, is_so).for_each(|_| thread::sleep(Duration::from_micros(50)));
}

/// The case that this process runs.
static CASE: OnceLock<&str> = OnceLock::new();

/// What others have to know of it, a line each: what to [`undo`], and how it ended.
static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The process that has started this one for a case.
///
/// It is told all of that as well, and so knows it when this one is killed.
static PARENT: OnceLock<UnixStream> = OnceLock::new();

/// Set in a process that a case has started.
static STARTED: AtomicBool = AtomicBool::new(false);

/// Set when the program is to end, which it does when all is undone.
static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_signal: c_int) {
    STOP.store(true, Ordering::Relaxed);
}

#[track_caller]
fn tell(line: &str) {
    let line = line.replace('\n', " ");
    let mut told = TOLD.lock().expect("nothing fails with this lock");
    if let Some(mut parent) = PARENT.get() {
        // In one piece. Without that process nobody is there who would undo anything.
        if parent.write_all(format!("{line}\n").as_bytes()).is_err() {
            process::exit(EXIT_FAILED);
        }
    }
    told.push(line);
}

/// Has a file written when the case ends, however that happens, or a directory removed if there is
/// nothing to be written.
#[track_caller]
pub fn at_end(path: &str, content: Option<&str>) {
    let content = content.map(|content| format!(" {}", content.trim()));
    tell(&format!("undo {path}{}", content.unwrap_or_default()));
}

/// As [`at_end`], for a change that is about to be made: if it never is, there is nothing to undo.
pub fn at_end_if_done(path: &str, content: &str) {
    tell(&format!("undo ?{path} {content}"));
}

/// Undoes what a case has told to undo, and returns whether that has worked.
fn undo(told: &[String]) -> bool {
    let undo = |what: &str| {
        let (may_fail, what) = match what.strip_prefix('?') {
            Some(what) => (true, what),
            None => (false, what),
        };
        let undone = match what.split_once(' ') {
            Some((path, content)) => fs::write(path, content),
            None => fs::remove_dir(what),
        };
        let failed = |error| diagnostic(&format!("cannot undo {what}: {error}"));
        may_fail || undone.map_err(failed).is_ok()
    };
    let told = told.iter().filter_map(|line| line.strip_prefix("undo "));
    told.rev().fold(true, |good, what| undo(what) && good)
}

/// Says what became of a case, and returns that as an exit code.
fn conclude(number: usize, name: &str, told: &[String], end: &str) -> i32 {
    let end = if undo(told) { end } else { "failed" };
    let (result, code) = match end.split_once(' ') {
        Some((_, reason)) => (format!("ok {number} {name} # SKIP {reason}"), EXIT_SKIP),
        None if end == "ok" => (format!("ok {number} {name}"), EXIT_OK),
        None => (format!("not ok {number} {name}"), EXIT_FAILED),
    };
    say(&result);
    code
}

/// Ends the process of the case, which went well, failed or is to be skipped.
fn end(how: &str) -> ! {
    // Only one thread gets to say what became of the case.
    static ENDED: Mutex<()> = Mutex::new(());
    let _ended = ENDED.lock();
    if STARTED.load(Ordering::Relaxed) {
        // The case hears of it by Process::join().
        diagnostic(&format!("a process of the case: {how}"));
        process::exit(EXIT_FAILED);
    }
    tell(how);
    if PARENT.get().is_some() {
        process::exit(EXIT_OK);
    }
    let told = TOLD.lock().expect("nothing fails with this lock");
    process::exit(conclude(1, CASE.get().unwrap_or(&""), &told, how))
}

/// Ends the case as one that cannot run here.
pub fn skip(reason: impl AsRef<str>) -> ! {
    end(&format!("skip {}", reason.as_ref()))
}

/// Returns what there is, skips the case where there is no such thing or this user may not have it,
/// and fails for any other error.
#[track_caller]
pub fn need<T>(found: io::Result<T>, what: impl AsRef<str>) -> T {
    use io::ErrorKind::*;
    let is_fact = |error: &io::Error| matches!(error.kind(), NotFound | PermissionDenied);
    match found {
        Ok(found) => found,
        Err(error) if is_fact(&error) => skip(format!("{}: {error}", what.as_ref())),
        Err(error) => panic!("{}: {error}", what.as_ref()),
    }
}

/// Prints a line of the report, if there still is somebody who reads it.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Prints something for whoever reads the report.
pub fn diagnostic(text: &str) {
    // What a process prints is marked by the one that has started it for a case.
    let mark = if PARENT.get().is_some() { "" } else { "# " };
    text.lines().for_each(|line| say(&format!("{mark}{line}")));
}

/// Checks that something is as expected, and shows both if it is not.
///
/// What it is may be said in addition, as for [`format!`].
#[macro_export]
macro_rules! expect_eq {
    ($seen:expr, $expected:expr $(,)?) => {
        $crate::expect_eq!($seen, $expected, "{}", stringify!($seen))
    };
    ($seen:expr, $expected:expr, $($what:tt)+) => {
        match (&$seen, &$expected) {
            (seen, expected) => if *seen != *expected {
                panic!(
                    "{}: expected {expected:x?}, saw {seen:x?} (hexadecimal)",
                    format_args!($($what)+),
                );
            }
        }
    };
}

fn panicked(info: &panic::PanicHookInfo<'_>) {
    diagnostic(&info.to_string());
    end("failed")
}

/// Starts a process that begins as a copy of this one and is killed when this one ends, and returns
/// 0 in there.
#[track_caller]
fn fork() -> io::Result<i32> {
    let parent = process::id();
    let threads = fs::read_dir("/proc/self/task").expect("cannot count threads");
    assert_eq!(threads.count(), 1, "other threads may hold locks");
    // SAFETY: This is the only thread.
    let process = unsafe { bindings::fork() };
    if process == 0 {
        let (how, signal) = (bindings::PR_SET_PDEATHSIG, u64::from(bindings::SIGKILL));
        // SAFETY: The call takes numbers only.
        unsafe { bindings::prctl(how as i32, signal) };
        if parent_id() != parent {
            // It has ended before.
            process::exit(EXIT_FAILED);
        }
    }
    match process {
        -1 => Err(io::Error::last_os_error()),
        process => Ok(process),
    }
}

/// Runs a case in this process, which it ends.
fn run_here(case: Case, needs: fn()) -> ! {
    CASE.get_or_init(|| case.name);
    panic::set_hook(Box::new(panicked));
    // With a policy of its own no page is moved, nor unmapped for that, by NUMA balancing.
    // SAFETY: The call takes numbers only.
    unsafe {
        let (call, policy) = (bindings::SYS_set_mempolicy, bindings::LIBKVM_MPOL_LOCAL);
        bindings::syscall(call.into(), policy, 0_u64, 0_u64);
    }
    needs();
    case.needs.iter().for_each(|(_, need)| need());
    (case.run)();
    end("ok")
}

/// A process that a case has started.
#[must_use = "it may fail"]
pub struct Process(i32);

/// Starts a process that does something.
///
/// What it has in common with this one is memory that is shared; KVM does not work for it, so it
/// must not use a [`Vcpu`]. No other thread may have been started before.
#[track_caller]
pub fn start_process(run: impl FnOnce()) -> Process {
    match fork().expect("fork failed") {
        0 => {
            STARTED.store(true, Ordering::Relaxed);
            run();
            process::exit(EXIT_OK)
        }
        process => Process(process),
    }
}

impl Process {
    /// Waits until the process has ended, and fails if that has failed.
    #[track_caller]
    pub fn join(self) {
        let mut status = 0;
        // SAFETY: There is room for the status.
        let waited = unsafe { bindings::waitpid(self.0, &mut status, 0) };
        assert_eq!(waited, self.0, "waitpid failed");
        assert_eq!(status, 0, "the other process has failed");
    }
}

/// What comes from the process of a case.
struct Output {
    /// What it tells.
    told: UnixStream,
    text: Vec<u8>,
    /// What it prints.
    printed: UnixStream,
    /// The end of that, which is half a line.
    rest: Vec<u8>,
}

impl Output {
    /// Takes what is there, but not more than fits into a connection, as it may go on for ever.
    ///
    /// Prints what the process has printed, so that nobody takes it for a part of the report, but
    /// for half a line, if that is not too long or `all` there will be.
    fn take(&mut self, all: bool) {
        const FULL: u64 = 1 << 20;
        let _ = (&self.told).take(FULL).read_to_end(&mut self.text);
        let _ = (&self.printed).take(FULL).read_to_end(&mut self.rest);
        let lines = match self.rest.iter().rposition(|byte| *byte == b'\n') {
            _ if all || self.rest.len() as u64 >= FULL => self.rest.len(),
            last => last.map_or(0, |last| last + 1),
        };
        let lines: Vec<u8> = self.rest.drain(..lines).collect();
        let print = |line: &str| say(&format!("# {line}"));
        String::from_utf8_lossy(&lines).lines().for_each(print);
    }
}

/// Waits for a process until it has ended or is given up, by how long that takes.
fn wait(
    process: i32,
    output: &mut Output,
    is_given_up: impl Fn(Duration) -> bool,
) -> Option<process::ExitStatus> {
    let start = Instant::now();
    loop {
        let mut status = 0;
        // SAFETY: There is room for the status.
        let ended = unsafe { bindings::waitpid(process, &mut status, bindings::WNOHANG as i32) };
        output.take(false);
        if ended != 0 {
            assert_eq!(ended, process, "cannot wait for a process");
            return Some(process::ExitStatus::from_raw(status));
        }
        if is_given_up(start.elapsed()) {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Returns a connection of two processes, of which the first does not wait for the second.
fn connection() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("cannot connect to a process");
    ours.set_nonblocking(true).expect("cannot change a socket");
    (ours, theirs)
}

/// Runs a case in a process of its own and returns how it ended, as an exit code.
///
/// It does not run the program anew: what libkvm does when a program starts, it creates the largest
/// of all VMs, can take longer than the case.
fn run_apart(number: usize, case: Case, needs: fn()) -> i32 {
    let ((told, theirs), (printed, stdout)) = (connection(), connection());
    // SAFETY: Null stands for all that C has to print, which the other process would print again.
    unsafe { fflush(ptr::null_mut()) };
    let process = match fork() {
        Ok(0) => {
            // SAFETY: The calls take numbers only.
            unsafe {
                bindings::setpgid(0, 0);
                bindings::dup2(stdout.as_raw_fd(), 1);
                bindings::dup2(stdout.as_raw_fd(), 2);
            }
            // Else this process would not see that nobody is there any more.
            drop((told, printed));
            PARENT.get_or_init(|| theirs);
            run_here(case, needs)
        }
        Ok(process) => process,
        Err(error) => {
            diagnostic(&format!("fork failed: {error}"));
            return conclude(number, case.name, &[], "failed");
        }
    };
    // SAFETY: The call takes numbers only, and does what the other process may not have done yet.
    unsafe { bindings::setpgid(process, process) };
    drop((theirs, stdout));
    let mut output = Output {
        told,
        text: Vec::new(),
        printed,
        rest: Vec::new(),
    };
    let is_told = || STOP.load(Ordering::Relaxed);
    let status = wait(process, &mut output, |time| time >= limit() || is_told());
    // SAFETY: The group is the case's: itself if it is too slow, and what it has left behind.
    unsafe { bindings::kill(-process, bindings::SIGKILL as i32) };
    let is_late = |time| time >= Duration::from_secs(10);
    let killed = status.or_else(|| wait(process, &mut output, is_late));
    output.take(true);

    let told: Vec<String> = String::from_utf8_lossy(&output.text)
        .lines()
        .map(str::to_string)
        .collect();
    let end = told.iter().find(|line| !line.starts_with("undo "));
    let why = match (status, killed) {
        (_, None) => format!("cannot be killed after {:?}", limit()),
        (None, _) if is_told() => "told to end".into(),
        (None, _) => format!("not done after {:?}", limit()),
        (Some(status), _) => match (status.code(), status.signal(), end) {
            (Some(EXIT_OK), _, Some(end)) => return conclude(number, case.name, &told, end),
            // libkvm has said why.
            (Some(EXIT_SKIP), _, None) => {
                return conclude(number, case.name, &told, "skip by libkvm")
            }
            (Some(code), _, _) => format!("exited with {code}"),
            (None, signal, _) => format!("killed by signal {}", signal.unwrap_or(0)),
        },
    };
    diagnostic(&why);
    conclude(number, case.name, &told, "failed")
}

/// What the program was asked to do.
struct Arguments {
    names: Vec<String>,
    here: Option<String>,
}

/// Ends the program because of what it was asked for.
fn wrong(what: &str) -> ! {
    eprintln!("{what}; -h shows what there is");
    process::exit(EXIT_FAILED)
}

fn help(about: &str) -> ! {
    println!(
        "{about}\n\n\
        Usage: [-l] [-t SECONDS] [-c] [CASE...]\n\n  \
        -l  list the cases, with what they need\n  \
        -t  how long a case may take, {} seconds if not said\n  \
        -c  run one case in this process, e.g. in a debugger: it may take as long as it\n      \
            wants, and undoes nothing if it is killed\n\n\
        Root sees more: stage 2 in debugfs, userfaultfd, trace events, broken memory.\n\
        Until a case of root ends it changes KSM and tracing, and takes pages out of use.",
        limit().as_secs()
    );
    process::exit(EXIT_OK)
}

fn arguments(about: &str, cases: &[Case]) -> Arguments {
    let mut arguments = Arguments {
        names: Vec::new(),
        here: None,
    };
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .unwrap_or_else(|| wrong(&format!("{word} of what?")))
        };
        match word.as_str() {
            "-h" | "--help" => help(about),
            "-l" => {
                for case in cases {
                    let needs: String = case.needs.iter().map(|need| need.0).collect();
                    println!("{}{}", case.name, needs);
                }
                process::exit(EXIT_OK)
            }
            "-t" => {
                let text = value();
                let no_number = |_| wrong(&format!("'{text}' is no number"));
                let seconds = text.parse().unwrap_or_else(no_number);
                let set = LIMIT.set(Duration::from_secs(seconds));
                set.unwrap_or_else(|_| wrong("-t is there twice"));
            }
            "-c" => arguments.here = Some(value()),
            _ if word.starts_with('-') => wrong(&format!("there is no option {word}")),
            _ => arguments.names.push(word),
        }
    }
    if arguments.here.is_some() && !arguments.names.is_empty() {
        wrong("-c takes one case");
    }
    arguments
}

/// Does what the program was asked to do with its cases, all of which need `needs`, and ends it.
pub fn run(about: &str, needs: fn(), cases: &[Case]) -> ! {
    let arguments = arguments(about, cases);
    let find = |name: &String| {
        let found = cases.iter().find(|case| case.name == name);
        *found.unwrap_or_else(|| wrong(&format!("there is no case {name}")))
    };
    if let Some(name) = &arguments.here {
        // Unless -t says something else.
        let _ = LIMIT.set(Duration::MAX);
        say("TAP version 13\n1..1");
        run_here(find(name), needs);
    }
    let chosen: Vec<Case> = match arguments.names.as_slice() {
        [] => cases.to_vec(),
        names => names.iter().map(find).collect(),
    };

    // Where this signal is ignored, as whoever has started the program may have it, nobody can wait
    // for a process.
    // SAFETY: There is no handler.
    unsafe { bindings::signal(bindings::SIGCHLD as c_int, None) };
    for signal in [bindings::SIGHUP, bindings::SIGINT, bindings::SIGTERM] {
        // What is ignored, which is 1 in place of a function, stays so: nohup(1) wants that.
        // SAFETY: The handler stores a value and does nothing else.
        unsafe {
            let before = bindings::signal(signal as c_int, Some(stop));
            if before.is_some_and(|handler| handler as usize == 1) {
                bindings::signal(signal as c_int, before);
            }
        }
    }
    say(&format!("TAP version 13\n1..{}", chosen.len()));
    let mut codes = Vec::new();
    for (index, case) in chosen.iter().enumerate() {
        codes.push(run_apart(index + 1, *case, needs));
        if STOP.load(Ordering::Relaxed) {
            say("Bail out! told to end");
            process::exit(EXIT_FAILED)
        }
    }
    let count = |code| codes.iter().filter(|&&other| other == code).count();
    let (passed, failed, skipped) = (count(EXIT_OK), count(EXIT_FAILED), count(EXIT_SKIP));
    say(&format!(
        "# Totals: pass:{passed} fail:{failed} xfail:0 xpass:0 skip:{skipped} error:0"
    ));
    process::exit(match (failed, passed) {
        (0, 0) => EXIT_SKIP,
        (0, _) => EXIT_OK,
        _ => EXIT_FAILED,
    })
}

/// Makes a test program of a list of cases, each a function without arguments, or a name and what
/// it runs: `case = || check(Backing::Shmem)`.
///
/// What a case needs and others do not stands behind its name, as a function that skips the case:
/// `case: needs_helper`.
#[macro_export]
macro_rules! test_main {
    (@run $case:ident) => {
        $case
    };
    (@run $case:ident $run:expr) => {
        $run
    };
    (
        about: $about:literal,
        $(needs: $needs:expr,)?
        cases: [$($case:ident $(: $need:ident)? $(= $run:expr)?),+ $(,)?] $(,)?
    ) => {
        fn main() {
            $crate::ktap::run(
                $about,
                || {
                    $($needs())?
                },
                &[$($crate::ktap::Case {
                    name: stringify!($case),
                    run: $crate::test_main!(@run $case $($run)?),
                    needs: &[$((concat!(": ", stringify!($need)), $need))?],
                }),+],
            )
        }
    };
}
