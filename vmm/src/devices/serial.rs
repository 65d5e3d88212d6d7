//! The first serial port (16550A), output only, into the console ring: for `earlycon` and `console=ttyS0`, when a
//! kernel dies before it has hvc0. The register machine is vm-superio's.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::{Serial, Trigger, serial::NoEvents};
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

impl SerialPort {
    pub(crate) fn new(ring: Arc<Mutex<ConsoleRing>>) -> io::Result<Self> {
        let interrupt = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let registers = Serial::new(InterruptLine(Arc::clone(&interrupt)), RingWriter(ring));
        Ok(Self { registers, interrupt })
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
}
