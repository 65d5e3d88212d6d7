//! The driver's side of a queue, for tests and fuzz targets: puts chains into guest memory and reads the used ring.
//!
//! In place of virtio-queue's mock, which cannot wrap around its ring and so cannot run for long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{Activation, ActiveQueue, GuestMemory, Interrupt};

/// Descriptor flag: the device may write.
pub(crate) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// Descriptor flag: another descriptor follows.
pub(crate) const NEXT: u16 = VRING_DESC_F_NEXT as u16;

/// One descriptor as the driver writes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

/// A queue as its driver sees it.
#[derive(Debug)]
pub(crate) struct DriverQueue {
    memory: GuestMemory,
    base: u64,
    size: u16,
    next_descriptor: u16,
    available: u16,
    used_seen: u16,
}

/// Interrupts are counted.
#[derive(Debug, Default)]
pub(crate) struct CountedInterrupt {
    pub(crate) queue: AtomicU32,
    pub(crate) config: AtomicU32,
}

impl Interrupt for CountedInterrupt {
    fn signal_queue(&self, _index: u16) {
        self.queue.fetch_add(1, Ordering::Relaxed);
    }

    fn signal_config(&self) {
        self.config.fetch_add(1, Ordering::Relaxed);
    }
}

/// Guest memory of `bytes`, with a gap behind it.
pub(crate) fn guest_memory(bytes: usize) -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), bytes)]).expect("guest memory")
}

/// An activation with these queues.
#[cfg(test)]
pub(crate) fn activation(memory: &GuestMemory, queues: &[&DriverQueue], features: u64) -> Activation {
    activation_of(
        memory,
        queues.iter().map(|queue| queue.device_queue()).collect(),
        features,
    )
}

/// Likewise, with queues as the transport sees them.
pub(crate) fn activation_of(memory: &GuestMemory, queues: Vec<Queue>, features: u64) -> Activation {
    let active = |queue| ActiveQueue {
        queue,
        notify: Arc::new(EventFd::new(libc::EFD_NONBLOCK).expect("eventfd")),
    };
    Activation {
        memory: memory.clone(),
        queues: queues.into_iter().map(active).collect(),
        features,
        interrupt: Arc::new(CountedInterrupt::default()),
    }
}

impl DriverQueue {
    /// Rings at `base`: descriptors, then 0x1000 further the available ring, then the used ring.
    pub(crate) fn new(memory: &GuestMemory, base: u64, size: u16) -> Self {
        Self {
            memory: memory.clone(),
            base,
            size,
            next_descriptor: 0,
            available: 0,
            used_seen: 0,
        }
    }

    /// The device's view.
    pub(crate) fn device_queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).expect("queue size");
        let low = |address: u64| Some(u32::try_from(address).expect("below 4 GiB"));
        queue.set_desc_table_address(low(self.base), Some(0));
        queue.set_avail_ring_address(low(self.base + 0x1000), Some(0));
        queue.set_used_ring_address(low(self.base + 0x2000), Some(0));
        queue.set_ready(true);
        queue
    }

    /// Makes a chain of `(address, length, flags)` available; NEXT is added. Descriptors are taken in a circle.
    pub(crate) fn add(&mut self, chain: &[(u64, u32, u16)]) -> u16 {
        let head = self.next_descriptor;
        for (at, (address, length, flags)) in chain.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let more = if at + 1 < chain.len() { NEXT } else { 0 };
            let next = self.next_descriptor;
            self.store(
                index,
                Descriptor {
                    address: *address,
                    length: *length,
                    flags: flags | more,
                    next,
                },
            );
        }
        self.offer(head);
        head
    }

    /// The descriptor that the next chain begins with.
    #[cfg(test)]
    pub(crate) fn next_descriptor(&self) -> u16 {
        self.next_descriptor
    }

    /// Writes one descriptor.
    pub(crate) fn store(&self, index: u16, descriptor: Descriptor) {
        let at = self.base + 16 * u64::from(index);
        self.write(at, &descriptor.address.to_le_bytes());
        self.write(at + 8, &descriptor.length.to_le_bytes());
        self.write(at + 12, &descriptor.flags.to_le_bytes());
        self.write(at + 14, &descriptor.next.to_le_bytes());
    }

    /// Makes the chain at `head` available.
    pub(crate) fn offer(&mut self, head: u16) {
        let ring = self.base + 0x1000;
        self.write(
            ring + 4 + 2 * u64::from(self.available % self.size),
            &head.to_le_bytes(),
        );
        self.available = self.available.wrapping_add(1);
        self.write(ring + 2, &self.available.to_le_bytes());
    }

    /// Sets the available index to anything.
    #[cfg(test)]
    pub(crate) fn set_available(&mut self, index: u16) {
        self.available = index;
        self.write(self.base + 0x1002, &index.to_le_bytes());
    }

    /// What the device has used since the last call: (head, bytes written).
    pub(crate) fn take_used(&mut self) -> Vec<(u16, u32)> {
        let ring = self.base + 0x2000;
        let index: u16 = self.memory.read_obj(GuestAddress(ring + 2)).expect("used index");
        let mut used = Vec::new();
        while self.used_seen != index {
            let at = ring + 4 + 8 * u64::from(self.used_seen % self.size);
            let head: u32 = self.memory.read_obj(GuestAddress(at)).expect("used id");
            let length: u32 = self.memory.read_obj(GuestAddress(at + 4)).expect("used length");
            used.push((u16::try_from(head).expect("a head"), length));
            self.used_seen = self.used_seen.wrapping_add(1);
        }
        used
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect("ring memory");
    }
}
