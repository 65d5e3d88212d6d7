//! The virtio capabilities in configuration space (virtio 1.2, 4.1.4), which say in which BAR a structure is and where, and the
//! window through which BARs are reached without accesses to them (4.1.4.9). Pure.

use super::{COMMON, DEVICE, DOORBELL_STRIDE, DOORBELLS, ISR, REGION, REGISTERS, registers};
use crate::pci::bus::PORT_SPACING;
use crate::pci::config_space::ConfigSpace;

/// Kinds of structures (4.1.4, `cfg_type`).
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// PCI's id of vendor-specific capabilities.
const VENDOR_SPECIFIC: u8 = 0x09;
/// `struct virtio_pci_cap`, and with the four bytes that notify and pci-cfg add.
const LENGTH: u8 = 16;
const LONG_LENGTH: u8 = 20;

/// Offsets in `struct virtio_pci_cfg_cap`.
const WINDOW_BAR: usize = 4;
const WINDOW_OFFSET: usize = 8;
const WINDOW_LENGTH: usize = 12;
const WINDOW_DATA: usize = 16;

/// Adds all five capabilities; returns the window.
pub(super) fn add(config: &mut ConfigSpace) -> AccessWindow {
    let common_length = registers::COMMON_LENGTH as u32;
    config.add_capability(
        VENDOR_SPECIFIC,
        &capability(LENGTH, COMMON_CFG, REGISTERS, COMMON, common_length),
    );
    config.add_capability(VENDOR_SPECIFIC, &capability(LENGTH, ISR_CFG, REGISTERS, ISR, 1));
    config.add_capability(
        VENDOR_SPECIFIC,
        &capability(LENGTH, DEVICE_CFG, REGISTERS, DEVICE, REGION),
    );
    let mut notify = capability(LONG_LENGTH, NOTIFY_CFG, DOORBELLS, 0, PORT_SPACING.into());
    notify.extend(u32::from(DOORBELL_STRIDE).to_le_bytes());
    config.add_capability(VENDOR_SPECIFIC, &notify);
    let mut window = capability(LONG_LENGTH, PCI_CFG, 0, 0, 0);
    window.extend([0; 4]);
    let at = config.add_capability(VENDOR_SPECIFIC, &window);
    config.make_writable(at + WINDOW_BAR, &[0xFF]);
    config.make_writable(at + WINDOW_OFFSET, &[0xFF; 12]);
    AccessWindow { at }
}

/// What follows id and next pointer in `struct virtio_pci_cap`.
fn capability(length: u8, kind: u8, bar: u8, offset: u32, size: u32) -> Vec<u8> {
    let mut body = vec![length, kind, bar, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(size.to_le_bytes());
    body
}

/// The pci-cfg capability.
#[derive(Debug)]
pub(super) struct AccessWindow {
    at: usize,
}

impl AccessWindow {
    /// If an access of `length` bytes at `offset` of configuration space touches the window's data: which BAR it stands for, which
    /// offset in that, and how many bytes.
    pub(super) fn target(
        &self,
        config: &ConfigSpace,
        offset: usize,
        length: usize,
    ) -> Option<(u8, u32, usize)> {
        let data = self.at + WINDOW_DATA;
        if offset >= data + 4 || offset + length <= data {
            return None;
        }
        let bar = (config.u16_at(self.at + WINDOW_BAR) & 0xFF) as u8;
        let target = config.u32_at(self.at + WINDOW_OFFSET);
        let size = config.u32_at(self.at + WINDOW_LENGTH);
        let aligned = matches!(size, 1 | 2 | 4) && target.is_multiple_of(size);
        // The sum stays in u32: an aligned access ends at 2^32 at most, and is then beyond every BAR.
        (aligned && target.checked_add(size).is_some()).then_some((bar, target, size as usize))
    }

    pub(super) fn store(&self, config: &mut ConfigSpace, value: [u8; 4]) {
        config.write(self.at + WINDOW_DATA, &value);
    }

    pub(super) fn load(&self, config: &ConfigSpace) -> [u8; 4] {
        config.u32_at(self.at + WINDOW_DATA).to_le_bytes()
    }
}
