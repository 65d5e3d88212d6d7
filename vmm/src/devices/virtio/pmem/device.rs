//! The device: start and size in the configuration, FLUSH requests answered.

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use tracing::{debug, error};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{QueueOwnedT, QueueT};

use super::super::buffers::{BufferError, Buffers};
use super::super::{
    ActivateError, Activation, ActiveQueue, GuestMemory, Interrupt, VirtioDevice, config_space,
};

/// Linux has at most one request in flight per flusher; more wait in the guest.
const QUEUE_SIZE: u16 = 64;
/// VIRTIO_PMEM_REQ_TYPE_FLUSH (5.19.6)
const FLUSH: u32 = 0;

/// virtio-pmem on a region that the guest cannot write to.
#[derive(Debug)]
pub(crate) struct Pmem {
    start: u64,
    size: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Offered,
    Active(Active),
    /// The driver broke the queue.
    Broken,
}

#[derive(Debug)]
struct Active {
    memory: GuestMemory,
    queue: ActiveQueue,
    interrupt: Arc<dyn Interrupt>,
}

impl Pmem {
    /// The region is mapped at guest-physical `start`, `size` bytes long, both multiples of 2 MiB, as long as the device
    /// is on the bus.
    pub(crate) fn new(start: u64, size: u64) -> Self {
        Self {
            start,
            size,
            state: State::Offered,
        }
    }

    /// Answers what is in the queue.
    pub(super) fn pass(&mut self) {
        let State::Active(active) = &mut self.state else {
            return;
        };
        if let Err(error) = active.serve() {
            error!(%error, "pmem: the driver broke the queue; the device stops until it is reset");
            self.state = State::Broken;
        }
    }
}

impl Active {
    fn serve(&mut self) -> Result<(), virtio_queue::Error> {
        let queue = &mut self.queue.queue;
        let mut used = false;
        queue.disable_notification(&self.memory)?;
        // One round of the queue at a time, so that a driver which never stops does not keep the event loop.
        for _ in 0..queue.size() {
            let Some(chain) = queue.iter(&self.memory)?.next() else {
                break;
            };
            let head = chain.head_index();
            let written = answer(Buffers::collect(&self.memory, chain));
            queue.add_used(&self.memory, head, written)?;
            used = true;
        }
        if queue.enable_notification(&self.memory)?
            && let Err(error) = self.queue.notify.write(1)
        {
            error!(%error, "pmem: cannot notify itself");
        }
        if used && queue.needs_notification(&self.memory)? {
            self.interrupt.signal_queue(0);
        }
        Ok(())
    }
}

/// A request is le32 `type`, the answer le32 `ret`: 0, or anything else for a failure (5.19.6).
fn answer(buffers: Result<Buffers<'_>, BufferError>) -> u32 {
    let Ok(Buffers {
        mut readable,
        writable,
    }) = buffers
    else {
        debug!("pmem: the guest sent no request");
        return 0;
    };
    let kind = readable.take_array().map(u32::from_le_bytes);
    let result = u32::from(kind != Some(FLUSH));
    // Four bytes at most.
    u32::try_from(writable.copy_from(&result.to_le_bytes())).unwrap_or(0)
}

impl MutEventSubscriber for Pmem {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let State::Active(active) = &self.state else {
            return;
        };
        if let Err(error) = ops.add(Events::new(&active.queue.notify, EventSet::IN)) {
            error!(%error, "pmem: the event loop refuses a descriptor");
        }
        // A request may have been first.
        self.pass();
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match &self.state {
            State::Active(active) => {
                if let Err(error) = active.queue.notify.read() {
                    debug!(%error, "pmem: notification was taken already");
                }
                self.pass();
            }
            State::Offered | State::Broken => {
                if let Err(error) = ops.remove(events) {
                    error!(%error, "pmem: the event loop keeps a descriptor");
                }
            }
        }
    }
}

impl VirtioDevice for Pmem {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_PMEM
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 16];
        config[..8].copy_from_slice(&self.start.to_le_bytes());
        config[8..].copy_from_slice(&self.size.to_le_bytes());
        config_space::read(&config, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            mut queues,
            interrupt,
            features: _,
        } = activation;
        let queue = queues
            .pop()
            .ok_or(ActivateError::Driver("pmem needs its queue"))?;
        self.state = State::Active(Active {
            memory,
            queue,
            interrupt,
        });
        Ok(())
    }

    fn deactivate(&mut self) {
        self.state = State::Offered;
    }
}
