// SPDX-License-Identifier: GPL-2.0-only

//! Cases that fail, hang, skip and crash on purpose, each in all ways, to see what ktap makes of it.
//! Run with `-t 2`.

use libkvm::*;
use std::{
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

fn cleans_up() {
    ktap::at_end(|| ktap::diagnostic("cleaned up"));
    panic!("on purpose");
}

fn leaves_a_process_behind() {
    let child = process::Command::new("sleep").arg("1000").spawn();
    let pid = child.expect("no sleep").id();
    ktap::diagnostic(&format!("left behind: {pid}"));
}

fn needs_nothing() {}

test_main! {
    about: "Cases that fail, hang, skip and crash on purpose.",
    needs: needs_nothing,
    cases: [
        passes,
        fails,
        fails_in_a_thread,
        skips,
        skips_in_a_thread,
        hangs,
        aborts,
        exits,
        cleans_up,
        leaves_a_process_behind,
    ],
}
