//! virtio-rng (virtio 1.2, 5.4): the host's random bytes, so that a fresh guest need not gather entropy.

use event_manager::{EventOps, Events, MutEventSubscriber};
use std::io::Write;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::single_queue::{Chain, ServedQueue};
use super::{ActivateError, Activation, GuestMemory, SavedDevice, SavedState, VirtioDevice};

/// Linux asks for 64 bytes at a time.
const QUEUE_SIZE: u16 = 8;
/// More than this is not written for one request: a guest pays for its own appetite, the event loop does not.
const REQUEST_LIMIT: usize = 4096;

/// The device.
#[derive(Debug, Default)]
pub(crate) struct Rng {
    queue: Option<ServedQueue>,
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = activation;
        let mut queues = queues.into_iter();
        let requests = queues.next().ok_or(ActivateError::Driver("it has no queue"))?;
        self.queue = Some(ServedQueue::new(0, requests, memory, interrupt));
        Ok(())
    }

    fn save(&self) -> Option<SavedDevice> {
        Some(SavedDevice {
            progress: self.queue.iter().map(ServedQueue::progress).collect(),
            own: SavedState::Rng,
        })
    }

    fn deactivate(&mut self) {
        self.queue = None;
    }
}

impl MutEventSubscriber for Rng {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Some(queue) = &self.queue {
            queue.watch(ops);
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        if let Some(queue) = &mut self.queue {
            queue.process(fill);
        }
    }
}

/// Fills the chain's writable part; returns how many bytes.
fn fill(memory: &GuestMemory, chain: Chain<'_>) -> u32 {
    let Ok(mut writer) = chain.writer(memory) else {
        return 0;
    };
    let mut bytes = [0; REQUEST_LIMIT];
    let wanted = writer.available_bytes().min(REQUEST_LIMIT);
    let bytes = &mut bytes[..wanted];
    if let Err(error) = getrandom::fill(bytes) {
        tracing::warn!(%error, "the host gives no random bytes");
        return 0;
    }
    writer.write(bytes).map_or(0, |written| written as u32)
}

#[cfg(test)]
mod tests {
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    /// `VRING_DESC_F_WRITE`
    const WRITE: u16 = 2;

    fn filled(address: u64, length: u32, flags: u16) -> (u32, GuestMemory) {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let written = {
            let queue = MockSplitQueue::new(&memory, 16);
            let descriptor = RawDescriptor::from(Descriptor::new(address, length, flags, 0));
            let chain = queue.build_desc_chain(&[descriptor]).unwrap();
            fill(&memory, chain)
        };
        (written, memory)
    }

    #[test]
    fn a_request_is_filled_with_bytes_of_the_host() {
        let (written, memory) = filled(0x8000, 64, WRITE);
        assert_eq!(written, 64);
        let mut bytes = [0_u8; 64];
        memory.read_slice(&mut bytes, GuestAddress(0x8000)).unwrap();
        // All zero has a chance of 2^-512.
        assert_ne!(bytes, [0; 64]);
    }

    #[test]
    fn a_large_request_is_filled_in_part_and_a_broken_one_not_at_all() {
        assert_eq!(filled(0x4000, 0x8000, WRITE).0, REQUEST_LIMIT as u32);
        assert_eq!(filled(0x8000, 64, 0).0, 0, "nothing to write to");
        assert_eq!(filled(0xFFFF_0000, 64, WRITE).0, 0, "outside of memory");
    }
}
