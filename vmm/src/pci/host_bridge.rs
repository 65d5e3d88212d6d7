//! 0000:00:00.0: the host bridge. It does nothing; software expects one, and its slot's other functions are found
//! because it says that it has several.

use super::bus::Function;
use super::config_space::{ConfigSpace, Identity};

/// Vendor and class as QEMU's generic bridge has them; Linux asks for the class only.
const IDENTITY: Identity = Identity {
    vendor: 0x1B36,
    device: 0x0008,
    revision: 0,
    class: [0x06, 0x00, 0x00],
    subsystem_vendor: 0,
    subsystem: 0,
};

#[derive(Debug)]
pub(crate) struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    pub(crate) fn new() -> Self {
        Self {
            config: ConfigSpace::new(IDENTITY),
        }
    }

    /// See [`ConfigSpace::restore`].
    #[must_use]
    pub(crate) fn restore(&mut self, saved: &[u8]) -> bool {
        self.config.restore(saved)
    }
}

impl Function for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
    }

    fn read_bar(&mut self, _offset: u32, data: &mut [u8]) {
        data.fill(0xFF);
    }

    fn write_bar(&mut self, _offset: u32, _data: &[u8]) {}
}
