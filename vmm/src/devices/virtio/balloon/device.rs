//! The device: the host's wish and the driver's answer in the configuration, three kinds of queues.

use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use proto::machine::BalloonStats;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_queue::QueueT;

use super::super::single_queue::ServedQueue;
use super::super::{
    ActivateError, Activation, Interrupt, SavedDevice, SavedState, VirtioDevice, config_space,
};
use super::pages;

/// Inflate, deflate, and the three numbers that the reporting queue can have. Linux wants room for 32 buffers there.
const QUEUE_SIZES: [u16; 5] = [128; 5];
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;

/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM (5.5.3)
const DEFLATE_ON_OOM: u32 = 2;
/// VIRTIO_BALLOON_F_PAGE_REPORTING (5.5.3)
const PAGE_REPORTING: u32 = 5;
/// Where `actual` is in the configuration, behind `num_pages`.
const ACTUAL: u64 = 4;
const PAGES_PER_MIB: u32 = 256;

/// Why the host's wish is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("held_mib: {asked} is above the guest's memory of {max}")]
pub(crate) struct HoldError {
    asked: u64,
    max: u64,
}

/// virtio-balloon.
#[derive(Debug)]
pub(crate) struct Balloon {
    memory_mib: u64,
    requested_pages: u32,
    actual_pages: u32,
    reported_bytes: u64,
    generation: u8,
    active: Option<Active>,
}

/// What a snapshot keeps beyond the queues. What was reported is counted anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedBalloon {
    requested_pages: u32,
    actual_pages: u32,
    generation: u8,
}

#[derive(Debug)]
struct Active {
    /// Those that the driver has enabled, with their numbers.
    queues: Vec<(u16, ServedQueue)>,
    interrupt: Arc<dyn Interrupt>,
}

impl Balloon {
    /// The balloon of a guest that can have `memory_mib` of memory.
    pub(crate) fn new(memory_mib: u64) -> Self {
        Self {
            memory_mib,
            requested_pages: 0,
            actual_pages: 0,
            reported_bytes: 0,
            generation: 0,
            active: None,
        }
    }

    /// Likewise, with what was saved of another.
    pub(crate) fn restored(memory_mib: u64, saved: SavedBalloon) -> Self {
        Self {
            requested_pages: saved.requested_pages,
            actual_pages: saved.actual_pages,
            generation: saved.generation,
            ..Self::new(memory_mib)
        }
    }

    /// The host would like the guest to do without this much.
    pub(crate) fn hold(&mut self, mib: u64) -> Result<(), HoldError> {
        let max = self.memory_mib;
        let pages = u32::try_from(mib)
            .ok()
            .and_then(|mib| mib.checked_mul(PAGES_PER_MIB));
        let (Some(pages), true) = (pages, mib <= max) else {
            return Err(HoldError { asked: mib, max });
        };
        self.requested_pages = pages;
        self.generation = self.generation.wrapping_add(1);
        if let Some(active) = &self.active {
            active.interrupt.signal_config();
        }
        Ok(())
    }

    /// What it has done.
    pub(crate) fn stats(&self) -> BalloonStats {
        BalloonStats {
            requested_mib: u64::from(self.requested_pages / PAGES_PER_MIB),
            held_mib: u64::from(self.actual_pages / PAGES_PER_MIB),
            reported_bytes: self.reported_bytes,
        }
    }

    /// Serves all queues.
    pub(crate) fn pass(&mut self) {
        let reported = &mut self.reported_bytes;
        let queues = self.active.iter_mut().flat_map(|active| &mut active.queues);
        for (number, queue) in queues {
            queue.process(|memory, chain| {
                match *number {
                    INFLATE => pages::inflate(memory, chain),
                    // The pages are the guest's again: they are there as soon as it touches them.
                    DEFLATE => {}
                    _ => *reported = reported.saturating_add(pages::report(memory, chain)),
                }
                0
            });
        }
    }
}

impl MutEventSubscriber for Balloon {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (_, queue) in self.active.iter().flat_map(|active| &active.queues) {
            queue.watch(ops);
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        self.pass();
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << DEFLATE_ON_OOM | 1 << PAGE_REPORTING
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 8];
        config[..4].copy_from_slice(&self.requested_pages.to_le_bytes());
        config[4..].copy_from_slice(&self.actual_pages.to_le_bytes());
        config_space::read(&config, offset, data);
    }

    fn config_generation(&self) -> u8 {
        self.generation
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(bytes)) = (offset, <[u8; 4]>::try_from(data)) {
            self.actual_pages = u32::from_le_bytes(bytes);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = activation;
        let queues = (0_u16..)
            .zip(queues)
            .filter(|(_, queue)| queue.queue.ready())
            .map(|(number, queue)| {
                let interrupt = Arc::clone(&interrupt);
                (number, ServedQueue::new(number, queue, memory.clone(), interrupt))
            })
            .collect();
        self.active = Some(Active { queues, interrupt });
        Ok(())
    }

    fn save(&self) -> Option<SavedDevice> {
        let queues = self.active.iter().flat_map(|active| &active.queues);
        Some(SavedDevice {
            progress: queues.map(|(_, queue)| queue.progress()).collect(),
            own: SavedState::Balloon(SavedBalloon {
                requested_pages: self.requested_pages,
                actual_pages: self.actual_pages,
                generation: self.generation,
            }),
        })
    }

    /// A driver that begins anew has no page in the balloon.
    fn deactivate(&mut self) {
        self.active = None;
        self.actual_pages = 0;
    }
}
