//! The guest's side of the wire: buffers of the rx queue, filled with packets.
//!
//! Linux posts rx buffers of one page. One read(2) per page would be most of the cost of a stream, so the window gathers
//! many chains, lets the connection read into all of them at once, and cuts what came into one packet per chain. Chains
//! that were gathered and not needed go back to the queue, which is possible because nothing of them was used.

use std::collections::VecDeque;

use tracing::debug;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::super::GuestMemory;
use super::super::buffers::{Buffers, Segments, Slice};
use super::connection::{Emission, PayloadRoom};
use super::packet::HEADER_LENGTH;

/// Chains that one read may fill.
const MAX_CHAINS: usize = 32;

/// Where the next packets go. Ends with [`RxWindow::close`].
pub(super) struct RxWindow<'q, 'm> {
    memory: &'m GuestMemory,
    queue: &'q mut Queue,
    chains: VecDeque<RxChain<'m>>,
    /// The payload rooms of `chains` in one row, for readv.
    row: Vec<Slice<'m>>,
    used: bool,
}

struct RxChain<'m> {
    head: u16,
    header: Segments<'m>,
    payload: Segments<'m>,
}

impl<'q, 'm> RxWindow<'q, 'm> {
    pub(super) fn new(memory: &'m GuestMemory, queue: &'q mut Queue) -> Self {
        Self { memory, queue, chains: VecDeque::new(), row: Vec::new(), used: false }
    }

    /// Whether there is room for at least one packet.
    pub(super) fn has_room(&mut self) -> Result<bool, virtio_queue::Error> {
        while self.chains.is_empty() {
            if !self.gather_one()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Hands a packet to the guest, in as many pieces as its buffers make of it.
    pub(super) fn commit(&mut self, emission: &Emission) -> Result<(), virtio_queue::Error> {
        let mut left = emission.payload;
        while let Some(chain) = self.chains.pop_front() {
            let length = left.min(chain.payload.len());
            let mut header = emission.header;
            // Both are far below 4 GiB: the window is some pages and the header 44 bytes.
            header.length = u32::try_from(length).unwrap_or(u32::MAX);
            chain.header.copy_from(&header.encode());
            let written = u32::try_from(HEADER_LENGTH + length).unwrap_or(u32::MAX);
            self.queue.add_used(self.memory, chain.head, written)?;
            self.used = true;
            left -= length;
            if left == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Gives back what was gathered too much; tells whether the guest got any buffer back.
    pub(super) fn close(self) -> bool {
        for _unused in &self.chains {
            self.queue.go_to_previous_position();
        }
        self.used
    }

    /// Takes one chain from the queue; false if there is none to take. One that is no use is handed back empty, but only
    /// with nothing gathered before it: what goes back to the queue must be its last chains.
    fn gather_one(&mut self) -> Result<bool, virtio_queue::Error> {
        let Some(chain) = self.queue.iter(self.memory)?.next() else { return Ok(false) };
        let head = chain.head_index();
        let reason = match Buffers::collect(self.memory, chain) {
            // A buffer without room for payload would make a read of 0 bytes look like the end of the stream.
            Ok(buffers) if buffers.writable.len() > HEADER_LENGTH => {
                let mut payload = buffers.writable;
                let header = payload.take(HEADER_LENGTH);
                self.chains.push_back(RxChain { head, header, payload });
                return Ok(true);
            }
            Ok(_) => "shorter than a packet".to_owned(),
            Err(error) => error.to_string(),
        };
        if !self.chains.is_empty() {
            self.queue.go_to_previous_position();
            return Ok(false);
        }
        debug!(head, reason, "vsock: useless rx buffer");
        self.used = true;
        self.queue.add_used(self.memory, head, 0)?;
        Ok(true)
    }
}

impl<'m> PayloadRoom<'m> for RxWindow<'_, 'm> {
    fn payload(&mut self, limit: usize) -> &[Slice<'m>] {
        let mut room: usize = self.chains.iter().map(|chain| chain.payload.len()).sum();
        // A queue that breaks here is found broken by the next `has_room`.
        while room < limit && self.chains.len() < MAX_CHAINS && self.gather_one().unwrap_or(false) {
            room = self.chains.iter().map(|chain| chain.payload.len()).sum();
        }
        self.row.clear();
        let mut left = limit;
        for slice in self.chains.iter().flat_map(|chain| chain.payload.slices()) {
            let Ok(slice) = slice.subslice(0, slice.len().min(left)) else { break };
            left -= slice.len();
            self.row.push(slice);
            if left == 0 {
                break;
            }
        }
        &self.row
    }
}
