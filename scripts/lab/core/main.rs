// SPDX-License-Identifier: GPL-2.0-only

//! Compares the core of KVM/arm64's userfault helper with an oracle, on the host.
//!
//! The oracle says what the core has to answer in the most naive way, page by page. First come all
//! small cases, then random ones, each with a seed of its own.
//!
//! usage: main FIRST-SEED CASES
//!
//! `oracle.py` compiles this where the directory `userfault` is that of the kernel tree.

use std::{
    env,
    panic,
    process,
    thread, //
};

#[path = "userfault/chunk.rs"]
mod chunk;
#[path = "userfault/marks.rs"]
mod marks;
#[path = "userfault/size.rs"]
mod size;
#[path = "userfault/slot.rs"]
mod slot;

mod oracle;
mod random;
mod world;

use random::Random;
use world::World;

/// Compares the answers about all bitmaps of few pages, on both sides of a word's border.
fn small_cases() {
    for first in 56..=64 {
        for bits in 0..=u8::MAX {
            let world = World::small(first, bits);
            for start in world.pages.clone() {
                for end in start..=world.pages.end {
                    oracle::marks(&world, start..end, 2);
                }
            }
            oracle::chunks(&world, 1);
        }
    }
}

/// Compares the answers about the world of a seed.
fn random_case(seed: u64) {
    let mut random = Random::new(seed);
    oracle::numbers(&mut random);
    oracle::sizes(&mut random);

    let world = World::new(&mut random);
    let start = random.within(&world.pages);
    let last = random.within(&(start..world.pages.end));
    let words = random.below(5) as usize;
    oracle::marks(&world, start..last + 1, words);
    oracle::size(&world, &mut random);
    oracle::chunks(&world, words);
    oracle::resume(&world, &mut random);
}

fn main() {
    let numbers: Vec<u64> = env::args().skip(1).flat_map(|word| word.parse()).collect();
    let [first, count] = numbers[..] else {
        panic!("usage: main FIRST-SEED CASES");
    };

    small_cases();

    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for seed in (first..first + count).skip(thread).step_by(threads) {
                    if panic::catch_unwind(|| random_case(seed)).is_err() {
                        eprintln!("with --seed {seed}");
                        process::exit(1);
                    }
                }
            });
        }
    });
}
