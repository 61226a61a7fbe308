// SPDX-License-Identifier: GPL-2.0-only

//! Runs the cases of a test program, each in a process of its own, and reports them in KTAP.
//!
//! A case ends well by returning, is skipped by [`skip`] and fails by a panic, in whatever thread
//! that happens. Its process ends then and there, and so does all that it has started.

use crate::bindings;
use std::{
    env,
    os::unix::process::{
        CommandExt,
        ExitStatusExt, //
    },
    panic::{
        self,
        PanicHookInfo, //
    },
    process::{
        self,
        Child,
        Command,
        ExitStatus, //
    },
    sync::Mutex,
    thread,
    time::{
        Duration,
        Instant, //
    },
};

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

/// How long a case may take.
const LIMIT: Duration = Duration::from_secs(100);

/// How the process of a case ends that has told by itself what became of it.
const EXIT_OK: i32 = 0;
const EXIT_FAILED: i32 = 1;
const EXIT_SKIPPED: i32 = 3;

/// What is to be undone when the process of a case ends, however it does.
static CLEANUPS: Mutex<Vec<Box<dyn FnOnce() + Send>>> = Mutex::new(Vec::new());

/// Has a function run when the case ends, be it by a failure.
pub fn at_end(cleanup: impl FnOnce() + Send + 'static) {
    let mut cleanups = CLEANUPS.lock().expect("another thread has failed");
    cleanups.push(Box::new(cleanup));
}

/// Ends the process of the case.
fn end(result: &str, code: i32) -> ! {
    // Only one thread gets to say what became of the case.
    static ENDED: Mutex<()> = Mutex::new(());
    let _ended = ENDED.lock();
    println!("{result}");
    let cleanups = CLEANUPS
        .lock()
        .map(|mut cleanups| std::mem::take(&mut *cleanups));
    cleanups.into_iter().flatten().for_each(|cleanup| cleanup());
    process::exit(code)
}

/// Ends the case as one that cannot run here.
pub fn skip(reason: impl AsRef<str>) -> ! {
    let reason = reason.as_ref();
    end(&format!("{} # SKIP {reason}", ok()), EXIT_SKIPPED)
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
                panic!("{}: expected {expected:x?}, saw {seen:x?}", format_args!($($what)+));
            }
        }
    };
}

/// The number and the name of the case that this process runs.
static RUNNING: Mutex<(usize, &str)> = Mutex::new((0, ""));

/// Returns the beginning of the line that says that the case is fine.
fn ok() -> String {
    let (number, name) = *RUNNING.lock().expect("nothing can fail while it is locked");
    format!("ok {number} {name}")
}

fn panicked(info: &PanicHookInfo<'_>) {
    diagnostic(&info.to_string());
    end(&format!("not {}", ok()), EXIT_FAILED)
}

/// Runs a case in this process, which it ends.
fn run_here(number: usize, case: Case, needs: fn()) -> ! {
    // SAFETY: The call takes numbers only.
    unsafe { bindings::prctl(bindings::PR_SET_PDEATHSIG as i32, bindings::SIGKILL) };
    *RUNNING.lock().expect("nothing can fail while it is locked") = (number, case.name);
    panic::set_hook(Box::new(panicked));
    needs();
    case.needs.iter().for_each(|(_, need)| need());
    (case.run)();
    end(&ok(), EXIT_OK)
}

/// Waits for a process until a moment has come.
fn wait_until(child: &mut Child, late: Instant) -> Option<ExitStatus> {
    loop {
        let status = child.try_wait().expect("cannot wait for a process");
        if status.is_some() || Instant::now() >= late {
            return status;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a case in a process of its own, to which `number` is told, and returns how it ended.
fn run_apart(number: usize, case: Case, limit: Duration) -> i32 {
    let program = env::current_exe().expect("cannot tell which program this is");
    let mut child = Command::new(program)
        .args(["-c", case.name, "-n", &number.to_string()])
        .process_group(0)
        .spawn()
        .expect("cannot start a process");
    let status = wait_until(&mut child, Instant::now() + limit);
    // SAFETY: The group is the case's: itself if it is too slow, and what it has left behind.
    unsafe { bindings::kill(-(child.id() as i32), bindings::SIGKILL as i32) };
    let ended = status.or_else(|| wait_until(&mut child, Instant::now() + LIMIT / 10));

    let why = match (status, ended) {
        (_, None) => format!("cannot be killed after {} s", limit.as_secs()),
        (None, _) => format!("not done after {} s", limit.as_secs()),
        (Some(status), _) => match (status.code(), status.signal()) {
            (Some(code @ (EXIT_OK | EXIT_FAILED | EXIT_SKIPPED)), _) => return code,
            // libkvm has said why.
            (Some(EXIT_SKIP), _) => {
                println!("ok {number} {} # SKIP by libkvm", case.name);
                return EXIT_SKIPPED;
            }
            (Some(code), _) => format!("exited with {code}"),
            (None, signal) => format!("killed by signal {}", signal.unwrap_or(0)),
        },
    };
    diagnostic(&why);
    println!("not ok {number} {}", case.name);
    EXIT_FAILED
}

/// What the program was asked to do.
struct Arguments {
    names: Vec<String>,
    here: Option<String>,
    number: usize,
    limit: Duration,
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
        LIMIT.as_secs()
    );
    process::exit(EXIT_OK)
}

fn arguments(about: &str, cases: &[Case]) -> Arguments {
    let mut arguments = Arguments {
        names: Vec::new(),
        here: None,
        number: 1,
        limit: LIMIT,
    };
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .unwrap_or_else(|| wrong(&format!("{word} of what?")))
        };
        let number = |text: String| {
            text.parse::<usize>()
                .unwrap_or_else(|_| wrong(&format!("'{text}' is no number")))
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
            "-t" => arguments.limit = Duration::from_secs(number(value()) as u64),
            "-c" => arguments.here = Some(value()),
            // Of the case in the report of whoever has started this process.
            "-n" => arguments.number = number(value()),
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
        run_here(arguments.number, find(name), needs);
    }
    let chosen: Vec<Case> = match arguments.names.as_slice() {
        [] => cases.to_vec(),
        names => names.iter().map(find).collect(),
    };

    println!("TAP version 13\n1..{}", chosen.len());
    let codes: Vec<i32> = chosen
        .iter()
        .enumerate()
        .map(|(index, case)| run_apart(index + 1, *case, arguments.limit))
        .collect();
    let count = |code| codes.iter().filter(|&&other| other == code).count();
    let (passed, failed, skipped) = (count(EXIT_OK), count(EXIT_FAILED), count(EXIT_SKIPPED));
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
