//! Tap to guest: frames read straight into as many of the guest's buffers as they fill.
//!
//! How long the next frame is, only reading it tells, and what does not fit is lost. So a frame is read straight into
//! guest memory when the gathered buffers hold the longest one; when the guest is short of buffers it is read into a
//! buffer of ours and waits there until it fits.

use std::io;

use tracing::debug;
use virtio_queue::Error;

use super::super::gather::Gather;
use super::super::{ActiveQueue, GuestMemory};
use super::header::{HEADER_LENGTH, MAX_FRAME, with_buffers};
use super::tap::Tap;

/// Frames of one pass.
const PASS_BUDGET: usize = 64;

#[derive(Debug)]
pub(super) struct Rx {
    pub(super) queue: ActiveQueue,
    /// VIRTIO_NET_F_MRG_RXBUF: a frame may fill several buffers.
    mergeable: bool,
    /// A frame that waits for buffers; empty: none.
    waiting: Vec<u8>,
}

/// How a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RxEnd {
    /// The tap is empty, or the budget is spent: it is worth watching.
    TapWatched,
    /// The guest has no buffers: the tap must not be watched until it has.
    NoBuffers,
    /// The tap cannot be read any more.
    TapGone,
}

impl Rx {
    pub(super) fn new(queue: ActiveQueue, mergeable: bool) -> Self {
        Self {
            queue,
            mergeable,
            waiting: Vec::new(),
        }
    }

    /// Moves frames until one of the sides has nothing more. The second value: interrupt the guest.
    pub(super) fn pass(&mut self, memory: &GuestMemory, tap: &Tap) -> Result<(RxEnd, bool), Error> {
        let mut gather = Gather::new(memory, &mut self.queue.queue, HEADER_LENGTH + 1);
        let end = fill(&mut gather, tap, self.mergeable, &mut self.waiting)?;
        Ok((end, gather.finish()?))
    }
}

fn fill(
    gather: &mut Gather<'_, '_>,
    tap: &Tap,
    mergeable: bool,
    waiting: &mut Vec<u8>,
) -> Result<RxEnd, Error> {
    let max_chains = if mergeable { usize::MAX } else { 1 };
    for _ in 0..PASS_BUDGET {
        let wanted = if waiting.is_empty() {
            MAX_FRAME
        } else {
            waiting.len()
        };
        let room = gather.make_room(wanted, max_chains)?;
        if room == 0 || (mergeable && room < waiting.len() && !gather.has_all()) {
            if gather.enable_notification()? {
                continue;
            }
            return Ok(RxEnd::NoBuffers);
        }
        if !waiting.is_empty() {
            let mut rest = waiting.as_slice();
            for chain in gather.chains() {
                let copied = chain.buffer.copy_from(rest);
                rest = rest.get(copied..).unwrap_or_default();
            }
            // Without mergeable buffers the driver promised one that holds every frame (5.1.6.3.1); with them, a queue
            // full of buffers that do.
            if rest.is_empty() {
                deliver(gather, waiting.len())?;
            } else {
                debug!(
                    frame = waiting.len(),
                    room, "net: the guest's buffer is too short for a frame"
                );
            }
            waiting.clear();
            continue;
        }
        let count = if room >= MAX_FRAME {
            tap.read(&gather.row(MAX_FRAME))
        } else {
            waiting.resize(MAX_FRAME, 0);
            let result = tap.read_to(waiting);
            waiting.truncate(*result.as_ref().unwrap_or(&0));
            result
        };
        match count {
            Ok(count) if count <= HEADER_LENGTH => {
                debug!(count, "net: the tap gave less than a frame");
                waiting.clear();
            }
            Ok(count) if waiting.is_empty() => deliver(gather, count)?,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(RxEnd::TapWatched),
            Err(error) => {
                debug!(%error, "net: reading the tap failed");
                return Ok(RxEnd::TapGone);
            }
        }
    }
    Ok(RxEnd::TapWatched)
}

/// Hands the first `length` bytes of the gathered buffers to the guest as one frame.
fn deliver(gather: &mut Gather<'_, '_>, length: usize) -> Result<(), Error> {
    let mut first = None;
    let mut used = Vec::new();
    let mut left = length;
    while left > 0 {
        let Some(chain) = gather.take_first() else { break };
        let count = left.min(chain.buffer.len());
        left -= count;
        // A frame is at most MAX_FRAME long.
        used.push((chain.head, u32::try_from(count).unwrap_or(u32::MAX)));
        first.get_or_insert(chain.buffer);
    }
    // 5.1.6.4: 1 without mergeable buffers, too. No more buffers than a queue has.
    let buffers = u16::try_from(used.len()).unwrap_or(u16::MAX);
    if let Some(first) = first {
        let mut header = [0; HEADER_LENGTH];
        first.copy_to(&mut header);
        first.copy_from(&with_buffers(header, buffers));
    }
    gather.use_chains(&used)
}
