//! Guest to tap: each chain is a header and a frame, written with one writev from guest memory.

use std::io;

use tracing::debug;
use virtio_queue::{Error, QueueOwnedT, QueueT};

use super::super::buffers::{BufferError, Buffers};
use super::super::{ActiveQueue, GuestMemory};
use super::header::{HEADER_LENGTH, MAX_FRAME, MIN_FRAME, checked};
use super::tap::Tap;

/// Frames of one pass.
const PASS_BUDGET: usize = 128;

#[derive(Debug)]
pub(super) struct Tx {
    pub(super) queue: ActiveQueue,
    features: u64,
}

/// How a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TxEnd {
    /// The guest has nothing more; its notification tells when that changes.
    Done,
    /// The tap takes no more: it is to be watched until it does.
    TapFull,
    /// There is more.
    BudgetSpent,
}

impl Tx {
    pub(super) fn new(queue: ActiveQueue, features: u64) -> Self {
        Self { queue, features }
    }

    /// Sends frames. The second value: interrupt the guest.
    pub(super) fn pass(&mut self, memory: &GuestMemory, tap: &Tap) -> Result<(TxEnd, bool), Error> {
        let queue = &mut self.queue.queue;
        queue.disable_notification(memory)?;
        let mut used = false;
        let mut end = TxEnd::BudgetSpent;
        for _ in 0..PASS_BUDGET {
            let Some(chain) = queue.iter(memory)?.next() else {
                if queue.enable_notification(memory)? {
                    queue.disable_notification(memory)?;
                    continue;
                }
                end = TxEnd::Done;
                break;
            };
            let head = chain.head_index();
            match send(Buffers::collect(memory, chain), self.features, tap) {
                Ok(()) => {}
                Err(Dropped::TapFull) => {
                    queue.go_to_previous_position();
                    end = TxEnd::TapFull;
                    break;
                }
                // As on any wire: a frame that cannot be sent is lost, and the sender's protocol finds out.
                Err(reason) => debug!(%reason, "net: a frame of the guest is dropped"),
            }
            queue.add_used(memory, head, 0)?;
            used = true;
        }
        Ok((end, used && queue.needs_notification(memory)?))
    }
}

/// Why a frame was not sent.
#[derive(Debug, thiserror::Error)]
enum Dropped {
    #[error("the tap is full")]
    TapFull,
    #[error("its chain is unusable: {0}")]
    Chain(&'static str),
    #[error("{0} bytes are no frame")]
    Length(usize),
    #[error("its header asks for what was not negotiated")]
    Header,
    #[error("the tap refuses it: {0}")]
    Tap(io::Error),
}

fn send(buffers: Result<Buffers<'_>, BufferError>, features: u64, tap: &Tap) -> Result<(), Dropped> {
    let mut frame = buffers
        .map_err(|_broken| Dropped::Chain("it cannot be read"))?
        .readable;
    let length = frame.len();
    if !(MIN_FRAME..=MAX_FRAME).contains(&length) {
        return Err(Dropped::Length(length));
    }
    let header = frame
        .take_array::<HEADER_LENGTH>()
        .ok_or(Dropped::Length(length))?;
    let header = checked(header, features).ok_or(Dropped::Header)?;
    // The header that was checked is the one that is sent, whatever the guest does to its own meanwhile.
    match tap.write(&header, frame.slices()) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Dropped::TapFull),
        Err(error) => Err(Dropped::Tap(error)),
    }
}
