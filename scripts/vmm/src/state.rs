// SPDX-License-Identifier: GPL-2.0-only
//! The state of a machine but for its memory, and its form in a file and on a socket:
//!
//!     magic  identity  page size  RAM  vCPUs  number of sections
//!     of each section: number of registers, and of each: name, value
//!     checksum of all before it
//!
//! in little-endian words of 64 bits, values in two of them.

use anyhow::{Context, Result, bail, ensure};

use crate::layout::{Config, MAX_VCPUS, page_size};

const MAGIC: u64 = u64::from_le_bytes(*b"ufsnap01");

/// Registers by name: the id of KVM_GET_ONE_REG, or what a module makes of a device's.
pub type Registers = Vec<(u64, u128)>;

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct State {
    /// What the memory that belongs to this state has as well.
    pub identity: u64,
    pub config: Config,
    /// Of each vCPU.
    pub vcpus: Vec<Registers>,
    pub gic: Registers,
    pub serial: Registers,
}

impl State {
    pub fn encode(&self) -> Vec<u8> {
        let sections = self.sections();
        let head = [
            MAGIC,
            self.identity,
            page_size() as u64,
            self.config.ram,
            self.config.vcpus as u64,
            sections.len() as u64,
        ];
        let mut bytes = to_bytes(&head);
        for section in sections {
            bytes.extend((section.len() as u64).to_le_bytes());
            for (name, value) in section {
                bytes.extend(name.to_le_bytes());
                bytes.extend(value.to_le_bytes());
            }
        }
        bytes.extend(checksum(&bytes).to_le_bytes());
        bytes
    }

    fn sections(&self) -> Vec<&Registers> {
        self.vcpus.iter().chain([&self.gic, &self.serial]).collect()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        ensure!(bytes.starts_with(&MAGIC.to_le_bytes()), "this is no state of a machine");
        let (content, sum) = bytes.split_last_chunk::<8>().context("the state is truncated")?;
        ensure!(
            checksum(content) == u64::from_le_bytes(*sum),
            "the state of the machine is truncated or damaged: its checksum is wrong"
        );
        let mut words = Words(&content[8..]);
        let identity = words.word()?;
        let pages_of = words.word()?;
        ensure!(
            pages_of == page_size() as u64,
            "the state is of a host with pages of {pages_of} bytes, here they have {}",
            page_size()
        );
        let config = Config { ram: words.word()?, vcpus: words.word()? as usize };
        config.check()?;
        let mut sections = Vec::new();
        for _ in 0..words.word()? {
            let registers = words.word()?;
            sections.push((0..registers).map(|_| words.register()).collect::<Result<Registers>>()?);
        }
        let (Some(serial), Some(gic)) = (sections.pop(), sections.pop()) else {
            bail!("the state of the machine has no devices");
        };
        let vcpus = sections;
        ensure!(
            vcpus.len() == config.vcpus,
            "the state has {} vCPUs of {}",
            vcpus.len(),
            config.vcpus
        );
        Ok(Self { identity, config, vcpus, gic, serial })
    }
}

impl Config {
    /// Refuses what no machine of ours has.
    pub fn check(&self) -> Result<()> {
        let Self { ram, vcpus } = *self;
        ensure!(
            (1..=MAX_VCPUS).contains(&vcpus),
            "a machine has 1 to {MAX_VCPUS} vCPUs, not {vcpus}"
        );
        ensure!(
            ram > 0 && ram % (2 << 20) == 0 && ram <= 64 << 30,
            "a machine has up to 64 GiB of memory, in units of 2 MiB, not {ram} bytes"
        );
        Ok(())
    }
}

/// Takes words off the front.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (chunk, rest) = self.0.split_first_chunk::<N>().context("the state ends early")?;
        self.0 = rest;
        Ok(*chunk)
    }

    fn word(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn register(&mut self) -> Result<(u64, u128)> {
        Ok((self.word()?, u128::from_le_bytes(self.take()?)))
    }
}

/// Words as they are in a file or a message.
pub fn to_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The words of what [`to_bytes`] made.
pub fn to_words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

/// FNV-1a, to notice damage; it is no protection against an attacker.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn example() -> State {
        State {
            identity: 7,
            config: Config { ram: 64 << 20, vcpus: 2 },
            vcpus: vec![vec![(1, 2), (3, u128::MAX)], vec![]],
            gic: vec![(4, 5)],
            serial: vec![(0, 6)],
        }
    }

    #[test]
    fn state_comes_back() {
        assert_eq!(State::decode(&example().encode()).unwrap(), example());
    }

    #[test]
    fn damaged_states_are_refused() {
        let good = example().encode();
        for length in 0..good.len() {
            State::decode(&good[..length]).unwrap_err();
        }
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 1;
            State::decode(&bad).unwrap_err();
        }
    }

    #[test]
    fn states_that_fit_nothing_are_refused() {
        for (ram, vcpus) in [(0, 1), (1 << 20, 1), (128 << 30, 1), (64 << 20, 0), (64 << 20, 9)] {
            Config { ram, vcpus }.check().unwrap_err();
            let state = State { config: Config { ram, vcpus }, ..example() };
            State::decode(&state.encode()).unwrap_err();
        }
        let state = State { vcpus: vec![vec![]], ..example() };
        assert!(State::decode(&state.encode()).unwrap_err().to_string().contains("1 vCPUs of 2"));
    }
}
