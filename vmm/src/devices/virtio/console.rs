//! virtio-console (virtio 1.2, 5.3): hvc0, output only, into the console ring.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::single_queue::{Chain, ServedQueue};
use super::{ActivateError, Activation, GuestMemory, SavedDevice, SavedState, VirtioDevice};
use crate::devices::ring::ConsoleRing;

/// Queue 0 receives (nothing ever), queue 1 transmits.
const QUEUE_SIZES: [u16; 2] = [16, 64];
const TRANSMIT: u16 = 1;
/// Linux writes a page at most; what a chain holds beyond this is dropped.
const CHAIN_LIMIT: u64 = 64 << 10;

/// The device.
#[derive(Debug)]
pub(crate) struct Console {
    ring: Arc<Mutex<ConsoleRing>>,
    transmit: Option<ServedQueue>,
}

impl Console {
    pub(crate) fn new(ring: Arc<Mutex<ConsoleRing>>) -> Self {
        Self { ring, transmit: None }
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    /// One port and no size: nothing else is of use for output.
    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// cols, rows, max_nr_ports, emerg_wr exist with features that are not offered (5.3.4): they read as zeros.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        if offset < 12 {
            data.fill(0);
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = activation;
        let transmit = queues.into_iter().nth(usize::from(TRANSMIT));
        let transmit = transmit.ok_or(ActivateError::Driver("the console has no transmit queue"))?;
        self.transmit = Some(ServedQueue::new(TRANSMIT, transmit, memory, interrupt));
        Ok(())
    }

    fn save(&self) -> Option<SavedDevice> {
        Some(SavedDevice {
            progress: self.transmit.iter().map(ServedQueue::progress).collect(),
            own: SavedState::Console,
        })
    }

    fn deactivate(&mut self) {
        self.transmit = None;
    }
}

impl MutEventSubscriber for Console {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Some(transmit) = &self.transmit {
            transmit.watch(ops);
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        if let Some(transmit) = &mut self.transmit {
            let ring = &self.ring;
            transmit.process(|memory, chain| {
                drain(
                    &mut ring.lock().unwrap_or_else(PoisonError::into_inner),
                    memory,
                    chain,
                );
                0
            });
        }
    }
}

/// Moves the chain's readable part into the ring.
fn drain(ring: &mut ConsoleRing, memory: &GuestMemory, chain: Chain<'_>) {
    let Ok(reader) = chain.reader(memory) else {
        return;
    };
    let mut reader = reader.take(CHAIN_LIMIT);
    let mut piece = [0; 1024];
    while let Ok(length @ 1..) = reader.read(&mut piece) {
        ring.push(&piece[..length]);
    }
}

#[cfg(test)]
mod tests {
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn what_the_guest_transmits_is_in_the_ring() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        memory
            .write_slice(b"Linux version", GuestAddress(0x8000))
            .unwrap();
        let queue = MockSplitQueue::new(&memory, 16);
        let descriptors = [
            RawDescriptor::from(Descriptor::new(0x8000, 6, 1, 1)),
            RawDescriptor::from(Descriptor::new(0x8006, 7, 0, 0)),
        ];
        let mut ring = ConsoleRing::new(64);
        drain(&mut ring, &memory, queue.build_desc_chain(&descriptors).unwrap());
        assert_eq!(ring.text(), "Linux version");
    }

    #[test]
    fn a_chain_outside_of_memory_is_ignored_and_a_huge_one_is_cut() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let mut ring = ConsoleRing::new(1 << 20);
        for (address, length, kept) in [(0xFFFF_0000, 64, 0), (0x1_0000, 0x8_0000, 64 << 10)] {
            let queue = MockSplitQueue::new(&memory, 16);
            let descriptor = RawDescriptor::from(Descriptor::new(address, length, 0, 0));
            drain(&mut ring, &memory, queue.build_desc_chain(&[descriptor]).unwrap());
            assert_eq!(ring.bytes().len(), kept);
        }
    }
}
