// SPDX-License-Identifier: GPL-2.0-only
//! The devices: a serial port. It has no DMA, so no device ever meets a marked page.
//!
//! A VMM whose devices read or write guest memory (virtio, in the VMM or in vhost) must look at the
//! mark and supply the page first, before each access, or have userfaultfd on the memory. What a
//! device writes to a marked page is overwritten by the fill that a later exit asks for.

use std::io::{self, LineWriter, Stdout, Write};
use std::sync::Mutex;

use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Context, Result};
use crate::layout::{SERIAL, SERIAL_BYTES};

/// Raises the serial port's interrupt, by KVM's irqfd.
pub struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

type Console = Serial<Interrupt, NoEvents, LineWriter<Stdout>>;

pub struct Bus {
    serial: Mutex<Console>,
}

impl Bus {
    pub fn new(interrupt: EventFd) -> Self {
        let out = LineWriter::new(io::stdout());
        Self { serial: Mutex::new(Serial::new(Interrupt(interrupt), out)) }
    }

    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0);
        if let (Some(offset), [byte]) = (serial_offset(address), data) {
            *byte = self.lock().read(offset);
        }
    }

    pub fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        match (serial_offset(address), data) {
            (Some(offset), [byte]) => self.lock().write(offset, *byte).context("the serial port"),
            _ => Ok(()),
        }
    }

    /// The serial port's registers.
    pub fn save(&self) -> Vec<u8> {
        let mut serial = self.lock();
        // Half a line is for this process to show, as the other one begins with nothing.
        let _ = serial.writer_mut().flush();
        let state = serial.state();
        let mut bytes = vec![
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
        bytes.extend(state.in_buffer);
        bytes
    }

    pub fn load(&self, bytes: &[u8], interrupt: EventFd) -> Result<()> {
        let [
            low,
            high,
            enable,
            identification,
            line,
            status,
            modem,
            modem_status,
            scratch,
            rest @ ..,
        ] = bytes
        else {
            crate::error::fail!("the state has too little of the serial port");
        };
        let state = SerialState {
            baud_divisor_low: *low,
            baud_divisor_high: *high,
            interrupt_enable: *enable,
            interrupt_identification: *identification,
            line_control: *line,
            line_status: *status,
            modem_control: *modem,
            modem_status: *modem_status,
            scratch: *scratch,
            in_buffer: rest.to_vec(),
        };
        let out = LineWriter::new(io::stdout());
        *self.lock() = Serial::from_state(&state, Interrupt(interrupt), NoEvents, out)
            .context("the serial port")?;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Console> {
        self.serial.lock().expect("no thread panics with the serial port")
    }
}

fn serial_offset(address: u64) -> Option<u8> {
    address
        .checked_sub(SERIAL)
        .filter(|offset| *offset < SERIAL_BYTES.min(8))
        .map(|offset| offset as u8)
}
