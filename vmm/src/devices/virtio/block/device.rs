//! The device: configuration space and features; the work is the worker's.

use std::fs::File;
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::super::{ActivateError, Activation, VirtioDevice, config_space};
use super::disk::{Disk, DiskError};
use super::request::{
    Context, ID_BYTES, MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS, MAX_ZERO_RANGES, MAX_ZERO_SECTORS,
};
use super::worker::{Duty, Worker};

const QUEUE_SIZE: u16 = 256;
/// Data segments of a request; with header and status they fill the queue, so that a driver without indirect
/// descriptors can send one.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// `struct virtio_blk_config` up to `write_zeroes_may_unmap` and its padding.
const CONFIG_BYTES: usize = 60;

/// virtio-blk.
#[derive(Debug)]
pub(crate) struct Block {
    id: String,
    disk: Arc<Disk>,
    config: [u8; CONFIG_BYTES],
    state: State,
}

#[derive(Debug)]
enum State {
    Offered,
    Active(Worker),
}

impl Block {
    /// A disk with `id` as its serial number (the first 20 bytes of it) on an open file or block device.
    pub(crate) fn new(id: &str, file: File, read_only: bool) -> Result<Self, DiskError> {
        let disk = Disk::new(id, file, read_only)?;
        let config = config(&disk);
        Ok(Self {
            id: id.to_owned(),
            disk: Arc::new(disk),
            config,
            state: State::Offered,
        })
    }
}

/// 5.2.4, all little-endian. Fields of features that are not offered stay 0.
fn config(disk: &Disk) -> [u8; CONFIG_BYTES] {
    let exponent = disk.block_exponent().unwrap_or(0);
    let mut config = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &disk.sectors().to_le_bytes());
    put(12, &MAX_SEGMENTS.to_le_bytes());
    // blk_size: any sector can be written on its own.
    put(20, &512_u32.to_le_bytes());
    put(24, &[exponent]);
    put(26, &(1_u16 << exponent).to_le_bytes());
    put(34, &1_u16.to_le_bytes());
    put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
    put(40, &MAX_DISCARD_RANGES.to_le_bytes());
    put(44, &(1_u32 << exponent).to_le_bytes());
    put(48, &MAX_ZERO_SECTORS.to_le_bytes());
    put(52, &MAX_ZERO_RANGES.to_le_bytes());
    put(56, &[1]);
    config
}

/// The serial number: ASCII, filled up with zeros (5.2.6, GET_ID).
pub(super) fn serial(id: &str) -> [u8; ID_BYTES] {
    let mut serial = [0; ID_BYTES];
    for (target, source) in serial.iter_mut().zip(id.bytes()) {
        *target = source;
    }
    serial
}

impl MutEventSubscriber for Block {
    // The worker waits for notifications itself; the event loop has nothing to watch.
    fn init(&mut self, _ops: &mut EventOps<'_>) {}

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {}
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
        ];
        if self.disk.block_exponent().is_some() {
            bits.push(VIRTIO_BLK_F_TOPOLOGY);
        }
        if self.disk.is_read_only() {
            bits.push(VIRTIO_BLK_F_RO);
        } else {
            bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        bits.iter().fold(0, |features, bit| features | 1 << bit)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config_space::read(&self.config, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            mut queues,
            features,
            interrupt,
        } = activation;
        let queue = queues
            .pop()
            .ok_or(ActivateError::Driver("block needs its queue"))?;
        let context = Context {
            disk: Arc::clone(&self.disk),
            id: serial(&self.id),
            write_through: features & (1 << VIRTIO_BLK_F_FLUSH) == 0,
        };
        let duty = Duty {
            context,
            memory,
            queue,
            interrupt,
        };
        let worker =
            Worker::start(&format!("blk-{}", self.id), duty).map_err(|source| ActivateError::Host {
                operation: "start the worker thread",
                source,
            })?;
        self.state = State::Active(worker);
        Ok(())
    }

    fn deactivate(&mut self) {
        if let State::Active(worker) = std::mem::replace(&mut self.state, State::Offered) {
            worker.stop();
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.deactivate();
    }
}
