//! The work that small devices share: one queue whose chains are served one by one on the event loop.

use event_manager::{EventOps, EventSet, Events};
use std::sync::Arc;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

use super::{ActiveQueue, GuestMemory, Interrupt, QueueProgress};

/// A chain of this device's queue.
pub(crate) type Chain<'m> = DescriptorChain<&'m GuestMemory>;

/// What became of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Serving {
    /// It is the driver's again, with so many bytes written.
    Done(u32),
    /// The device keeps it until [`ServedQueue::give_back`].
    Kept,
    /// The device cannot take it now: it stays in the queue, with all behind it, until the queue is processed again.
    Left,
}

/// One queue in use.
#[derive(Debug)]
pub(crate) struct ServedQueue {
    index: u16,
    active: ActiveQueue,
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
}

impl ServedQueue {
    pub(crate) fn new(
        index: u16,
        active: ActiveQueue,
        memory: GuestMemory,
        interrupt: Arc<dyn Interrupt>,
    ) -> Self {
        Self {
            index,
            active,
            memory,
            interrupt,
        }
    }

    /// For a snapshot: its number, and how far it is.
    pub(crate) fn progress(&self) -> (u16, QueueProgress) {
        (self.index, QueueProgress::of(&self.active.queue))
    }

    /// Registers the doorbell.
    pub(crate) fn watch(&self, ops: &mut EventOps<'_>) {
        self.watch_as(ops, 0);
    }

    /// Registers the doorbell with a token, for a device that has several.
    pub(crate) fn watch_as(&self, ops: &mut EventOps<'_>, token: u32) {
        if let Err(error) = ops.add(Events::with_data(&self.active.notify, token, EventSet::IN)) {
            tracing::error!(%error, "cannot watch queue {}", self.index);
        }
    }

    /// The doorbell rang: serves what is there, at most one ring's worth, so that a guest that never stops does not keep
    /// the event loop. `serve` returns how many bytes it wrote for the guest.
    pub(crate) fn process(&mut self, mut serve: impl FnMut(&GuestMemory, Chain<'_>) -> u32) {
        self.process_some(|memory, chain| Serving::Done(serve(memory, chain)));
    }

    /// Likewise, for a device that may keep chains, or leave them in the queue. Then the driver's rings are of no use, and
    /// the device has to process the queue when it can go on.
    pub(crate) fn process_some(&mut self, mut serve: impl FnMut(&GuestMemory, Chain<'_>) -> Serving) {
        // Fails only when another wake-up took the count.
        drop(self.active.notify.read());
        let queue = &mut self.active.queue;
        let (budget, mut used, mut returned) = (queue.size(), 0, false);
        let mut deceived = false;
        'queue: loop {
            let before = used;
            while used < budget {
                let Some(chain) = queue.pop_descriptor_chain(&self.memory) else {
                    break;
                };
                let head = chain.head_index();
                match serve(&self.memory, chain) {
                    Serving::Done(written) => {
                        add_used(queue, &self.memory, head, written);
                        returned = true;
                    }
                    Serving::Kept => {}
                    Serving::Left => {
                        queue.go_to_previous_position();
                        break 'queue;
                    }
                }
                used += 1;
            }
            if used == budget {
                // Fails only when the counter is full: then it is readable already.
                drop(self.active.notify.write(1));
                break;
            }
            // From here on the driver rings again. More that has come until then is served; an index which the ring cannot
            // have looks the same, but only once.
            let more = queue.enable_notification(&self.memory).unwrap_or(false);
            if !more || deceived && used == before {
                break;
            }
            deceived = used == before;
        }
        if returned {
            self.interrupt();
        }
    }

    /// Gives chains that were kept back to the driver: (head, bytes written).
    pub(crate) fn give_back(&mut self, chains: &[(u16, u32)]) {
        for (head, written) in chains {
            add_used(&mut self.active.queue, &self.memory, *head, *written);
        }
        if !chains.is_empty() {
            self.interrupt();
        }
    }

    /// Guest memory, as the queue's chains mean it.
    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn interrupt(&mut self) {
        let wanted = self.active.queue.needs_notification(&self.memory);
        if wanted.unwrap_or(true) {
            self.interrupt.signal_queue(self.index);
        }
    }
}

fn add_used(queue: &mut Queue, memory: &GuestMemory, head: u16, written: u32) {
    if let Err(error) = queue.add_used(memory, head, written) {
        // The ring was valid when the device was started; an index beyond it is the guest's mistake.
        tracing::debug!(%error, "a used buffer cannot be returned");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use vm_memory::{Bytes, GuestAddress};

    use super::super::testing::{CountedInterrupt, DriverQueue, activation, guest_memory};
    use super::*;

    const SIZE: u16 = 16;
    /// Behind the used ring: at which index the driver rings next (virtio 1.2, 2.7.10).
    const RING_AT: u64 = 0x2000 + 4 + 8 * SIZE as u64;

    fn served(memory: &GuestMemory, driver: &DriverQueue) -> (ServedQueue, Arc<CountedInterrupt>) {
        let mut active = activation(memory, &[driver], 0).queues.remove(0);
        active.queue.set_event_idx(true);
        let interrupt = Arc::new(CountedInterrupt::default());
        let counted = Arc::<CountedInterrupt>::clone(&interrupt);
        (ServedQueue::new(0, active, memory.clone(), counted), interrupt)
    }

    #[test]
    fn the_driver_is_to_ring_for_what_comes_next() {
        let memory = guest_memory(0x10_0000);
        let mut driver = DriverQueue::new(&memory, 0, SIZE);
        let (mut queue, interrupt) = served(&memory, &driver);
        let heads = [driver.add(&[(0x8000, 8, 0)]), driver.add(&[(0x8000, 8, 0)])];
        queue.process(|_, _| 7);
        assert_eq!(driver.take_used(), heads.map(|head| (head, 7)));
        assert_eq!(memory.read_obj::<u16>(GuestAddress(RING_AT)).unwrap(), 2);
        assert_eq!(interrupt.queue.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn what_comes_while_the_queue_is_served_is_served_too() {
        let memory = guest_memory(0x10_0000);
        let mut driver = DriverQueue::new(&memory, 0, SIZE);
        let (mut queue, _) = served(&memory, &driver);
        driver.add(&[(0x8000, 8, 0)]);
        let mut served = 0;
        queue.process(|_, _| {
            served += 1;
            if served < 5 {
                driver.add(&[(0x8000, 8, 0)]);
            }
            0
        });
        assert_eq!(driver.take_used().len(), 5);
    }

    #[test]
    fn chains_are_kept_left_and_given_back() {
        let memory = guest_memory(0x10_0000);
        let mut driver = DriverQueue::new(&memory, 0, SIZE);
        let (mut queue, interrupt) = served(&memory, &driver);
        let heads = [(); 3].map(|()| driver.add(&[(0x8000, 8, 0)]));
        let mut answers = [Serving::Kept, Serving::Left].into_iter();
        queue.process_some(|_, _| answers.next().unwrap());
        assert_eq!(driver.take_used(), []);
        assert_eq!(interrupt.queue.load(Ordering::Relaxed), 0);
        let mut seen = Vec::new();
        queue.process_some(|_, chain| {
            seen.push(chain.head_index());
            Serving::Kept
        });
        assert_eq!(seen, heads[1..], "what was left is there again");
        queue.give_back(&[(heads[2], 3), (heads[0], 1)]);
        assert_eq!(driver.take_used(), [(heads[2], 3), (heads[0], 1)]);
        assert_eq!(interrupt.queue.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn an_index_that_the_ring_cannot_have_ends_the_work() {
        let memory = guest_memory(0x10_0000);
        let mut driver = DriverQueue::new(&memory, 0, SIZE);
        let (mut queue, _) = served(&memory, &driver);
        driver.set_available(0x8000);
        queue.process(|_, _| 0);
        assert_eq!(driver.take_used(), []);
        assert!(queue.active.notify.read().is_err(), "it does not wake itself");
    }
}
