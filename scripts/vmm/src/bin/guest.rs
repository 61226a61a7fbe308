// SPDX-License-Identifier: GPL-2.0-only
//! The first program of the guest: fills most of the memory with what it can verify, and goes on
//! to verify and change it, a thread a CPU. A page that comes back with a wrong byte, without
//! content or in an older state is noticed in the next round.
//!
//! On the kernel's command line `rounds=N` says after how many rounds it powers off, `pause=MS` how
//! long it rests after each, and `megabytes=N` how much it verifies. When something is wrong it
//! says so and resets the machine.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PAGE: usize = 4096;
const WORDS: usize = PAGE / 8;

/// The first word of each page, so that tests find the pages of this program in a snapshot.
const MAGIC: u64 = 0x6673_7561_6c74_7566;

/// What a word of a page is in a generation of the page.
fn word(page: usize, generation: u32, index: usize) -> u64 {
    if index == 0 {
        return MAGIC;
    }
    // One round of splitmix64 over what makes the word different from all others.
    let mut mixed = ((page as u64) << 41) ^ (u64::from(generation) << 9) ^ index as u64;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The pages of a thread, and of each the generation that it is in.
struct Part<'a> {
    first: usize,
    words: &'a mut [u64],
    generations: Vec<u32>,
}

impl Part<'_> {
    fn fill(&mut self, page: usize, generation: u32) {
        self.generations[page] = generation;
        for (index, target) in self.words[page * WORDS..][..WORDS].iter_mut().enumerate() {
            *target = word(self.first + page, generation, index);
        }
    }

    fn verify(&self, page: usize) -> Result<(), String> {
        let generation = self.generations[page];
        for (index, have) in self.words[page * WORDS..][..WORDS].iter().enumerate() {
            let want = word(self.first + page, generation, index);
            if *have != want {
                let page = self.first + page;
                return Err(format!(
                    "word {index} of page {page} is {have:#018x}, not {want:#018x}"
                ));
            }
        }
        Ok(())
    }

    /// Verifies all pages, in an order of its own each time, and changes one of eight.
    fn round(&mut self, number: u32) -> Result<(), String> {
        let pages = self.generations.len();
        // A step without a common divisor with the number of pages visits each.
        let step = (1..).map(|n| n * 2654435761 % pages).find(|step| gcd(*step, pages) == 1);
        let mut page = number as usize * 7919 % pages;
        for visit in 0..pages {
            self.verify(page)?;
            if (visit + number as usize) % 8 == 0 {
                self.fill(page, number);
            }
            page = (page + step.unwrap_or(1)) % pages;
        }
        Ok(())
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn work(megabytes: usize, cpus: usize, rounds: u32, pause: Duration) -> Result<(), String> {
    let pages = (megabytes << 20) / PAGE / cpus;
    // One page more, so that ours begin where a page does.
    let mut space = vec![0u64; (pages * cpus + 1) * WORDS];
    let start = space.as_ptr().align_offset(PAGE);
    let memory = &mut space[start..][..pages * cpus * WORDS];
    let barrier = Barrier::new(cpus);
    let wrong = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let parts = memory.chunks_exact_mut(pages * WORDS).enumerate().map(|(cpu, words)| {
            let mut part = Part { first: cpu * pages, words, generations: vec![0; pages] };
            let (barrier, wrong) = (&barrier, &wrong);
            scope.spawn(move || {
                (0..pages).for_each(|page| part.fill(page, 0));
                for number in 1..=rounds {
                    let result = part.round(number);
                    wrong.fetch_or(result.is_err(), Ordering::Relaxed);
                    let leads = barrier.wait().is_leader();
                    if wrong.load(Ordering::Relaxed) {
                        return result;
                    }
                    // Others use the machine as well.
                    std::thread::sleep(pause);
                    if leads {
                        println!("guest: round {number}: {} words are right", cpus * pages * WORDS);
                    }
                }
                Ok(())
            })
        });
        let threads: Vec<_> = parts.collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a thread panicked"))
    })
}

fn main() {
    let number = |name: &str, default| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    // SAFETY: sysinfo() fills the structure, for which zeros are a value.
    let free = unsafe {
        let mut info: libc::sysinfo = std::mem::zeroed();
        libc::sysinfo(&mut info);
        info.freeram as usize * info.mem_unit as usize
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let megabytes = number("megabytes", (free >> 20) * 3 / 4);
    println!("guest: {cpus} CPUs, {megabytes} MiB to verify");
    let pause = Duration::from_millis(number("pause", 200) as u64);
    let result = work(megabytes, cpus, number("rounds", 3) as u32, pause);
    let how = match &result {
        Ok(()) => libc::RB_POWER_OFF,
        Err(wrong) => {
            println!("guest: WRONG: {wrong}");
            libc::RB_AUTOBOOT
        }
    };
    // A test of this program on a host must not end the host.
    if std::process::id() == 1 {
        // SAFETY: It ends the machine, as the first program may.
        unsafe { libc::reboot(how) };
    }
    std::process::exit(i32::from(result.is_err()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_end_well() {
        work(4, 3, 5, Duration::ZERO).unwrap();
    }

    #[test]
    fn what_is_wrong_is_noticed() {
        let mut words = vec![0; 16 * WORDS];
        let mut part = Part { first: 3, words: &mut words, generations: vec![0; 16] };
        (0..16).for_each(|page| part.fill(page, 0));
        part.round(1).unwrap();
        let copy = part.words.to_vec();
        part.round(2).unwrap();
        part.words[7 * WORDS + 5] ^= 1 << 17;
        assert!(part.round(3).unwrap_err().contains("word 5 of page 10"));
        // A page as it was some rounds before, and one without content.
        for old in [&copy[..], &[0; 16 * WORDS]] {
            let mut part = Part { first: 3, words: &mut old.to_vec(), generations: vec![9; 16] };
            part.round(4).unwrap_err();
        }
    }
}
