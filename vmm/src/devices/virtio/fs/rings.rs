//! Where the rings of a queue are in this process: what a backend finds them by, in the memory table that it got before.

use vhost::VringConfigData;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::super::GuestMemory;

/// A queue's number and its rings.
pub(super) struct Ring {
    pub(super) index: u16,
    pub(super) places: VringConfigData,
}

impl Ring {
    /// `None`: a part of it does not lie within one range of guest memory. The driver chose the places, and a backend looks
    /// for the first byte only.
    pub(super) fn find(index: u16, queue: &Queue, memory: &GuestMemory) -> Option<Self> {
        let size = u64::from(queue.size());
        // 2.7: descriptors of 16 bytes; flags, index, numbers of 2 bytes, event; flags, index, pairs of 8 bytes, event.
        let places = VringConfigData {
            queue_max_size: queue.max_size(),
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: host_address(memory, queue.desc_table(), 16 * size)?,
            used_ring_addr: host_address(memory, queue.used_ring(), 6 + 8 * size)?,
            avail_ring_addr: host_address(memory, queue.avail_ring(), 6 + 2 * size)?,
            log_addr: None,
        };
        Some(Self { index, places })
    }
}

fn host_address(memory: &GuestMemory, address: u64, bytes: u64) -> Option<u64> {
    let region = memory.find_region(GuestAddress(address))?;
    let offset = address - region.start_addr().raw_value();
    if bytes > region.len() - offset {
        return None;
    }
    Some(region.as_ptr().addr() as u64 + offset)
}
