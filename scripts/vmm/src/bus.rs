// SPDX-License-Identifier: GPL-2.0-only
//! The devices: a serial port. It has no DMA, so no device ever meets a marked page.
//!
//! A VMM whose devices read or write guest memory (virtio, in the VMM or in vhost) must look at the
//! mark and supply the page first, before each access, or have userfaultfd on the memory. What a
//! device writes to a marked page is overwritten by the fill that a later exit asks for.

use std::io::{self, Stdout};
use std::sync::Mutex;

use anyhow::{Context, Result};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::layout::{SERIAL, SERIAL_BYTES};
use crate::state::Registers;

/// Raises the serial port's interrupt, by KVM's irqfd.
pub struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

type Console = Serial<Interrupt, NoEvents, Stdout>;

pub struct Bus {
    serial: Mutex<Console>,
}

impl Bus {
    pub fn new(interrupt: EventFd) -> Self {
        Self { serial: Mutex::new(Serial::new(Interrupt(interrupt), io::stdout())) }
    }

    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0);
        if let (Some(offset), [byte]) = (serial_offset(address), data) {
            *byte = self.serial.lock().unwrap().read(offset);
        }
    }

    pub fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        match (serial_offset(address), data) {
            (Some(offset), [byte]) => {
                self.serial.lock().unwrap().write(offset, *byte).context("the serial port")
            }
            _ => Ok(()),
        }
    }

    /// The serial port's registers: their order is their name.
    pub fn save(&self) -> Registers {
        let state = self.serial.lock().unwrap().state();
        let registers = [
            state.baud_divisor_low,
            state.baud_divisor_high,
            state.interrupt_enable,
            state.interrupt_identification,
            state.line_control,
            state.line_status,
            state.modem_control,
            state.modem_status,
            state.scratch,
        ];
        registers.iter().chain(&state.in_buffer).map(|byte| (0, (*byte).into())).collect()
    }

    pub fn load(&self, registers: &Registers, interrupt: EventFd) -> Result<()> {
        let mut bytes = registers.iter().map(|(_, value)| *value as u8);
        let mut next = || bytes.next().context("the state has too little of the serial port");
        let state = SerialState {
            baud_divisor_low: next()?,
            baud_divisor_high: next()?,
            interrupt_enable: next()?,
            interrupt_identification: next()?,
            line_control: next()?,
            line_status: next()?,
            modem_control: next()?,
            modem_status: next()?,
            scratch: next()?,
            in_buffer: bytes.collect(),
        };
        *self.serial.lock().unwrap() =
            Serial::from_state(&state, Interrupt(interrupt), NoEvents, io::stdout())
                .context("the serial port")?;
        Ok(())
    }
}

fn serial_offset(address: u64) -> Option<u8> {
    address
        .checked_sub(SERIAL)
        .filter(|offset| *offset < SERIAL_BYTES.min(8))
        .map(|offset| offset as u8)
}
