//! The device: the region's numbers in the configuration, requests of the driver answered.

use std::ops::Range;
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use proto::machine::MemoryStats;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;

use super::super::buffers::Buffers;
use super::super::single_queue::{Chain, ServedQueue};
use super::super::{
    ActivateError, Activation, GuestMemory, Interrupt, SavedDevice, SavedState, VirtioDevice, config_space,
};
use super::blocks::{Answer, BLOCK, Blocks, Plugged, Request, Span};
use crate::memory;

/// Linux has one request in flight.
const QUEUE_SIZE: u16 = 16;
/// The driver must not read what is unplugged either: there is nothing to be found.
const UNPLUGGED_INACCESSIBLE: u32 = 1;
const CONFIG_BYTES: usize = 56;
/// Type, padding; address, number of blocks, padding.
const REQUEST_BYTES: usize = 24;
const MIB: u64 = 1 << 20;

/// Why the host's wish is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ResizeError {
    #[error("plugged_mib: {asked} is above the memory device's {max}")]
    TooLarge { asked: u64, max: u64 },
    #[error("plugged_mib: {0} is no multiple of 2")]
    NoBlocks(u64),
}

/// virtio-mem.
#[derive(Debug)]
pub(crate) struct Mem {
    blocks: Blocks,
    generation: u8,
    active: Option<Active>,
}

/// What a snapshot keeps beyond the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedMem {
    /// Block by block.
    plugged: Vec<bool>,
    requested_bytes: u64,
    generation: u8,
}

#[derive(Debug)]
struct Active {
    requests: ServedQueue,
    interrupt: Arc<dyn Interrupt>,
}

impl Mem {
    /// All of `region`, which is guest memory, nothing of it plugged.
    pub(crate) fn new(region: &Range<u64>) -> Self {
        Self {
            blocks: Blocks::new(region),
            generation: 0,
            active: None,
        }
    }

    /// Likewise, with what was saved of another; `None` if that had another region.
    pub(crate) fn restored(region: &Range<u64>, saved: SavedMem) -> Option<Self> {
        Some(Self {
            blocks: Blocks::restored(region, saved.plugged, saved.requested_bytes)?,
            generation: saved.generation,
            active: None,
        })
    }

    /// The host would like this much to be plugged.
    pub(crate) fn resize(&mut self, mib: u64) -> Result<(), ResizeError> {
        let max = self.blocks.size() / MIB;
        if mib > max {
            return Err(ResizeError::TooLarge { asked: mib, max });
        }
        if !(mib * MIB).is_multiple_of(BLOCK) {
            return Err(ResizeError::NoBlocks(mib));
        }
        self.blocks.request(mib * MIB);
        self.generation = self.generation.wrapping_add(1);
        if let Some(active) = &self.active {
            active.interrupt.signal_config();
        }
        Ok(())
    }

    /// How far it has got.
    pub(crate) fn stats(&self) -> MemoryStats {
        MemoryStats {
            max_mib: self.blocks.size() / MIB,
            requested_mib: self.blocks.requested() / MIB,
            plugged_mib: self.blocks.plugged() / MIB,
        }
    }

    /// Answers what is in the queue.
    pub(crate) fn pass(&mut self) {
        let blocks = &mut self.blocks;
        if let Some(active) = &mut self.active {
            active
                .requests
                .process(|memory, chain| serve(blocks, memory, chain));
        }
    }

    /// 5.15.4, all little-endian.
    fn config(&self) -> [u8; CONFIG_BYTES] {
        let mut config = [0; CONFIG_BYTES];
        let mut put = |at: usize, value: u64| config[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(0, BLOCK);
        // 8: node_id, of a feature that is not offered.
        put(16, self.blocks.start());
        put(24, self.blocks.size());
        // usable_region_size: blocks may be plugged anywhere.
        put(32, self.blocks.size());
        put(40, self.blocks.plugged());
        put(48, self.blocks.requested());
        config
    }
}

/// Answers one request; returns how many bytes the answer has. A chain that is no request gets none.
fn serve(blocks: &mut Blocks, memory: &GuestMemory, chain: Chain<'_>) -> u32 {
    let Ok(Buffers {
        mut readable,
        writable,
    }) = Buffers::collect(memory, chain)
    else {
        tracing::debug!("mem: the guest sent no request");
        return 0;
    };
    let answer = match readable.take_array().map(parse) {
        Some(Some(request)) => {
            let discard = |address, bytes| memory::discard(memory, address, bytes);
            blocks.answer(request, discard)
        }
        _ => Answer::Error,
    };
    // At most ten bytes.
    writable.copy_from(&encode(answer)) as u32
}

/// `struct virtio_mem_req`; `None`: a type that does not exist.
fn parse(bytes: [u8; REQUEST_BYTES]) -> Option<Request> {
    let [
        t0,
        t1,
        _,
        _,
        _,
        _,
        _,
        _,
        a0,
        a1,
        a2,
        a3,
        a4,
        a5,
        a6,
        a7,
        n0,
        n1,
        ..,
    ] = bytes;
    let span = Span {
        address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
        count: u16::from_le_bytes([n0, n1]),
    };
    match u16::from_le_bytes([t0, t1]) {
        0 => Some(Request::Plug(span)),
        1 => Some(Request::Unplug(span)),
        2 => Some(Request::UnplugAll),
        3 => Some(Request::State(span)),
        _ => None,
    }
}

/// `struct virtio_mem_resp`: type, padding; state.
fn encode(answer: Answer) -> [u8; 10] {
    let (kind, state): (u8, u8) = match answer {
        Answer::Ack => (0, 0),
        Answer::Nack => (1, 0),
        Answer::Busy => (2, 0),
        Answer::Error => (3, 0),
        Answer::State(Plugged::All) => (0, 0),
        Answer::State(Plugged::None) => (0, 1),
        Answer::State(Plugged::Some) => (0, 2),
    };
    [kind, 0, 0, 0, 0, 0, 0, 0, state, 0]
}

impl MutEventSubscriber for Mem {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Some(active) = &self.active {
            active.requests.watch(ops);
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        self.pass();
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_MEM
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << UNPLUGGED_INACCESSIBLE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config_space::read(&self.config(), offset, data);
    }

    fn config_generation(&self) -> u8 {
        self.generation
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = activation;
        let requests = queues
            .into_iter()
            .next()
            .ok_or(ActivateError::Driver("mem needs its queue"))?;
        self.active = Some(Active {
            requests: ServedQueue::new(0, requests, memory, Arc::clone(&interrupt)),
            interrupt,
        });
        Ok(())
    }

    fn save(&self) -> Option<SavedDevice> {
        let queue = self.active.as_ref().map(|active| active.requests.progress());
        Some(SavedDevice {
            progress: queue.into_iter().collect(),
            own: SavedState::Memory(SavedMem {
                plugged: self.blocks.states().to_vec(),
                requested_bytes: self.blocks.requested(),
                generation: self.generation,
            }),
        })
    }

    /// What is plugged stays plugged: the guest may be using it (5.15.5).
    fn deactivate(&mut self) {
        self.active = None;
    }
}
