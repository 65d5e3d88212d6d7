//! The closed set of functions that a Machine's bus can have.

use super::pvpanic::PvPanic;
use crate::pci::bus::Function;
use crate::pci::config_space::ConfigSpace;
use crate::pci::host_bridge::HostBridge;
use crate::pci::transport::VirtioFunction;

#[derive(Debug)]
pub(crate) enum MachineFunction {
    HostBridge(HostBridge),
    PvPanic(PvPanic),
    Virtio(Box<VirtioFunction>),
}

impl MachineFunction {
    pub(crate) fn virtio(&mut self) -> Option<&mut VirtioFunction> {
        match self {
            Self::Virtio(function) => Some(function),
            Self::HostBridge(_) | Self::PvPanic(_) => None,
        }
    }

    /// Takes over the configuration space of one that is no virtio device; false if it is none, or another.
    #[must_use]
    pub(crate) fn restore_fixed(&mut self, saved: &[u8]) -> bool {
        match self {
            Self::HostBridge(function) => function.restore(saved),
            Self::PvPanic(function) => function.restore(saved),
            Self::Virtio(_) => false,
        }
    }

    fn function(&mut self) -> &mut dyn Function {
        match self {
            Self::HostBridge(function) => function,
            Self::PvPanic(function) => function,
            Self::Virtio(function) => function.as_mut(),
        }
    }
}

impl Function for MachineFunction {
    fn config(&self) -> &ConfigSpace {
        match self {
            Self::HostBridge(function) => function.config(),
            Self::PvPanic(function) => function.config(),
            Self::Virtio(function) => function.config(),
        }
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.function().read_config(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.function().write_config(offset, data);
    }

    fn read_bar(&mut self, offset: u32, data: &mut [u8]) {
        self.function().read_bar(offset, data);
    }

    fn write_bar(&mut self, offset: u32, data: &[u8]) {
        self.function().write_bar(offset, data);
    }

    fn write_ports(&mut self, offset: u32, data: &[u8]) {
        self.function().write_ports(offset, data);
    }
}
