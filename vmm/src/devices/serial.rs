//! The first serial port (16550A): the guest's console, output only, into the console ring. Each character is an exit or two,
//! on the processor that writes it; a guest that has nothing to complain of writes none. In exchange it is there before PCI is,
//! and costs a boot 75 exits, where a virtio console took 460 (and all that its driver does between them). The register machine
//! is vm-superio's.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::{Serial, SerialState, Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ring::ConsoleRing;

/// Ports of COM1.
pub(crate) const FIRST_PORT: u16 = 0x3F8;
/// See [`FIRST_PORT`].
pub(crate) const LAST_PORT: u16 = 0x3FF;
/// Interrupt of COM1.
pub(crate) const IRQ: u32 = 4;

/// COM1.
pub(crate) struct SerialPort {
    registers: Serial<InterruptLine, NoEvents, RingWriter>,
    interrupt: Arc<EventFd>,
}

/// The registers that a snapshot keeps. Nothing is ever received, so there is no input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedSerial {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
}

impl SerialPort {
    pub(crate) fn new(ring: Arc<Mutex<ConsoleRing>>) -> io::Result<Self> {
        let interrupt = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let registers = Serial::new(InterruptLine(Arc::clone(&interrupt)), RingWriter(ring));
        Ok(Self { registers, interrupt })
    }

    /// With the registers that were saved.
    pub(crate) fn restored(ring: Arc<Mutex<ConsoleRing>>, saved: &SavedSerial) -> io::Result<Self> {
        let interrupt = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let line = InterruptLine(Arc::clone(&interrupt));
        let registers = Serial::from_state(&saved.state(), line, NoEvents, RingWriter(ring));
        let registers = registers.map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(Self { registers, interrupt })
    }

    /// What a snapshot keeps.
    pub(crate) fn save(&self) -> SavedSerial {
        let state = self.registers.state();
        SavedSerial {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
        }
    }

    /// Written when the port raises its interrupt.
    pub(crate) fn interrupt(&self) -> &EventFd {
        &self.interrupt
    }

    /// Registers are one byte; wider accesses are not answered.
    pub(crate) fn read(&mut self, register: u16, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self.registers.read(register as u8);
        }
    }

    pub(crate) fn write(&mut self, register: u16, data: &[u8]) {
        if let [byte] = data
            && let Err(error) = self.registers.write(register as u8, *byte)
        {
            tracing::debug!(?error, "serial port");
        }
    }
}

impl SavedSerial {
    fn state(&self) -> SerialState {
        let [baud_divisor_low, baud_divisor_high] = self.divisor;
        SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: self.interrupt_enable,
            interrupt_identification: self.interrupt_identification,
            line_control: self.line_control,
            line_status: self.line_status,
            modem_control: self.modem_control,
            modem_status: self.modem_status,
            scratch: self.scratch,
            in_buffer: Vec::new(),
        }
    }
}

impl std::fmt::Debug for SerialPort {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SerialPort")
            .field("interrupt", &self.interrupt)
            .finish_non_exhaustive()
    }
}

struct InterruptLine(Arc<EventFd>);

impl Trigger for InterruptLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

struct RingWriter(Arc<Mutex<ConsoleRing>>);

impl Write for RingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_transmitted_is_in_the_ring() {
        let ring = Arc::new(Mutex::new(ConsoleRing::new(16)));
        let mut serial = SerialPort::new(Arc::clone(&ring)).unwrap();
        b"hello".iter().for_each(|byte| serial.write(0, &[*byte]));
        assert_eq!(ring.lock().unwrap().text(), "hello");
        let mut status = [0];
        serial.read(5, &mut status);
        assert_eq!(status[0] & 0x60, 0x60, "always ready to transmit");
    }

    #[test]
    fn a_restored_port_has_the_registers_of_the_saved_one() {
        let ring = || Arc::new(Mutex::new(ConsoleRing::new(16)));
        let mut serial = SerialPort::new(ring()).unwrap();
        // Divisor 2, eight bits, interrupt on transmission, a byte of scratch.
        for (register, byte) in [(3, 0x83), (0, 2), (3, 0x03), (1, 2), (7, 0x5A)] {
            serial.write(register, &[byte]);
        }
        let saved = serial.save();
        let mut restored = SerialPort::restored(ring(), &saved).unwrap();
        assert_eq!(restored.save(), saved);
        let mut scratch = [0];
        restored.read(7, &mut scratch);
        assert_eq!((scratch, saved.divisor), ([0x5A], [2, 0]));
    }
}
