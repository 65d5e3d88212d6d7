//! The queues of a device whose backend has gone: every request is answered with an error, so that nobody in the guest waits
//! for ever and the file system can be unmounted.
//!
//! Requests that the backend had taken and not answered are answered as well: those from the used index on, which is exact
//! for a backend that answers in order, as virtiofsd does without a thread pool. For another the driver may see one answered
//! twice; it stops using the queue then, and its file system fails as a whole instead of request by request.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use event_manager::EventOps;
use virtio_queue::QueueT;

use super::super::buffers::Buffers;
use super::super::single_queue::{Chain, ServedQueue};
use super::super::{ActiveQueue, GuestMemory, Interrupt};

/// linux/fuse.h: length, operation code, unique number; more follows.
const REQUEST_HEADER: usize = 16;
/// "Input/output error"
const EIO: i32 = 5;

/// A queue that fails what comes.
#[derive(Debug)]
pub(super) struct Orphan(ServedQueue);

impl Orphan {
    /// Takes over queue `index` where the backend has left it.
    pub(super) fn new(
        index: u16,
        mut active: ActiveQueue,
        memory: &GuestMemory,
        interrupt: Arc<dyn Interrupt>,
    ) -> Self {
        // The ring was valid when the device was started.
        if let Ok(used) = active.queue.used_idx(memory, Ordering::Acquire) {
            active.queue.set_next_avail(used.0);
            active.queue.set_next_used(used.0);
        }
        Self(ServedQueue::new(index, active, memory.clone(), interrupt))
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
    let Ok(Buffers {
        mut readable,
        writable,
    }) = Buffers::collect(memory, chain)
    else {
        return 0;
    };
    let Some(header) = readable.take_array::<REQUEST_HEADER>() else {
        return 0;
    };
    // struct fuse_out_header: length, error, the request's unique number.
    let mut answer = [0; 16];
    answer[..4].copy_from_slice(&16_u32.to_le_bytes());
    answer[4..8].copy_from_slice(&(-EIO).to_le_bytes());
    answer[8..].copy_from_slice(&header[8..]);
    // At most sixteen bytes.
    writable.copy_from(&answer) as u32
}

/// Entry point of the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fail_queue(memory: &GuestMemory, active: ActiveQueue, interrupt: Arc<dyn Interrupt>) {
    Orphan::new(0, active, memory, interrupt).fail_all();
}
