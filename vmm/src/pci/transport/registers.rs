//! The driver-facing registers of a virtio-pci device (virtio 1.2, 4.1.4.3) as a state machine. Pure: a write changes
//! registers and says what must happen to the device; the transport and the event loop make it happen.
//!
//! ```text
//!             DRIVER_OK, queues valid                activated
//! Negotiating ───────────────────────▶ Starting ─────────────────▶ Live
//!   ▲   ▲  └─ DRIVER_OK, queues broken ──▶ Broken ◀── failed ──┘      │
//!   │   │ status = 0 (at once)                │                       │
//!   │   └─────────────────────────────────────┘                       │
//!   └────────────── reset_done ── Resetting ◀── status = 0 ───────────┘ (also from Starting)
//! ```
//!
//! While Resetting the status still reads as it was: the driver waits until it reads 0 (2.4.1), so that no vCPU ever
//! waits for the event loop.

mod saved;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use crate::devices::virtio::GuestMemory;

pub(crate) use self::saved::SavedRegisters;

/// "No interrupt" in a vector register (4.1.5.1.2).
pub(crate) const NO_VECTOR: u16 = 0xFFFF;
/// Length of `struct virtio_pci_common_cfg` up to and without `queue_notify_data`.
pub(crate) const COMMON_LENGTH: usize = 0x38;

/// Offset of `config_generation`, which the device answers.
pub(crate) const CONFIG_GENERATION: usize = 0x15;

const DRIVER_MAY_SET: u8 = (VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_FAILED) as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

/// What a register write asks of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Effect {
    None,
    /// Start the device, then report `activated` or `broken`.
    Activate,
    /// Stop the device, then report `reset_done`.
    Reset,
    /// The device has just become unusable: tell the driver (configuration interrupt).
    NeedsReset,
}

/// Where a device is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Negotiating,
    Starting,
    Live,
    Resetting,
    Broken,
}

/// Which MSI-X vector each cause uses; shared with the device's interrupt.
#[derive(Debug)]
pub(crate) struct Vectors {
    pub(crate) config: AtomicU16,
    pub(crate) queues: Vec<AtomicU16>,
}

/// The common configuration structure.
#[derive(Debug)]
pub(crate) struct Registers {
    phase: Phase,
    status: u8,
    offered: u64,
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    queues: Vec<Queue>,
    vectors: Arc<Vectors>,
    vector_count: u16,
    memory: GuestMemory,
}

impl Registers {
    /// A device that offers `features` and has a queue for each maximum (powers of two: the device's own constants).
    pub(crate) fn new(
        features: u64,
        queue_max_sizes: &[u16],
        vector_count: u16,
        memory: GuestMemory,
    ) -> Result<Self, virtio_queue::Error> {
        let queues = queue_max_sizes
            .iter()
            .map(|max| Queue::new(*max))
            .collect::<Result<Vec<_>, _>>()?;
        let vectors = Vectors {
            config: AtomicU16::new(NO_VECTOR),
            queues: queues.iter().map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        };
        Ok(Self {
            phase: Phase::Negotiating,
            status: 0,
            offered: features,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            queues,
            vectors: Arc::new(vectors),
            vector_count,
            memory,
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn accepted_features(&self) -> u64 {
        self.accepted
    }

    pub(crate) fn vectors(&self) -> Arc<Vectors> {
        Arc::clone(&self.vectors)
    }

    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Queues for the device, as the driver has set them up; the registers keep their own copy to answer reads.
    pub(crate) fn active_queues(&self) -> Result<Vec<Queue>, virtio_queue::Error> {
        let event_idx = self.accepted & 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX != 0;
        let restored = self.queues.iter().map(|queue| {
            let mut queue = Queue::try_from(queue.state())?;
            queue.set_event_idx(event_idx);
            Ok(queue)
        });
        restored.collect()
    }

    /// The device is running.
    pub(crate) fn activated(&mut self) {
        if self.phase == Phase::Starting {
            self.phase = Phase::Live;
        }
    }

    /// The device could not start, or has met something it cannot go on with.
    pub(crate) fn broken(&mut self) -> Effect {
        match self.phase {
            Phase::Starting | Phase::Live | Phase::Negotiating => {
                self.phase = Phase::Broken;
                self.status |= NEEDS_RESET;
                Effect::NeedsReset
            }
            Phase::Resetting | Phase::Broken => Effect::None,
        }
    }

    /// The device has stopped; the driver may begin again.
    pub(crate) fn reset_done(&mut self) {
        self.phase = Phase::Negotiating;
        self.status = 0;
        self.accepted = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        self.queues.iter_mut().for_each(QueueT::reset);
        self.vectors.config.store(NO_VECTOR, Ordering::Release);
        self.vectors
            .queues
            .iter()
            .for_each(|vector| vector.store(NO_VECTOR, Ordering::Release));
    }

    /// The driver reads `data.len()` bytes at `offset`. Fields are read whole (4.1.3.1); anything else reads as ones.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        let value = match (offset, data.len()) {
            (0x00, 4) => u64::from(self.device_feature_select),
            (0x04, 4) => u64::from(half(self.offered, self.device_feature_select)),
            (0x08, 4) => u64::from(self.driver_feature_select),
            (0x0C, 4) => u64::from(half(self.accepted, self.driver_feature_select)),
            (0x10, 2) => u64::from(self.vectors.config.load(Ordering::Acquire)),
            (0x12, 2) => self.queues.len() as u64,
            (0x14, 1) => u64::from(self.status),
            (0x16, 2) => u64::from(self.queue_select),
            _ => self.read_queue(offset, data.len()),
        };
        let bytes = value.to_le_bytes();
        match bytes.get(..data.len()) {
            Some(source) => data.copy_from_slice(source),
            None => data.fill(0xFF),
        }
    }

    /// The driver writes. What it may not write now, or not in this size, is ignored.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) -> Effect {
        let mut bytes = [0; 8];
        let Some(target) = bytes.get_mut(..data.len()) else {
            return Effect::None;
        };
        target.copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        match (offset, data.len()) {
            (0x00, 4) => self.device_feature_select = value as u32,
            (0x08, 4) => self.driver_feature_select = value as u32,
            (0x0C, 4) => self.accept_features(value as u32),
            (0x10, 2) => self
                .vectors
                .config
                .store(self.known_vector(value as u16), Ordering::Release),
            (0x14, 1) => return self.write_status(value as u8),
            (0x16, 2) => self.queue_select = value as u16,
            _ => self.write_queue(offset, data.len(), value),
        }
        Effect::None
    }

    fn read_queue(&self, offset: usize, length: usize) -> u64 {
        let index = usize::from(self.queue_select);
        let Some(queue) = self.queues.get(index) else {
            // 4.1.4.3.1: a queue that does not exist has size 0; the rest follows.
            return 0;
        };
        match (offset, length) {
            (0x18, 2) => u64::from(queue.size()),
            (0x1A, 2) => u64::from(self.vectors.queues[index].load(Ordering::Acquire)),
            (0x1C, 2) => u64::from(queue.ready()),
            (0x1E, 2) => u64::from(self.queue_select),
            (0x20 | 0x28 | 0x30, 4 | 8) => address(queue, offset),
            (0x24 | 0x2C | 0x34, 4) => address(queue, offset - 4) >> 32,
            _ => u64::MAX,
        }
    }

    fn write_queue(&mut self, offset: usize, length: usize, value: u64) {
        let vector = self.known_vector(value as u16);
        let index = usize::from(self.queue_select);
        let negotiating = self.phase == Phase::Negotiating;
        let Some(queue) = self.queues.get_mut(index) else {
            return;
        };
        if (offset, length) == (0x1A, 2) {
            self.vectors.queues[index].store(vector, Ordering::Release);
            return;
        }
        // 4.1.4.3.2: a queue is set up before it is enabled, and enabled before DRIVER_OK.
        if queue.ready() || !negotiating || self.status & FEATURES_OK == 0 {
            return;
        }
        let (low, high) = (Some(value as u32), Some((value >> 32) as u32));
        match (offset, length) {
            // Queue keeps its size if this one is no power of two or above the maximum.
            (0x18, 2) => queue.set_size(value as u16),
            (0x1C, 2) => queue.set_ready(value == 1),
            (0x20, 4) => queue.set_desc_table_address(low, None),
            (0x24, 4) => queue.set_desc_table_address(None, low),
            (0x20, 8) => queue.set_desc_table_address(low, high),
            (0x28, 4) => queue.set_avail_ring_address(low, None),
            (0x2C, 4) => queue.set_avail_ring_address(None, low),
            (0x28, 8) => queue.set_avail_ring_address(low, high),
            (0x30, 4) => queue.set_used_ring_address(low, None),
            (0x34, 4) => queue.set_used_ring_address(None, low),
            (0x30, 8) => queue.set_used_ring_address(low, high),
            _ => {}
        }
    }

    fn accept_features(&mut self, value: u32) {
        // 3.1.1: not after FEATURES_OK.
        if self.status & FEATURES_OK != 0 {
            return;
        }
        match self.driver_feature_select {
            0 => self.accepted = self.accepted & !0xFFFF_FFFF | u64::from(value),
            1 => self.accepted = self.accepted & 0xFFFF_FFFF | u64::from(value) << 32,
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return self.reset();
        }
        // 2.1.1: the driver sets bits one after another and clears none but by a reset.
        let added = value & DRIVER_MAY_SET & !self.status;
        if self.phase == Phase::Resetting || value & self.status != self.status & !NEEDS_RESET {
            return Effect::None;
        }
        let features_fit = self.accepted & !self.offered == 0 && self.accepted & 1 << VIRTIO_F_VERSION_1 != 0;
        self.status |= added & !(FEATURES_OK | DRIVER_OK);
        if added & FEATURES_OK != 0 && features_fit {
            self.status |= FEATURES_OK;
        }
        if added & DRIVER_OK != 0 && self.status & FEATURES_OK != 0 && self.phase == Phase::Negotiating {
            self.status |= DRIVER_OK;
            return self.start();
        }
        Effect::None
    }

    fn start(&mut self) -> Effect {
        if self.usable() {
            self.phase = Phase::Starting;
            Effect::Activate
        } else {
            self.broken()
        }
    }

    /// Queue 0 and whatever else is enabled lies in guest memory.
    fn usable(&self) -> bool {
        let mut enabled = self.queues.iter().filter(|queue| queue.ready());
        let first = self.queues.first().is_none_or(QueueT::ready);
        first && enabled.all(|queue| queue.is_valid(&self.memory))
    }

    fn reset(&mut self) -> Effect {
        match self.phase {
            // Nothing runs: the driver need not wait. (Linux resets every device before it negotiates, and sleeps a
            // tick if the status is not 0 at once.)
            Phase::Negotiating => {
                self.reset_done();
                Effect::None
            }
            Phase::Starting | Phase::Live | Phase::Broken => {
                self.phase = Phase::Resetting;
                Effect::Reset
            }
            Phase::Resetting => Effect::None,
        }
    }

    /// 4.1.5.1.2.1: a vector that cannot be used reads back as NO_VECTOR.
    fn known_vector(&self, vector: u16) -> u16 {
        if vector < self.vector_count {
            vector
        } else {
            NO_VECTOR
        }
    }
}

fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn address(queue: &Queue, offset: usize) -> u64 {
    let address = match offset {
        0x20 => queue.desc_table(),
        0x28 => queue.avail_ring(),
        _ => queue.used_ring(),
    };
    GuestAddress(address).0
}

#[cfg(test)]
mod tests;
