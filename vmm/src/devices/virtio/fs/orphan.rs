//! The queues of a device whose backend has gone: every request is answered with an error, so that nobody in the guest waits
//! for ever and the file system can be unmounted.

use event_manager::EventOps;

use super::super::GuestMemory;
use super::super::buffers::Buffers;
use super::super::single_queue::{Chain, ServedQueue};

/// linux/fuse.h: length, operation code, unique number; more follows.
pub(super) const REQUEST_HEADER: usize = 16;
/// struct fuse_out_header.
pub(super) const ANSWER_HEADER: usize = 16;
/// "Input/output error"
const EIO: i32 = 5;

/// A queue that fails what comes.
#[derive(Debug)]
pub(super) struct Orphan(ServedQueue);

impl Orphan {
    /// Takes over a queue of which the backend has nothing more.
    pub(super) fn new(queue: ServedQueue) -> Self {
        Self(queue)
    }

    pub(super) fn watch(&self, ops: &mut EventOps<'_>) {
        self.0.watch(ops);
    }

    /// Answers what is in the queue.
    pub(super) fn fail_all(&mut self) {
        self.0.process(fail);
    }
}

/// Answers one request; returns how many bytes the answer has. FORGET has no room for one and gets none.
fn fail(memory: &GuestMemory, chain: Chain<'_>) -> u32 {
    Buffers::collect(memory, chain).map_or(0, refuse)
}

/// Likewise, for one whose buffers are known.
pub(super) fn refuse(mut buffers: Buffers<'_>) -> u32 {
    let Some(header) = buffers.readable.take_array::<REQUEST_HEADER>() else {
        return 0;
    };
    let mut unique = [0; 8];
    unique.copy_from_slice(&header[8..]);
    // At most sixteen bytes.
    buffers.writable.copy_from(&failure(unique)) as u32
}

/// The answer to the request with this number: length, error, the number.
pub(super) fn failure(unique: [u8; 8]) -> [u8; ANSWER_HEADER] {
    let mut answer = [0; ANSWER_HEADER];
    answer[..4].copy_from_slice(&(ANSWER_HEADER as u32).to_le_bytes());
    answer[4..8].copy_from_slice(&(-EIO).to_le_bytes());
    answer[8..].copy_from_slice(&unique);
    answer
}
