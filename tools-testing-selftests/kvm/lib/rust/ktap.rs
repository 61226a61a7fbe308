// SPDX-License-Identifier: GPL-2.0-only

//! Runs the cases of a test program and reports them in KTAP.

use std::{
    any::Any,
    env, panic, process,
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
};

/// A case: its name and what it does. It fails by a panic.
pub type Case = (&'static str, fn());

/// What kselftest's runner takes for a program that had nothing to run.
const EXIT_SKIP: i32 = 4;

/// The payload of the panic by which a case is skipped.
struct Skip(String);

/// Ends the case that runs, as one that cannot run here.
pub fn skip(reason: impl Into<String>) -> ! {
    panic::panic_any(Skip(reason.into()))
}

/// Ends the program, as one that cannot run here.
pub fn skip_all(reason: &str) -> ! {
    println!("1..0 # SKIP {reason}");
    process::exit(EXIT_SKIP)
}

/// Tells other threads that it is time to end: when it is dropped, be it by a panic.
pub struct Finish<'a>(pub &'a AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Prints a line for whoever reads the report.
pub fn diagnostic(text: &str) {
    for line in text.lines() {
        println!("# {line}");
    }
}

/// Prints the start of the report.
pub fn begin() {
    println!("TAP version 13");
    panic::set_hook(Box::new(|info| {
        if !info.payload().is::<Skip>() {
            diagnostic(&info.to_string());
        }
    }));
}

/// Returns why a case that has panicked was skipped, or [`None`] if it failed.
fn skipped(payload: &(dyn Any + Send)) -> Option<&str> {
    payload.downcast_ref::<Skip>().map(|skip| skip.0.as_str())
}

/// Returns those of the cases that the program's arguments name, or all if they name none.
fn chosen(cases: &[Case]) -> Vec<Case> {
    let names: Vec<String> = env::args()
        .skip(1)
        .filter(|word| !is_option(word))
        .collect();
    for name in &names {
        if !cases.iter().any(|case| case.0 == name) {
            println!("Bail out! there is no case {name}");
            process::exit(1);
        }
    }
    let is_chosen = |case: &&Case| names.is_empty() || names.iter().any(|name| case.0 == name);
    cases.iter().filter(is_chosen).copied().collect()
}

fn is_option(word: &str) -> bool {
    word.starts_with('-')
}

/// Returns whether the program was started with an option.
pub fn has_option(option: &str) -> bool {
    env::args().skip(1).any(|word| word == option)
}

/// Runs the cases that were asked for, reports each, and ends the program.
pub fn run(cases: &[Case]) -> ! {
    let cases = chosen(cases);
    let (mut failed, mut skips) = (0, 0);

    println!("1..{}", cases.len());
    for (index, (name, case)) in cases.iter().enumerate() {
        let number = index + 1;
        match panic::catch_unwind(case) {
            Ok(()) => println!("ok {number} {name}"),
            Err(payload) => match skipped(&*payload) {
                Some(reason) => {
                    skips += 1;
                    println!("ok {number} {name} # SKIP {reason}");
                }
                None => {
                    failed += 1;
                    println!("not ok {number} {name}");
                }
            },
        }
    }
    println!(
        "# Totals: pass:{} fail:{failed} xfail:0 xpass:0 skip:{skips} error:0",
        cases.len() - failed - skips
    );
    process::exit(match (failed, skips == cases.len()) {
        (0, false) => 0,
        (0, true) => EXIT_SKIP,
        _ => 1,
    })
}

/// Makes a test program of a list of cases, each a function without arguments.
///
/// `needs` runs first and may end the program by [`skip_all`].
#[macro_export]
macro_rules! test_main {
    (needs: $needs:expr, cases: [$($case:ident),+ $(,)?]) => {
        /// The program's entry point, called by the C library.
        #[no_mangle]
        pub extern "C" fn main() -> core::ffi::c_int {
            $crate::ktap::begin();
            $needs();
            $crate::ktap::run(&[$((stringify!($case), $case as fn())),+])
        }
    };
}
