//! Who answers the guest's port and memory accesses.
//!
//! | ports         | answered by                                        |
//! |---------------|----------------------------------------------------|
//! | 0x60, 0x64    | i8042: only the reset line                         |
//! | 0x3F8 - 0x3FF | serial port: the guest's console                   |
//! | 0xCF8 - 0xCFF | PCI configuration mechanism #1                     |
//! | 0x20, 0x40 .. | KVM (interrupt controllers, timer)                 |
//!
//! Doorbells are at ports that the guest chooses; KVM hears them, and here arrives what it does not. Everything else reads as all
//! ones, and memory likewise where no BAR is decoded.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::devices::function::MachineFunction;
use crate::devices::i8042::I8042;
use crate::devices::serial::{self, SavedSerial, SerialPort};
use crate::event_loop::{Mailbox, Message};
use crate::exit::GuestEnd;
use crate::kvm::CoalescedWrites;
use crate::pci::bus::{FIRST_PORT, LAST_PORT, PciBus};

/// Port and memory dispatch, shared by all vCPU threads.
#[derive(Debug)]
pub(crate) struct Bus {
    pci: Mutex<PciBus<MachineFunction>>,
    /// Writes to the address register that KVM has collected; replayed before anything else reaches the PCI ports.
    /// Locked before `pci`.
    collected: Mutex<Option<CoalescedWrites>>,
    serial: Mutex<SerialPort>,
    mailbox: Mailbox,
}

impl Bus {
    pub(crate) fn new(pci: PciBus<MachineFunction>, serial: SerialPort, mailbox: Mailbox) -> Self {
        Self {
            pci: Mutex::new(pci),
            collected: Mutex::new(None),
            serial: Mutex::new(serial),
            mailbox,
        }
    }

    /// From now on writes to the PCI address register come through `writes`.
    pub(crate) fn collect_address_writes(&self, writes: Option<CoalescedWrites>) {
        *self.collected.lock().unwrap_or_else(PoisonError::into_inner) = writes;
    }

    /// What a snapshot keeps of the serial port.
    pub(crate) fn save_serial(&self) -> SavedSerial {
        self.serial().save()
    }

    /// Replays the writes that KVM has collected.
    pub(crate) fn catch_up(&self) {
        self.pci_in_order(|_| {});
    }

    /// The PCI bus. Whoever holds it must not wait for the event loop.
    pub(crate) fn pci(&self) -> MutexGuard<'_, PciBus<MachineFunction>> {
        // Registers are consistent after every access; a panic in one device does not spoil the bus.
        self.pci.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False: nobody answered, and `data` is all ones.
    pub(crate) fn read_port(&self, port: u16, data: &mut [u8]) -> bool {
        data.fill(0xFF);
        match port {
            FIRST_PORT..=LAST_PORT => self.pci_in_order(|pci| pci.read_port(port, data)),
            serial::FIRST_PORT..=serial::LAST_PORT => self.serial().read(port - serial::FIRST_PORT, data),
            _ => return I8042::read(port, data),
        }
        true
    }

    /// False: nobody cared.
    pub(crate) fn write_port(&self, port: u16, data: &[u8]) -> bool {
        match port {
            FIRST_PORT..=LAST_PORT => self.pci_in_order(|pci| pci.write_port(port, data)),
            serial::FIRST_PORT..=serial::LAST_PORT => self.serial().write(port - serial::FIRST_PORT, data),
            _ if I8042::resets(port, data) => self.mailbox.send(Message::GuestEnded(GuestEnd::Reset)),
            _ => return self.pci().write_decoded_port(port, data),
        }
        true
    }

    /// False: nobody answered, and `data` is all ones.
    pub(crate) fn read_memory(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xFF);
        self.pci().read_memory(address, data)
    }

    /// False: nobody cared.
    pub(crate) fn write_memory(&self, address: u64, data: &[u8]) -> bool {
        self.pci().write_memory(address, data)
    }

    /// Accesses the PCI ports after the writes that came before.
    fn pci_in_order(&self, access: impl FnOnce(&mut PciBus<MachineFunction>)) {
        let mut collected = self.collected.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pci = self.pci();
        while let Some((port, data, length)) = collected.as_mut().and_then(CoalescedWrites::next) {
            pci.write_port(port, &data[..length]);
        }
        access(&mut pci);
    }

    fn serial(&self) -> MutexGuard<'_, SerialPort> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
