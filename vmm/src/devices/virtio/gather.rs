//! Many buffers of a receive queue at once, for one read into all of them.
//!
//! Linux posts receive buffers of a page or less. One system call for each would be most of the cost of a stream, and a
//! frame of 64 KiB needs dozens. So chains are gathered ahead of the read; those that were not needed go back to the
//! queue, which is possible because nothing of them was used. Several chains can be used in one step, which net's merged
//! buffers need: a driver that saw the first of them without the rest would drop the frame (virtio 1.2, 5.1.6.4).

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use tracing::debug;
use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::GuestMemory;
use super::buffers::{Buffers, Segments, Slice};

/// Chains ahead of the next read. Ends with [`Gather::finish`].
#[derive(Debug)]
pub(crate) struct Gather<'q, 'm> {
    memory: &'m GuestMemory,
    queue: &'q mut Queue,
    /// A chain of fewer bytes is no use.
    minimum: usize,
    chains: VecDeque<Chain<'m>>,
    room: usize,
    used_before: u16,
}

/// One gathered chain: all of what the driver offers in it.
#[derive(Debug)]
pub(crate) struct Chain<'m> {
    pub(crate) head: u16,
    pub(crate) buffer: Segments<'m>,
}

impl<'q, 'm> Gather<'q, 'm> {
    pub(crate) fn new(memory: &'m GuestMemory, queue: &'q mut Queue, minimum: usize) -> Self {
        let used_before = queue.next_used();
        Self {
            memory,
            queue,
            minimum,
            chains: VecDeque::new(),
            room: 0,
            used_before,
        }
    }

    /// Gathers until there is room for `bytes` in at most `chains` chains, or the queue is empty. Returns the room.
    pub(crate) fn make_room(&mut self, bytes: usize, chains: usize) -> Result<usize, Error> {
        while self.room < bytes && self.chains.len() < chains && self.gather_one()? {}
        Ok(self.room)
    }

    /// Asks the driver to tell of buffers beyond the gathered ones; true if there are some already. Asking after
    /// [`Gather::finish`] would ask for buffers that the driver has told of before.
    pub(crate) fn enable_notification(&mut self) -> Result<bool, Error> {
        self.queue.enable_notification(self.memory)
    }

    /// Whether everything that the driver can offer at one time is gathered.
    pub(crate) fn has_all(&self) -> bool {
        self.chains.len() >= usize::from(self.queue.size())
    }

    /// The gathered buffers in the queue's order.
    pub(crate) fn chains(&self) -> impl Iterator<Item = &Chain<'m>> {
        self.chains.iter()
    }

    /// Up to `bytes` of the gathered buffers in one row, for readv(2).
    pub(crate) fn row(&self, bytes: usize) -> Vec<Slice<'m>> {
        let mut left = bytes;
        let mut row = Vec::with_capacity(self.chains.len());
        for slice in self.chains.iter().flat_map(|chain| chain.buffer.slices()) {
            let Ok(slice) = slice.subslice(0, slice.len().min(left)) else {
                break;
            };
            left -= slice.len();
            row.push(slice);
            if left == 0 {
                break;
            }
        }
        row
    }

    /// Takes the first gathered chain; it must be used.
    pub(crate) fn take_first(&mut self) -> Option<Chain<'m>> {
        let chain = self.chains.pop_front()?;
        self.room -= chain.buffer.len();
        Some(chain)
    }

    /// Hands one chain to the driver with `written` bytes.
    pub(crate) fn use_chain(&mut self, head: u16, written: u32) -> Result<(), Error> {
        self.queue.add_used(self.memory, head, written)
    }

    /// Hands several chains to the driver, which sees all of them or none.
    pub(crate) fn use_chains(&mut self, chains: &[(u16, u32)]) -> Result<(), Error> {
        let Some(((last, written), before)) = chains.split_last() else {
            return Ok(());
        };
        // virtio-queue publishes with each element. The elements before the last are written to their places here, and
        // the last one publishes them all with its release store of the index.
        for (head, written) in before {
            let slot = u64::from(self.queue.next_used() % self.queue.size());
            let address = self
                .queue
                .used_ring()
                .checked_add(4 + 8 * slot)
                .ok_or(Error::AddressOverflow)?;
            // 2.7.8: le32 id, le32 len.
            let element = (u64::from(*head) | u64::from(*written) << 32).to_le();
            self.memory
                .write_obj(element, GuestAddress(address))
                .map_err(Error::GuestMemory)?;
            self.queue.set_next_used(self.queue.next_used().wrapping_add(1));
        }
        self.queue.add_used(self.memory, *last, *written)
    }

    /// Gives back what was gathered too much. Tells whether the driver is to be interrupted.
    pub(crate) fn finish(self) -> Result<bool, Error> {
        for _unused in &self.chains {
            self.queue.go_to_previous_position();
        }
        let (old, new) = (self.used_before, self.queue.next_used());
        if old == new {
            return Ok(false);
        }
        if !self.queue.event_idx_enabled() {
            return Ok(true);
        }
        // 2.7.7.2, with the count of elements that virtio-queue cannot know after `use_chains`. The fence keeps the read
        // behind the store of the index: one of the two sides sees the other's.
        fence(Ordering::SeqCst);
        let used_event = self.used_event().map_err(Error::GuestMemory)?;
        Ok(new.wrapping_sub(used_event).wrapping_sub(1) < new.wrapping_sub(old))
    }

    fn used_event(&self) -> Result<u16, GuestMemoryError> {
        let offset = 4 + 2 * u64::from(self.queue.size());
        let address = self.queue.avail_ring().saturating_add(offset);
        self.memory
            .load(GuestAddress(address), Ordering::Relaxed)
            .map(u16::from_le)
    }

    /// Takes one chain from the queue; false if there is none to take. One that is no use is handed back empty, but only
    /// with nothing gathered before it: what goes back to the queue must be its last chains.
    fn gather_one(&mut self) -> Result<bool, Error> {
        let Some(chain) = self.queue.iter(self.memory)?.next() else {
            return Ok(false);
        };
        let head = chain.head_index();
        let reason = match Buffers::collect(self.memory, chain) {
            Ok(buffers) if buffers.writable.len() >= self.minimum => {
                self.room += buffers.writable.len();
                self.chains.push_back(Chain {
                    head,
                    buffer: buffers.writable,
                });
                return Ok(true);
            }
            Ok(_) => "too short".to_owned(),
            Err(error) => error.to_string(),
        };
        if !self.chains.is_empty() {
            self.queue.go_to_previous_position();
            return Ok(false);
        }
        debug!(head, reason, "virtio: useless receive buffer");
        self.queue.add_used(self.memory, head, 0)?;
        Ok(true)
    }
}
