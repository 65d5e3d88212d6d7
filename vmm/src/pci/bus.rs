//! Bus 0: up to 256 functions, their configuration by mechanism #1 (ports 0xCF8 and 0xCFC) and their BARs.
//!
//! Function number `i` is device `i / 8`, function `i % 8`. The lowest free number is given to a new function, so the
//! first function of a device is always there when another one of it is added, which is what makes a rescan find it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::config_space::ConfigSpace;
use crate::memory::layout;

/// Ports of mechanism #1 (PCI 3.0, 3.2.2.3.2).
pub(crate) const FIRST_PORT: u16 = 0xCF8;
/// See [`FIRST_PORT`].
pub(crate) const LAST_PORT: u16 = 0xCFF;
/// How many of them are the address register.
pub(crate) const ADDRESS_PORTS: u32 = 4;
/// What every BAR of ours in memory is at most, and how far apart functions are preset.
pub(crate) const BAR_SPACING: u32 = 0x8000;
/// Likewise of ports. Linux moves those of functions that come later to where bits 8 and 9 are zero: sixty places of 256 ports.
pub(crate) const PORT_SPACING: u16 = 32;
/// Below are the ports of the old chips.
const FIRST_PRESET_PORT: u16 = 0x1000;

const ADDRESS_ENABLE: u32 = 1 << 31;

/// Something with a configuration space, a BAR of memory, number 0, and perhaps one of ports, number 1, which read as all ones.
/// Called on vCPU threads, under the bus's lock.
pub(crate) trait Function: Send + fmt::Debug {
    fn config(&self) -> &ConfigSpace;
    fn read_config(&mut self, offset: usize, data: &mut [u8]);
    fn write_config(&mut self, offset: usize, data: &[u8]);
    fn read_bar(&mut self, offset: u32, data: &mut [u8]);
    fn write_bar(&mut self, offset: u32, data: &[u8]);
    fn write_ports(&mut self, _offset: u32, _data: &[u8]) {}
}

/// A function's number on bus 0, shown as "0000:00:05.0".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Slot(u8);

impl Slot {
    /// Where the function's BAR is before the guest moves it.
    pub(crate) fn preset_bar(self) -> u32 {
        layout::PCI_HOLE as u32 + u32::from(self.0) * BAR_SPACING
    }

    /// Likewise of ports.
    pub(crate) fn preset_ports(self) -> u16 {
        FIRST_PRESET_PORT + u16::from(self.0) * PORT_SPACING
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "0000:00:{:02x}.{}", self.0 >> 3, self.0 & 7)
    }
}

/// The bus is full.
#[derive(Debug, thiserror::Error)]
#[error("the PCI bus has no free function (256 are in use)")]
pub(crate) struct BusFull;

/// Bus 0. `F` is the closed set of functions of this Machine.
#[derive(Debug)]
pub(crate) struct PciBus<F> {
    functions: BTreeMap<Slot, F>,
    /// Last value written to 0xCF8.
    address: u32,
}

impl<F: Function> PciBus<F> {
    pub(crate) fn new() -> Self {
        Self {
            functions: BTreeMap::new(),
            address: 0,
        }
    }

    /// The slot that the next function gets.
    pub(crate) fn free_slot(&self) -> Result<Slot, BusFull> {
        (0..=u8::MAX)
            .map(Slot)
            .find(|slot| !self.functions.contains_key(slot))
            .ok_or(BusFull)
    }

    /// Whether a function can be put there.
    pub(crate) fn is_free(&self, slot: Slot) -> bool {
        !self.functions.contains_key(&slot)
    }

    /// All functions, by slot.
    pub(crate) fn functions(&self) -> impl Iterator<Item = (Slot, &F)> {
        self.functions.iter().map(|(slot, function)| (*slot, function))
    }

    /// Last value written to 0xCF8.
    pub(crate) fn address(&self) -> u32 {
        self.address
    }

    /// Goes on with an address register that was saved.
    pub(crate) fn restore_address(&mut self, address: u32) {
        self.address = address & !3;
    }

    /// Makes a function appear in a free slot.
    pub(crate) fn insert(&mut self, slot: Slot, function: F) {
        self.functions.insert(slot, function);
    }

    /// Makes a function disappear.
    pub(crate) fn remove(&mut self, slot: Slot) -> Option<F> {
        self.functions.remove(&slot)
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut F> {
        self.functions.get_mut(&slot)
    }

    /// A guest reads ports 0xCF8 to 0xCFF.
    pub(crate) fn read_port(&mut self, port: u16, data: &mut [u8]) {
        data.fill(0xFF);
        let within = usize::from(port & 3);
        if within + data.len() > 4 {
            return;
        }
        if port & 4 == 0 {
            data.copy_from_slice(&self.address.to_le_bytes()[within..within + data.len()]);
        } else if let Some((function, register)) = self.addressed() {
            function.read_config(register + within, data);
        }
    }

    /// A guest writes ports 0xCF8 to 0xCFF.
    pub(crate) fn write_port(&mut self, port: u16, data: &[u8]) {
        let within = usize::from(port & 3);
        if within + data.len() > 4 {
            return;
        }
        if port & 4 != 0 {
            if let Some((function, register)) = self.addressed() {
                function.write_config(register + within, data);
            }
        } else if let (0, Ok(bytes)) = (within, <[u8; 4]>::try_from(data)) {
            // 3.2.2.3.2: only a full double word reaches the address register. The two lowest bits are fixed.
            self.address = u32::from_le_bytes(bytes) & !3;
        }
    }

    /// A guest reads memory that no RAM answers. False: nobody decodes it.
    pub(crate) fn read_memory(&mut self, address: u64, data: &mut [u8]) -> bool {
        let Some((function, offset)) = self.decoding(0, address, data.len()) else {
            return false;
        };
        function.read_bar(offset, data);
        true
    }

    /// A guest writes memory that no RAM answers. False: nobody decodes it.
    pub(crate) fn write_memory(&mut self, address: u64, data: &[u8]) -> bool {
        let Some((function, offset)) = self.decoding(0, address, data.len()) else {
            return false;
        };
        function.write_bar(offset, data);
        true
    }

    /// A guest writes a port that nobody has for good. False: nobody decodes it.
    pub(crate) fn write_decoded_port(&mut self, port: u16, data: &[u8]) -> bool {
        let Some((function, offset)) = self.decoding(1, port.into(), data.len()) else {
            return false;
        };
        function.write_ports(offset, data);
        true
    }

    fn addressed(&mut self) -> Option<(&mut F, usize)> {
        let bus = self.address >> 16 & 0xFF;
        if self.address & ADDRESS_ENABLE == 0 || bus != 0 {
            return None;
        }
        let slot = Slot((self.address >> 8) as u8);
        let register = (self.address & 0xFC) as usize;
        self.functions.get_mut(&slot).map(|function| (function, register))
    }

    /// Accesses that come here are set-up: doorbells are eventfds in KVM. So a walk over the functions is good enough.
    fn decoding(&mut self, bar: usize, address: u64, length: usize) -> Option<(&mut F, u32)> {
        let address = u32::try_from(address).ok()?;
        let length = u32::try_from(length).ok()?;
        self.functions.values_mut().find_map(|function| {
            let (base, size) = function.config().decoded(bar)?;
            let offset = address.checked_sub(base)?;
            (offset.checked_add(length)? <= size).then_some((function, offset))
        })
    }
}

#[cfg(test)]
mod tests;
