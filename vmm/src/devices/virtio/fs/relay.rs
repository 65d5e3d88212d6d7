//! One queue of the guest with its channel to the backend.

use event_manager::{EventOps, EventSet, Events};

use super::super::single_queue::{ServedQueue, Serving};
use super::channel::{Channel, Fault};
use super::orphan::Orphan;

/// A queue that the backend serves.
#[derive(Debug)]
pub(super) struct Relay {
    index: u16,
    queue: ServedQueue,
    channel: Channel,
    /// The queue has chains for which there was no room.
    waits: bool,
}

impl Relay {
    pub(super) fn new(index: u16, queue: ServedQueue, channel: Channel) -> Self {
        Self {
            index,
            queue,
            channel,
            waits: false,
        }
    }

    /// The queue's number.
    pub(super) fn index(&self) -> u16 {
        self.index
    }

    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Registers the doorbell and the backend's call.
    pub(super) fn watch(&self, ops: &mut EventOps<'_>, doorbell: u32, call: u32) {
        self.queue.watch_as(ops, doorbell);
        if let Err(error) = ops.add(Events::with_data(self.channel.call(), call, EventSet::IN)) {
            tracing::error!(%error, "fs: cannot watch the backend's call");
        }
    }

    /// The driver rang: passes on what is in the queue, as far as there is room.
    pub(super) fn forward(&mut self) -> Result<(), Fault> {
        let (mut result, mut sent, mut left) = (Ok(()), false, false);
        self.queue.process_some(|memory, chain| {
            let serving = self.channel.send(memory, chain).unwrap_or_else(|fault| {
                result = Err(fault);
                Serving::Left
            });
            sent |= serving == Serving::Kept;
            left |= serving == Serving::Left;
            serving
        });
        self.waits = left;
        if sent {
            self.channel.kick();
        }
        result
    }

    /// The backend called: passes its answers on, then what has waited for the room that they leave.
    pub(super) fn backward(&mut self) -> Result<(), Fault> {
        let (answered, result) = self.channel.receive(self.queue.memory());
        self.queue.give_back(&answered);
        result?;
        if self.waits {
            return self.forward();
        }
        Ok(())
    }

    /// Gives the buffers that nobody uses back to the host.
    pub(super) fn rest(&mut self) {
        self.channel.rest();
    }

    /// The backend has gone: what it had fails, and so does what comes.
    pub(super) fn orphan(mut self) -> Orphan {
        // Its last words may not have been heard. Lies among them do not matter any more.
        let (mut answered, _) = self.channel.receive(self.queue.memory());
        answered.extend(self.channel.fail_all(self.queue.memory()));
        self.queue.give_back(&answered);
        Orphan::new(self.queue)
    }
}
