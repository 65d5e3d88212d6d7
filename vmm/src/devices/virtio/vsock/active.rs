//! The device while its driver is there: moves packets between the guest's queues and the muxer.
//!
//! One pass takes what the guest sent, then gives the guest what waits, both with a budget so that other devices on the
//! loop get their turn. When the guest has no rx buffers, nothing is read from host sockets, and the next notification of the
//! rx queue resumes.

use std::sync::{Arc, OnceLock};

use tracing::debug;
use virtio_queue::QueueT;

use super::super::buffers::Buffers;
use super::super::{ActiveQueue, GuestMemory, Interrupt, QueueProgress};
use super::events::EventQueue;
use super::muxer::Muxer;
use super::packet::{self, Operation};
use super::rings::RxWindow;

const RX: u16 = 0;
const TX: u16 = 1;
const EVENTS: u16 = 2;

/// Packets that one pass takes, and turns that it gives.
const PASS_BUDGET: usize = 128;

#[derive(Debug)]
pub(super) struct Active {
    pub(super) memory: GuestMemory,
    pub(super) rx: ActiveQueue,
    pub(super) tx: ActiveQueue,
    pub(super) events: Option<EventQueue>,
    pub(super) interrupt: Arc<dyn Interrupt>,
}

/// How far one half of a pass came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing left to do; the next notification tells when that changes.
    Done,
    /// The other half must make room first.
    Blocked,
    /// There is more.
    BudgetSpent,
}

impl Active {
    /// How far it is in each queue, by number.
    pub(super) fn progress(&self) -> Vec<(u16, QueueProgress)> {
        let events = self.events.iter().map(|events| (EVENTS, &events.active));
        let queues = [(RX, &self.rx), (TX, &self.tx)].into_iter().chain(events);
        queues
            .map(|(number, queue)| (number, QueueProgress::of(&queue.queue)))
            .collect()
    }

    pub(super) fn pass(
        &mut self,
        muxer: &mut Muxer,
        first_connection: &OnceLock<u64>,
    ) -> Result<Progress, virtio_queue::Error> {
        if !self.news_is_heard()? {
            return Ok(Progress::Blocked);
        }
        loop {
            let taken = self.take_packets(muxer, first_connection)?;
            let given = self.give_packets(muxer)?;
            if taken == Progress::BudgetSpent || given == Progress::BudgetSpent {
                return Ok(Progress::BudgetSpent);
            }
            if taken == Progress::Done || !muxer.accepts_packets() {
                return Ok(taken);
            }
        }
    }

    /// Tells the driver what it has to know before any packet; false until it does.
    fn news_is_heard(&mut self) -> Result<bool, virtio_queue::Error> {
        let Some(events) = &mut self.events else {
            return Ok(true);
        };
        if events.tell(&self.memory)? {
            self.interrupt.signal_queue(EVENTS);
        }
        events.is_settled(&self.memory)
    }

    /// Guest to host.
    fn take_packets(
        &mut self,
        muxer: &mut Muxer,
        first_connection: &OnceLock<u64>,
    ) -> Result<Progress, virtio_queue::Error> {
        let queue = &mut self.tx.queue;
        let mut used = false;
        queue.disable_notification(&self.memory)?;
        let mut progress = Progress::BudgetSpent;
        for _ in 0..PASS_BUDGET {
            if !muxer.accepts_packets() {
                progress = Progress::Blocked;
                break;
            }
            let Some(chain) = next_chain(queue, &self.memory)? else {
                progress = Progress::Done;
                break;
            };
            let head = chain.head_index();
            match packet::parse(Buffers::collect(&self.memory, chain)) {
                Ok((header, payload)) => {
                    if header.operation == Operation::Request {
                        first_connection.get_or_init(crate::clock::monotonic_ns);
                    }
                    muxer.receive(&header, &payload);
                }
                Err(error) => debug!(%error, "vsock: the guest sent no packet"),
            }
            queue.add_used(&self.memory, head, 0)?;
            used = true;
        }
        if used && queue.needs_notification(&self.memory)? {
            self.interrupt.signal_queue(TX);
        }
        Ok(progress)
    }

    /// Host to guest.
    fn give_packets(&mut self, muxer: &mut Muxer) -> Result<Progress, virtio_queue::Error> {
        let queue = &mut self.rx.queue;
        let mut turns = 0;
        let mut interrupt = false;
        let progress = loop {
            let mut window = RxWindow::new(&self.memory, queue);
            let mut starved = false;
            while turns < PASS_BUDGET && muxer.wants_to_emit() && !starved {
                starved = !window.has_room()?;
                if !starved && let Some(emission) = muxer.emit(&mut window) {
                    window.commit(&emission)?;
                }
                turns += 1;
            }
            interrupt |= window.finish()?;
            if turns >= PASS_BUDGET {
                break Progress::BudgetSpent;
            }
            // Notifications of new buffers matter only to who waits for them.
            if !starved || !queue.enable_notification(&self.memory)? {
                break Progress::Done;
            }
        };
        if interrupt {
            self.interrupt.signal_queue(RX);
        }
        Ok(progress)
    }
}

/// The next chain, with notifications off as long as there are any.
fn next_chain<'m>(
    queue: &mut virtio_queue::Queue,
    memory: &'m GuestMemory,
) -> Result<Option<virtio_queue::DescriptorChain<&'m GuestMemory>>, virtio_queue::Error> {
    use virtio_queue::QueueOwnedT as _;
    loop {
        if let Some(chain) = queue.iter(memory)?.next() {
            return Ok(Some(chain));
        }
        if !queue.enable_notification(memory)? {
            return Ok(None);
        }
        queue.disable_notification(memory)?;
    }
}
