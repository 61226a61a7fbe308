// SPDX-License-Identifier: GPL-2.0-only

//! Cases that fail, hang, skip and crash on purpose, each in all ways, to see what ktap makes of it.
//! Run with `-t 2`.

use libkvm::*;
use std::{
    fs,
    io::Write,
    process,
    thread, //
};

fn passes() {}

fn fails() {
    expect_eq!(0x10, 0x20, "on purpose");
}

fn fails_in_a_thread() {
    thread::scope(|scope| {
        scope.spawn(|| expect_eq!(0x10, 0x20));
        loop {
            thread::park();
        }
    });
}

fn skips() {
    ktap::skip("on purpose");
}

fn skips_in_a_thread() {
    thread::spawn(|| ktap::skip("on purpose"));
    loop {
        thread::park();
    }
}

fn skips_in_a_process() {
    ktap::start_process(|| ktap::skip("on purpose")).join();
}

fn hangs() {
    loop {
        thread::park();
    }
}

fn aborts() {
    process::abort();
}

fn exits() {
    process::exit(7);
}

/// A file for what is to be undone.
const FILE: &str = "/tmp/ktap_on_purpose";

fn is_killed_before_it_undoes() {
    let _process = ktap::start_process(|| {
        ktap::diagnostic(&format!("left behind: {}", process::id()));
        hangs();
    });
    ktap::at_end(FILE, Some("undone"));
    fs::write(FILE, "done").unwrap();
    hangs();
}

fn sees_what_was_undone() {
    expect_eq!(fs::read_to_string(FILE).unwrap(), "undone");
    fs::remove_file(FILE).unwrap();
    fs::create_dir(FILE).unwrap();
    ktap::at_end(FILE, None);
}

fn sees_what_was_removed() {
    expect_eq!(fs::metadata(FILE).is_err(), true);
}

fn cannot_be_undone() {
    ktap::at_end("/proc/none", Some("1"));
}

fn tells_more_than_fits_in_a_pipe() {
    let tell = || (0..1000).for_each(|_| ktap::at_end("/dev/null", Some("one\ntwo")));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(tell);
        }
    });
}

fn waits_in_vain() {
    ktap::wait_for("something that never happens", || false);
}

fn prints_another_result() {
    println!("not ok 1 passes");
    println!("# Totals: pass:99 fail:0 xfail:0 xpass:0 skip:0 error:0");
    eprintln!("to the other stream");
    print!("half a line");
}

fn prints_for_ever() {
    loop {
        ktap::diagnostic("again");
    }
}

fn prints_for_ever_without_an_end_of_line() {
    let mut out = std::io::stdout();
    while out.write_all(&[b'.'; 4096]).and_then(|()| out.flush()).is_ok() {}
}

fn leaves_a_process_behind() {
    let child = process::Command::new("sleep").arg("1000").spawn();
    let pid = child.expect("no sleep").id();
    ktap::diagnostic(&format!("left behind: {pid}"));
}

fn needs_nothing() {}

fn need_that_skips() {
    ktap::skip("there is none");
}

fn need_that_fails() {
    panic!("cannot be asked");
}

fn undoes_what_was_never_done() {
    ktap::at_end_if_done("/proc/none", "1");
}

test_main! {
    about: "Cases that fail, hang, skip and crash on purpose.",
    needs: needs_nothing,
    cases: [
        passes,
        fails,
        fails_in_a_thread,
        skips,
        skips_in_a_thread,
        skips_in_a_process,
        hangs,
        aborts,
        exits,
        is_killed_before_it_undoes,
        sees_what_was_undone,
        sees_what_was_removed,
        cannot_be_undone,
        undoes_what_was_never_done,
        passes: need_that_skips,
        passes: need_that_fails,
        tells_more_than_fits_in_a_pipe,
        waits_in_vain,
        prints_another_result,
        prints_for_ever,
        prints_for_ever_without_an_end_of_line,
        leaves_a_process_behind,
    ],
}
