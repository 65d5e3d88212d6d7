//! The event queue, whose one event tells the driver of a restored Machine that all its connections are lost, and that its
//! CID may be another (virtio 1.2, 5.10.6.7).
//!
//! ```text
//! Silent      Owed ── a buffer is there: the event is in it ──▶ Told ── the buffer comes back ──▶ Silent
//! ```
//!
//! Until the buffer comes back no packet is moved. Linux resets every socket that is connected when it gets to the event, on
//! a work queue of its own: one that was opened in the meantime would be reset as well, and the host would never learn.

use std::num::Wrapping;
use std::sync::atomic::Ordering;

use virtio_queue::{Error, Queue, QueueT};
use vm_memory::Bytes;

use super::super::{ActiveQueue, GuestMemory};

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, in `struct virtio_vsock_event`.
const TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();

/// The queue and what is to be told on it.
#[derive(Debug)]
pub(super) struct EventQueue {
    pub(super) active: ActiveQueue,
    news: News,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    Silent,
    Owed,
    /// With the index of the available ring at that time: it moves when the driver is done.
    Told(Wrapping<u16>),
}

impl EventQueue {
    /// A driver that has not enabled the queue cannot be told anything.
    pub(super) fn new(active: ActiveQueue, reset_owed: bool) -> Self {
        let news = if reset_owed && active.queue.ready() {
            News::Owed
        } else {
            News::Silent
        };
        Self { active, news }
    }

    /// Whether the driver has still to be told something.
    pub(super) fn owes(&self) -> bool {
        self.news == News::Owed
    }

    /// Tells what is to be told. `Ok(true)`: the driver is to be interrupted.
    pub(super) fn tell(&mut self, memory: &GuestMemory) -> Result<bool, Error> {
        if self.news != News::Owed {
            return Ok(false);
        }
        let queue = &mut self.active.queue;
        let mut told = false;
        // All buffers are taken, so that the doorbell rings at the first one that comes back; those behind the event go back
        // empty, which Linux passes over.
        while let Some(chain) = queue.pop_descriptor_chain(memory) {
            let head = chain.head_index();
            let mut written = 0;
            if let (false, Some(buffer)) = (told, chain.writable().next())
                && memory.write_slice(&TRANSPORT_RESET, buffer.addr()).is_ok()
            {
                told = true;
                written = TRANSPORT_RESET.len() as u32;
            }
            queue.add_used(memory, head, written)?;
        }
        queue.enable_notification(memory)?;
        if told {
            self.news = News::Told(available(queue, memory)?);
        }
        Ok(told)
    }

    /// Whether packets may be moved.
    pub(super) fn is_settled(&mut self, memory: &GuestMemory) -> Result<bool, Error> {
        if let News::Told(index) = self.news
            && available(&self.active.queue, memory)? != index
        {
            self.news = News::Silent;
        }
        Ok(self.news == News::Silent)
    }
}

fn available(queue: &Queue, memory: &GuestMemory) -> Result<Wrapping<u16>, Error> {
    queue.avail_idx(memory, Ordering::Acquire)
}
