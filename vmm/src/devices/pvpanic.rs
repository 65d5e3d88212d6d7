//! pvpanic (QEMU docs/specs/pvpanic.txt) as a PCI function: a byte of memory with which the guest's kernel reports that
//! it panicked. Tells a panic from a reboot.

use crate::event_loop::{Mailbox, Message};
use crate::pci::bus::{Function, Slot};
use crate::pci::config_space::{ConfigSpace, Identity};

/// The specification's identity; class "other system peripheral".
const IDENTITY: Identity = Identity {
    vendor: 0x1B36,
    device: 0x0011,
    revision: 1,
    class: [0x08, 0x80, 0x00],
    subsystem_vendor: 0x1AF4,
    subsystem: 0x1100,
};
const EVENT_PANICKED: u8 = 1;
/// Linux maps whole pages.
const BAR_SIZE: u32 = 0x1000;

#[derive(Debug)]
pub(crate) struct PvPanic {
    config: ConfigSpace,
    mailbox: Mailbox,
}

impl PvPanic {
    pub(crate) fn new(slot: Slot, mailbox: Mailbox) -> Self {
        let mut config = ConfigSpace::new(IDENTITY);
        config.add_bar(0, BAR_SIZE, slot.preset_bar());
        Self { config, mailbox }
    }

    /// See [`ConfigSpace::restore`].
    #[must_use]
    pub(crate) fn restore(&mut self, saved: &[u8]) -> bool {
        self.config.restore(saved)
    }
}

impl Function for PvPanic {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
    }

    /// Reads tell which events are understood.
    fn read_bar(&mut self, offset: u32, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(first)) = (offset, data.first_mut()) {
            *first = EVENT_PANICKED;
        }
    }

    fn write_bar(&mut self, offset: u32, data: &[u8]) {
        if offset == 0 && data.first().is_some_and(|events| events & EVENT_PANICKED != 0) {
            self.mailbox.send(Message::GuestPanicked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::bus::PciBus;

    #[test]
    fn a_panic_is_reported_and_other_events_are_not() {
        let (mailbox, receiver, _bell) = Mailbox::new().unwrap();
        let slot = PciBus::<PvPanic>::new().free_slot().unwrap();
        let mut device = PvPanic::new(slot, mailbox);
        device.write_bar(0, &[2]);
        device.write_bar(1, &[1]);
        assert!(receiver.try_recv().is_err());
        device.write_bar(0, &[1]);
        assert!(matches!(receiver.try_recv(), Ok(Message::GuestPanicked)));
        let mut data = [0xFF; 2];
        device.read_bar(0, &mut data);
        assert_eq!(data, [1, 0]);
    }
}
