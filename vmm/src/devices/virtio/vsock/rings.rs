//! The guest's side of the wire: buffers of the rx queue, filled with packets.
//!
//! A connection reads into many buffers at once; what came is cut into one packet per buffer, each with a header of its
//! own before its payload.

use virtio_queue::{Error, Queue};

use super::super::GuestMemory;
use super::super::buffers::Slice;
use super::super::gather::Gather;
use super::connection::{Emission, PayloadRoom};
use super::packet::HEADER_LENGTH;

/// Buffers that one read may fill.
const MAX_BUFFERS: usize = 32;

/// Where the next packets go. Ends with [`RxWindow::finish`].
#[derive(Debug)]
pub(super) struct RxWindow<'q, 'm> {
    gather: Gather<'q, 'm>,
    /// The payload rooms of the gathered buffers, for readv.
    row: Vec<Slice<'m>>,
}

impl<'q, 'm> RxWindow<'q, 'm> {
    pub(super) fn new(memory: &'m GuestMemory, queue: &'q mut Queue) -> Self {
        // A buffer without room for payload would make a read of 0 bytes look like the end of the stream.
        Self {
            gather: Gather::new(memory, queue, HEADER_LENGTH + 1),
            row: Vec::new(),
        }
    }

    /// Whether there is room for at least one packet.
    pub(super) fn has_room(&mut self) -> Result<bool, Error> {
        Ok(self.gather.make_room(1, 1)? > 0)
    }

    /// Hands a packet to the guest, in as many pieces as its buffers make of it.
    pub(super) fn commit(&mut self, emission: &Emission) -> Result<(), Error> {
        let mut left = emission.payload;
        while let Some(chain) = self.gather.take_first() {
            let length = left.min(chain.buffer.len() - HEADER_LENGTH);
            let mut header = emission.header;
            // Both are far below 4 GiB: one turn of a connection and 44 bytes.
            header.length = u32::try_from(length).unwrap_or(u32::MAX);
            chain.buffer.copy_from(&header.encode());
            let written = u32::try_from(HEADER_LENGTH + length).unwrap_or(u32::MAX);
            self.gather.use_chain(chain.head, written)?;
            left -= length;
            if left == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Gives back what was not needed. Tells whether the guest is to be interrupted.
    pub(super) fn finish(self) -> Result<bool, Error> {
        self.gather.finish()
    }
}

impl<'m> PayloadRoom<'m> for RxWindow<'_, 'm> {
    fn payload(&mut self, limit: usize) -> &[Slice<'m>] {
        // Headers take room too. A queue that breaks here is found broken by the next `has_room`.
        let wanted = limit.saturating_add(MAX_BUFFERS * HEADER_LENGTH);
        self.gather.make_room(wanted, MAX_BUFFERS).unwrap_or_default();
        self.row.clear();
        let mut left = limit;
        for chain in self.gather.chains() {
            let mut skip = HEADER_LENGTH;
            for slice in chain.buffer.slices() {
                let Ok(rest) = slice.offset(skip.min(slice.len())) else {
                    return &self.row;
                };
                skip -= skip.min(slice.len());
                let Ok(piece) = rest.subslice(0, rest.len().min(left)) else {
                    return &self.row;
                };
                left -= piece.len();
                if !piece.is_empty() {
                    self.row.push(piece);
                }
            }
        }
        &self.row
    }
}
