//! The work that small devices share: one queue whose chains are served one by one on the event loop.

use event_manager::{EventOps, EventSet, Events};
use std::sync::Arc;
use virtio_queue::{DescriptorChain, QueueT};

use super::{ActiveQueue, GuestMemory, Interrupt};

/// A chain of this device's queue.
pub(crate) type Chain<'m> = DescriptorChain<&'m GuestMemory>;

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

    /// Registers the doorbell.
    pub(crate) fn watch(&self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.active.notify, EventSet::IN)) {
            tracing::error!(%error, "cannot watch queue {}", self.index);
        }
    }

    /// The doorbell rang: serves what is there, at most one ring's worth, so that a guest that never stops does not keep
    /// the event loop. `serve` returns how many bytes it wrote for the guest.
    pub(crate) fn process(&mut self, mut serve: impl FnMut(&GuestMemory, Chain<'_>) -> u32) {
        // Fails only when another wake-up took the count.
        drop(self.active.notify.read());
        let queue = &mut self.active.queue;
        let (budget, mut used) = (queue.size(), 0);
        let mut deceived = false;
        loop {
            let before = used;
            while used < budget {
                let Some(chain) = queue.pop_descriptor_chain(&self.memory) else {
                    break;
                };
                let head = chain.head_index();
                let written = serve(&self.memory, chain);
                if let Err(error) = queue.add_used(&self.memory, head, written) {
                    // The ring was valid when the device was started; an index beyond it is the guest's mistake.
                    tracing::debug!(%error, "a used buffer cannot be returned");
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
        if used > 0 && queue.needs_notification(&self.memory).unwrap_or(true) {
            self.interrupt.signal_queue(self.index);
        }
    }
}
