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
        BufRead,
        BufReader,
        Read,
        Write, //
    },
    os::{
        fd::AsRawFd,
        unix::{
            net::UnixStream,
            process::ExitStatusExt, //
        },
    },
    panic::{
        self,
        PanicHookInfo, //
    },
    process::{
        self,
        ExitStatus, //
    },
    ptr,
    sync::{
        Mutex,
        OnceLock, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
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

/// Returns how long a case may take. Where kselftest's runner gives all of them so many seconds,
/// one that hangs leaves most of these to the others.
fn limit() -> Duration {
    *LIMIT.get_or_init(|| {
        let all = env::var("kselftest_timeout").ok();
        let all = all.and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
        Duration::from_secs(match all {
            0 => 100,
            _ => (all / 3).clamp(1, 100),
        })
    })
}

/// Waits until something is so, and fails if that takes half of the time that the case has.
#[track_caller]
pub fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        let waited = start.elapsed();
        assert!(waited < limit() / 2, "waited {waited:.1?} for {what}");
        thread::sleep(Duration::from_micros(50));
    }
}

/// The case that this process runs.
static CASE: OnceLock<&str> = OnceLock::new();

/// What others have to know of it, a line each: what to [`undo`], and how it ended.
static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The process that has started this one for a case. It is told all of that as well, and so knows
/// it when this one is killed.
static PARENT: OnceLock<UnixStream> = OnceLock::new();

fn tell(line: String) {
    if let Some(mut parent) = PARENT.get() {
        writeln!(parent, "{line}").expect("cannot tell the other process");
    }
    TOLD.lock()
        .expect("nothing fails with this lock")
        .push(line);
}

/// Has a file written when the case ends, however that happens, or a directory removed if there is
/// nothing to be written.
pub fn at_end(path: &str, content: Option<&str>) {
    let content = content.map(|content| format!(" {}", content.trim()));
    tell(format!("undo {path}{}", content.unwrap_or_default()));
}

/// Undoes what a case has told to undo, and returns whether that has worked.
fn undo(told: &[String]) -> bool {
    let undo = |what: &str| {
        let undone = match what.split_once(' ') {
            Some((path, content)) => fs::write(path, content),
            None => fs::remove_dir(what),
        };
        let failed = |error| diagnostic(&format!("cannot undo {what}: {error}"));
        undone.map_err(failed).is_ok()
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
    println!("{result}");
    code
}

/// Ends the process of the case, which went well, failed or is to be skipped.
fn end(how: &str) -> ! {
    // Only one thread gets to say what became of the case.
    static ENDED: Mutex<()> = Mutex::new(());
    let _ended = ENDED.lock();
    tell(how.into());
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

/// Prints a line for whoever reads the report.
pub fn diagnostic(text: &str) {
    for line in text.lines() {
        println!("# {line}");
    }
}

/// Checks that something is as expected, and shows both if it is not. What it is may be said in
/// addition, as for [`format!`].
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

fn panicked(info: &PanicHookInfo<'_>) {
    diagnostic(&info.to_string());
    end("failed")
}

/// Runs a case in this process, which it ends.
fn run_here(case: Case, needs: fn()) -> ! {
    // SAFETY: The call takes numbers only.
    unsafe { bindings::prctl(bindings::PR_SET_PDEATHSIG as i32, bindings::SIGKILL) };
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

/// Starts a process that does something. What it has in common with this one is memory that is
/// shared; KVM does not work for it. No other thread may have been started before.
#[track_caller]
pub fn start_process(run: impl FnOnce()) -> Process {
    let threads = fs::read_dir("/proc/self/task").expect("cannot count threads");
    assert_eq!(threads.count(), 1, "other threads may hold locks");
    // SAFETY: This is the only thread.
    match unsafe { bindings::fork() } {
        0 => {
            panic::set_hook(Box::new(|info| {
                diagnostic(&info.to_string());
                process::exit(EXIT_FAILED)
            }));
            run();
            process::exit(EXIT_OK)
        }
        -1 => panic!("fork failed: {}", io::Error::last_os_error()),
        process => Process(process),
    }
}

impl Process {
    /// Waits until the process has ended, and fails if it has.
    #[track_caller]
    pub fn join(self) {
        let mut status = 0;
        // SAFETY: There is room for the status.
        let waited = unsafe { bindings::waitpid(self.0, &mut status, 0) };
        assert_eq!(waited, self.0, "waitpid failed");
        assert_eq!(status, 0, "the other process has failed");
    }
}

/// What a process prints.
struct Output {
    from: BufReader<UnixStream>,
    line: Vec<u8>,
}

impl Output {
    /// Prints what there is, so that nobody takes it for a part of the report.
    fn print(&mut self) {
        while let Ok(1..) = self.from.read_until(b'\n', &mut self.line) {
            let line = String::from_utf8_lossy(&self.line);
            let mark = if line.starts_with('#') { "" } else { "# " };
            println!("{mark}{}", line.trim_end());
            self.line.clear();
        }
    }
}

/// Waits for a process, but not for ever.
fn wait(process: i32, limit: Duration, output: &mut Output) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        let mut status = 0;
        // SAFETY: There is room for the status.
        let ended = unsafe { bindings::waitpid(process, &mut status, bindings::WNOHANG as i32) };
        output.print();
        if ended != 0 {
            assert_eq!(ended, process, "cannot wait for a process");
            return Some(ExitStatus::from_raw(status));
        }
        if start.elapsed() >= limit {
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
    let ((mut ours, theirs), (output, stdout)) = (connection(), connection());
    // SAFETY: Null stands for all that C has to print, which the other process would print again.
    unsafe { fflush(ptr::null_mut()) };
    // SAFETY: This is the only thread.
    let process = match unsafe { bindings::fork() } {
        0 => {
            // SAFETY: The calls take numbers only.
            unsafe {
                bindings::setpgid(0, 0);
                bindings::dup2(stdout.as_raw_fd(), 1);
            }
            PARENT.get_or_init(|| theirs);
            run_here(case, needs)
        }
        -1 => panic!("fork failed: {}", io::Error::last_os_error()),
        process => process,
    };
    drop((theirs, stdout));
    let mut output = Output {
        from: BufReader::new(output),
        line: Vec::new(),
    };
    let status = wait(process, limit(), &mut output);
    // SAFETY: The group is the case's: itself if it is too slow, and what it has left behind.
    unsafe { bindings::kill(-process, bindings::SIGKILL as i32) };
    let killed = status.or_else(|| wait(process, Duration::from_secs(10), &mut output));

    let mut told = Vec::new();
    // To its end, or to where the process has not written on.
    let _ = ours.read_to_end(&mut told);
    let told: Vec<String> = String::from_utf8_lossy(&told)
        .lines()
        .map(str::to_string)
        .collect();
    let end = told.iter().find(|line| !line.starts_with("undo "));
    let why = match (status, killed) {
        (_, None) => format!("cannot be killed after {:?}", limit()),
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
        -c  run one case in this process, without a limit, e.g. in a debugger\n\n\
        Root sees more: stage 2 in debugfs, userfaultfd, trace events, broken memory.",
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
                let (text, wrong) = (value(), |text| wrong(&format!("'{text}' is no number")));
                let seconds = text.parse().unwrap_or_else(|_| wrong(&text));
                LIMIT.get_or_init(|| Duration::from_secs(seconds));
            }
            "-c" => arguments.here = Some(value()),
            _ if word.starts_with('-') => wrong(&format!("there is no option {word}")),
            _ => arguments.names.push(word),
        }
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
        run_here(find(name), needs);
    }
    let chosen: Vec<Case> = match arguments.names.as_slice() {
        [] => cases.to_vec(),
        names => names.iter().map(find).collect(),
    };

    println!("TAP version 13\n1..{}", chosen.len());
    let codes: Vec<i32> = chosen
        .iter()
        .enumerate()
        .map(|(index, case)| run_apart(index + 1, *case, needs))
        .collect();
    let count = |code| codes.iter().filter(|&&other| other == code).count();
    let (passed, failed, skipped) = (count(EXIT_OK), count(EXIT_FAILED), count(EXIT_SKIP));
    println!("# Totals: pass:{passed} fail:{failed} xfail:0 xpass:0 skip:{skipped} error:0");
    process::exit(match (failed, passed) {
        (0, 0) => EXIT_SKIP,
        (0, _) => EXIT_OK,
        _ => EXIT_FAILED,
    })
}

/// Makes a test program of a list of cases, each a function without arguments. What a case needs
/// and others do not stands behind it, as a function that skips the case: `case: needs_helper`.
#[macro_export]
macro_rules! test_main {
    (
        about: $about:literal,
        needs: $needs:expr,
        cases: [$($case:ident $(: $need:ident)?),+ $(,)?] $(,)?
    ) => {
        fn main() {
            $crate::ktap::run(
                $about,
                $needs,
                &[$($crate::ktap::Case {
                    name: stringify!($case),
                    run: $case,
                    needs: &[$((concat!(": ", stringify!($need)), $need))?],
                }),+],
            )
        }
    };
}
