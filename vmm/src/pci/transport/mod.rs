//! A virtio device as a PCI function (virtio 1.2, 4.1, modern only): its configuration space with the virtio
//! capabilities, BAR 0 with the registers, BAR 1 with the doorbells. What the driver asks of the device goes to the event loop as
//! a message.
//!
//! ```text
//! BAR 0   0x0000 common configuration      0x4000 MSI-X table
//!         0x1000 ISR status (always 0)     0x5000 MSI-X pending bits
//!         0x2000 device configuration
//! BAR 1   doorbells: 4 ports per queue (ioeventfds while the device lives)
//! ```

pub(crate) mod capabilities;
pub(crate) mod doorbells;
pub(crate) mod registers;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod testing;

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryBackend;

use self::capabilities::AccessWindow;
use self::doorbells::{DoorbellWiring, Doorbells};
use self::registers::{Effect, Phase, Registers, SavedRegisters};
use super::bus::{BAR_SPACING, Function, PORT_SPACING, Slot};
use super::config_space::{ConfigSpace, Identity, Written};
use super::interrupt::{MessageSink, MsixInterrupts, VirtioInterrupt};
use super::msix::{self, Msix};
use crate::devices::virtio::{Activation, ActiveQueue, GuestMemory, QueueProgress, VirtioDevice};
use crate::event_loop::{Mailbox, Message};

/// A device, used by the event loop and by vCPU threads (configuration space).
pub(crate) type SharedDevice = Arc<Mutex<dyn VirtioDevice>>;

const COMMON: u32 = 0x0000;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const MSIX_TABLE: u32 = 0x4000;
const MSIX_PENDING: u32 = 0x5000;
const REGION: u32 = 0x1000;
const BAR_SIZE: u32 = BAR_SPACING;
/// What the BARs have.
const REGISTERS: u8 = 0;
const DOORBELLS: u8 = 1;
const DOORBELL_STRIDE: u16 = 4;
const MOST_QUEUES: usize = (PORT_SPACING / DOORBELL_STRIDE) as usize;

/// virtio 1.2, 4.1.2: vendor, and device ids from 0x1040 on.
const VENDOR: u16 = 0x1AF4;
const FIRST_DEVICE: u16 = 0x1040;

/// Why a device cannot be put on the bus.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    #[error("cannot create the {count} doorbells of a virtio device")]
    Doorbells {
        count: usize,
        #[source]
        source: std::io::Error,
    },
    #[error("the virtio device asks for queues that virtio does not have")]
    Queues(#[source] virtio_queue::Error),
}

/// The VMM's services that a function uses.
#[derive(Debug, Clone)]
pub(crate) struct Services {
    pub(crate) memory: GuestMemory,
    pub(crate) messages: Arc<dyn MessageSink>,
    pub(crate) wiring: Arc<dyn DoorbellWiring>,
    pub(crate) mailbox: Mailbox,
}

/// What a snapshot keeps of a function; the device's own is kept beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedFunction {
    config: Vec<u8>,
    registers: SavedRegisters,
    msix: Msix,
}

/// One virtio device on the bus.
pub(crate) struct VirtioFunction {
    slot: Slot,
    config: ConfigSpace,
    msix_capability: usize,
    window: AccessWindow,
    registers: Registers,
    interrupts: MsixInterrupts,
    doorbells: Doorbells,
    device: SharedDevice,
    mailbox: Mailbox,
}

impl VirtioFunction {
    pub(crate) fn new(slot: Slot, device: SharedDevice, services: &Services) -> Result<Self, TransportError> {
        let (device_type, features, sizes) = {
            let device = device.lock().unwrap_or_else(PoisonError::into_inner);
            (
                device.device_type() as u16,
                device.features(),
                device.queue_max_sizes().to_vec(),
            )
        };
        debug_assert!(sizes.len() <= MOST_QUEUES);
        // One vector per queue and one for configuration changes.
        let vectors = sizes.len() as u16 + 1;
        let registers = Registers::new(features, &sizes, vectors, services.memory.clone())
            .map_err(TransportError::Queues)?;
        let interrupts = MsixInterrupts::new(vectors, Arc::clone(&services.messages));
        let doorbells =
            Doorbells::new(sizes.len(), DOORBELL_STRIDE, Arc::clone(&services.wiring)).map_err(|source| {
                TransportError::Doorbells {
                    count: sizes.len(),
                    source,
                }
            })?;
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + device_type,
            revision: 1,
            // Unclassified: Linux asks for the ids only.
            class: [0xFF, 0x00, 0x00],
            subsystem_vendor: VENDOR,
            // 4.1.2.1: 0x40 or higher for devices without a legacy interface.
            subsystem: 0x40,
        });
        config.add_bar(REGISTERS.into(), BAR_SIZE, slot.preset_bar());
        config.add_ports(DOORBELLS.into(), PORT_SPACING, slot.preset_ports());
        let window = capabilities::add(&mut config);
        let body = interrupts.table().capability(MSIX_TABLE, MSIX_PENDING);
        let msix_capability = config.add_capability(msix::CAPABILITY, &body);
        config.make_writable(
            msix_capability + msix::CONTROL,
            &msix::CONTROL_WRITABLE.to_le_bytes(),
        );
        let mailbox = services.mailbox.clone();
        Ok(Self {
            slot,
            config,
            msix_capability,
            window,
            registers,
            interrupts,
            doorbells,
            device,
            mailbox,
        })
    }

    /// What a snapshot keeps; `progress` is the device's. `None` while the event loop is about to start or stop it.
    pub(crate) fn save(&self, progress: &[(u16, QueueProgress)]) -> Option<SavedFunction> {
        Some(SavedFunction {
            config: self.config.bytes().to_vec(),
            registers: self.registers.save(progress)?,
            msix: self.interrupts.table().clone(),
        })
    }

    /// Goes on where another Machine's function stood. If the driver was there the event loop is asked to start the device,
    /// which hears every doorbell once: what the driver had rung may not have been heard. An error says what does not fit.
    pub(crate) fn restore(&mut self, saved: &SavedFunction) -> Result<(), &'static str> {
        if !self.config.restore(&saved.config) {
            return Err("its configuration space is that of another device");
        }
        if !self.interrupts.table().restore(&saved.msix) {
            return Err("it had another number of interrupt vectors");
        }
        self.registers.restore(&saved.registers)?;
        if self.registers.phase() == Phase::Starting {
            for queue in self.registers.enabled_queues() {
                self.doorbells.ring(queue);
            }
            self.carry_out(Effect::Activate);
        }
        Ok(())
    }

    /// The event loop is about to start the device: what it needs, unless the driver has changed its mind.
    pub(crate) fn begin_activation(&mut self) -> Option<Activation> {
        if self.registers.phase() != Phase::Starting {
            return None;
        }
        let Ok(queues) = self.registers.active_queues() else {
            self.broken();
            return None;
        };
        self.place_doorbells();
        let queues = queues
            .into_iter()
            .zip(self.doorbells.events())
            .map(|(queue, notify)| ActiveQueue { queue, notify })
            .collect();
        Some(Activation {
            memory: self.registers.memory().clone(),
            queues,
            features: self.registers.accepted_features(),
            interrupt: Arc::new(self.interrupt()),
        })
    }

    /// The event loop has started the device.
    pub(crate) fn activated(&mut self) {
        self.registers.activated();
    }

    /// The device cannot go on until the driver resets it.
    pub(crate) fn broken(&mut self) {
        let effect = self.registers.broken();
        self.carry_out(effect);
    }

    /// Whether the event loop is to stop the device.
    pub(crate) fn wants_reset(&self) -> bool {
        self.registers.phase() == Phase::Resetting
    }

    /// The event loop has stopped the device.
    pub(crate) fn reset_done(&mut self) {
        self.registers.reset_done();
        self.doorbells.place(None);
        self.doorbells.silence();
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Activate => self.mailbox.send(Message::ActivateDevice(self.slot)),
            Effect::Reset => self.mailbox.send(Message::ResetDevice(self.slot)),
            Effect::NeedsReset => {
                use crate::devices::virtio::Interrupt;
                self.interrupt().signal_config();
            }
        }
    }

    fn interrupt(&self) -> VirtioInterrupt {
        VirtioInterrupt {
            msix: self.interrupts.clone(),
            vectors: self.registers.vectors(),
        }
    }

    /// Doorbells are wired only while the device lives: a kernel that looks around moves BARs and switches decoding
    /// several times, and each wiring waits for a grace period of KVM's.
    fn place_doorbells(&mut self) {
        let lives = matches!(self.registers.phase(), Phase::Starting | Phase::Live);
        let ports = self.config.decoded(DOORBELLS.into()).filter(|_| lives);
        self.doorbells
            .place(ports.and_then(|(base, _)| u16::try_from(base).ok()));
    }

    /// The pci-cfg window (4.1.4.9): the driver reaches BARs through configuration space.
    fn through_window(&mut self, offset: usize, length: usize) -> Option<(u8, u32, usize)> {
        let target = self.window.target(&self.config, offset, length);
        target.filter(|(bar, at, size)| {
            let end = at + *size as u32;
            match *bar {
                REGISTERS => end <= BAR_SIZE,
                DOORBELLS => end <= PORT_SPACING.into(),
                _ => false,
            }
        })
    }
}

impl Function for VirtioFunction {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        if let Some((bar, at, size)) = self.through_window(offset, data.len()) {
            let mut value = [0; 4];
            match bar {
                REGISTERS => self.read_bar(at, &mut value[..size]),
                _ => value[..size].fill(0xFF),
            }
            self.window.store(&mut self.config, value);
        }
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        let written = self.config.write(offset, data);
        if written == Written::Placement {
            self.place_doorbells();
        }
        let control = self.msix_capability + msix::CONTROL;
        if offset < control + 2 && offset + data.len() > control {
            let control = self.config.u16_at(control);
            let released = self.interrupts.table().set_control(control);
            self.interrupts.send(released);
        }
        if let Some((bar, at, size)) = self.through_window(offset, data.len()) {
            let value = self.window.load(&self.config);
            match bar {
                REGISTERS => self.write_bar(at, &value[..size]),
                _ => self.write_ports(at, &value[..size]),
            }
        }
    }

    fn read_bar(&mut self, offset: u32, data: &mut [u8]) {
        let within = (offset % REGION) as usize;
        match offset - offset % REGION {
            COMMON if (within, data.len()) == (registers::CONFIG_GENERATION, 1) => {
                let device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
                data.fill(device.config_generation());
            }
            COMMON => self.registers.read(within, data),
            // Read to clear; with MSI-X it is not used (4.1.4.5.2).
            ISR => data.fill(0),
            DEVICE => {
                data.fill(0xFF);
                let device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
                device.read_config(within as u64, data);
            }
            MSIX_TABLE => self.interrupts.table().read_table(within, data),
            MSIX_PENDING => self.interrupts.table().read_pending(within, data),
            _ => data.fill(0xFF),
        }
    }

    fn write_bar(&mut self, offset: u32, data: &[u8]) {
        let within = (offset % REGION) as usize;
        match offset - offset % REGION {
            COMMON => {
                let effect = self.registers.write(within, data);
                self.carry_out(effect);
            }
            DEVICE => {
                let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
                device.write_config(within as u64, data);
            }
            MSIX_TABLE => {
                let released = self.interrupts.table().write_table(within, data);
                self.interrupts.send(released);
            }
            _ => {}
        }
    }

    /// Only when KVM did not take it: before the doorbells are wired, or through the pci-cfg window.
    fn write_ports(&mut self, offset: u32, _data: &[u8]) {
        self.doorbells
            .ring((offset / u32::from(DOORBELL_STRIDE)) as usize);
    }
}

impl std::fmt::Debug for VirtioFunction {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let regions = self.registers.memory().num_regions();
        formatter
            .debug_struct("VirtioFunction")
            .field("slot", &self.slot)
            .field("phase", &self.registers.phase())
            .field("doorbells", &self.doorbells)
            .field("memory_regions", &regions)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
