//! The registers in a snapshot: what is kept of them, and what must hold before another Machine goes on with them.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState, QueueT};

use super::{DRIVER_OK, FEATURES_OK, Phase, Registers};
use crate::devices::virtio::QueueProgress;

/// The registers, and where the device stood in its queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedRegisters {
    phase: SavedPhase,
    status: u8,
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    config_vector: u16,
    queues: Vec<SavedQueue>,
}

/// The phases in which nobody waits for the event loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum SavedPhase {
    Negotiating,
    Live,
    Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct SavedQueue {
    size: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    vector: u16,
    progress: QueueProgress,
}

impl Registers {
    /// What a snapshot keeps; `progress` is the device's. `None` while the event loop is about to start or stop it.
    pub(crate) fn save(&self, progress: &[(u16, QueueProgress)]) -> Option<SavedRegisters> {
        let phase = match self.phase {
            Phase::Negotiating => SavedPhase::Negotiating,
            Phase::Live => SavedPhase::Live,
            Phase::Broken => SavedPhase::Broken,
            Phase::Starting | Phase::Resetting => return None,
        };
        let queues = (0_u16..).zip(self.queues.iter().zip(&self.vectors.queues));
        let queues = queues.map(|(number, (queue, vector))| {
            let found = progress.iter().find(|(of, _)| *of == number);
            SavedQueue {
                size: queue.size(),
                ready: queue.ready(),
                descriptors: queue.desc_table(),
                available: queue.avail_ring(),
                used: queue.used_ring(),
                vector: vector.load(Ordering::Acquire),
                progress: found.map_or_else(QueueProgress::default, |(_, progress)| *progress),
            }
        });
        Some(SavedRegisters {
            phase,
            status: self.status,
            accepted: self.accepted,
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            queue_select: self.queue_select,
            config_vector: self.vectors.config.load(Ordering::Acquire),
            queues: queues.collect(),
        })
    }

    /// Takes over what was saved of a device with the same features and queues. A device that lived is to be started next,
    /// as after DRIVER_OK. An error says what does not fit; the registers are of no use then.
    pub(crate) fn restore(&mut self, saved: &SavedRegisters) -> Result<(), &'static str> {
        if saved.queues.len() != self.queues.len() {
            return Err("it had another number of queues");
        }
        for (queue, from) in self.queues.iter_mut().zip(&saved.queues) {
            *queue = from
                .queue(queue.max_size())
                .ok_or("a queue of it cannot be one of this device")?;
        }
        for (index, from) in saved.queues.iter().enumerate() {
            let vector = self.known_vector(from.vector);
            self.vectors.queues[index].store(vector, Ordering::Release);
        }
        let vector = self.known_vector(saved.config_vector);
        self.vectors.config.store(vector, Ordering::Release);
        self.status = saved.status;
        self.accepted = saved.accepted;
        self.device_feature_select = saved.device_feature_select;
        self.driver_feature_select = saved.driver_feature_select;
        self.queue_select = saved.queue_select;
        self.phase = match saved.phase {
            SavedPhase::Negotiating => Phase::Negotiating,
            SavedPhase::Broken => Phase::Broken,
            SavedPhase::Live => self.lives_on()?,
        };
        Ok(())
    }

    /// Numbers of the queues that the driver has enabled.
    pub(crate) fn enabled_queues(&self) -> impl Iterator<Item = usize> {
        let queues = self.queues.iter().enumerate();
        queues
            .filter(|(_, queue)| queue.ready())
            .map(|(number, _)| number)
    }

    fn lives_on(&self) -> Result<Phase, &'static str> {
        let driven = FEATURES_OK | DRIVER_OK;
        if self.status & driven != driven {
            return Err("its driver was not there");
        }
        if self.accepted & !self.offered != 0 {
            return Err("its driver uses features that this device has not");
        }
        if self.usable() {
            Ok(Phase::Starting)
        } else {
            Err("its queues are not in guest memory")
        }
    }
}

impl SavedQueue {
    fn queue(&self, max_size: u16) -> Option<Queue> {
        let state = QueueState {
            max_size,
            next_avail: self.progress.next_avail,
            next_used: self.progress.next_used,
            event_idx_enabled: false,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        };
        Queue::try_from(state).ok()
    }
}
