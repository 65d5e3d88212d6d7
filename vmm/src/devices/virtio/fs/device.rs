//! The device: tag and number of queues in the configuration; hands its queues to the backend, and takes them over when it
//! goes.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use tracing::{error, warn};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::GuestMemoryBackend;
use vmm_sys_util::eventfd::EventFd;

use super::super::{
    ActivateError, Activation, ActiveQueue, GuestMemory, Interrupt, VirtioDevice, config_space,
};
use super::backend::{Backend, BackendError, QueueEvents};
use super::orphan::Orphan;
use super::rings::Ring;
use crate::config::{FS_TAG_BYTES, FsShape};

/// What the guest may be offered if the backend offers it.
const FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// Token of the backend's socket; calls have the queue's position.
const SOCKET: u32 = u32::MAX;

/// Why there is no file system.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FsError {
    #[error("memory_shared: the Machine was started without it, so no other process can serve its guest")]
    PrivateMemory,
    #[error("socket")]
    Backend(#[from] BackendError),
}

/// virtio-fs.
#[derive(Debug)]
pub(crate) struct Fs {
    tag: String,
    /// All queues.
    queue_sizes: Vec<u16>,
    backend: Backend,
    state: State,
}

#[derive(Debug)]
enum State {
    Offered,
    Served(Served),
    /// The backend has gone.
    Orphaned(Vec<Orphan>),
}

/// The backend has the queues.
#[derive(Debug)]
struct Served {
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    queues: Vec<ServedByBackend>,
}

#[derive(Debug)]
struct ServedByBackend {
    index: u16,
    active: ActiveQueue,
    /// Written by the backend when it has used buffers.
    call: Arc<EventFd>,
}

impl Fs {
    /// A file system of this shape for a guest with this memory, served by whoever is at the other end of `socket`.
    pub(crate) fn new(socket: UnixStream, shape: FsShape, memory: &GuestMemory) -> Result<Self, FsError> {
        if memory.iter().any(|region| region.file_offset().is_none()) {
            return Err(FsError::PrivateMemory);
        }
        let queues = shape.queues + 1;
        Ok(Self {
            tag: shape.tag,
            queue_sizes: vec![shape.queue_size; usize::from(queues)],
            backend: Backend::open(socket, queues)?,
            state: State::Offered,
        })
    }

    /// The backend has used buffers of the queue at this position.
    fn relay(&mut self, position: u32) {
        let State::Served(served) = &self.state else {
            return;
        };
        if let Some(queue) = served.queues.get(position as usize) {
            // Fails only when another wake-up took the count.
            drop(queue.call.read());
            served.interrupt.signal_queue(queue.index);
        }
    }

    /// The backend has gone: its queues are ours, and what is in them fails.
    pub(super) fn orphan(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Offered);
        let State::Served(Served {
            memory,
            interrupt,
            queues,
        }) = state
        else {
            self.state = state;
            return;
        };
        let numbers: Vec<_> = queues.iter().map(|queue| queue.index).collect();
        let orphans = queues
            .into_iter()
            .map(|queue| Orphan::new(queue.index, queue.active, &memory, Arc::clone(&interrupt)));
        self.state = State::Orphaned(orphans.collect());
        self.fail_all();
        // The last words of the backend may not have been passed on.
        for number in numbers {
            interrupt.signal_queue(number);
        }
    }

    /// Answers everything in the queues of a backend that has gone.
    pub(super) fn fail_all(&mut self) {
        if let State::Orphaned(orphans) = &mut self.state {
            orphans.iter_mut().for_each(Orphan::fail_all);
        }
    }

    fn watch_orphans(&self, ops: &mut EventOps<'_>) {
        if let State::Orphaned(orphans) = &self.state {
            orphans.iter().for_each(|orphan| orphan.watch(ops));
        }
    }
}

impl MutEventSubscriber for Fs {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.watch_orphans(ops);
        let State::Served(served) = &self.state else {
            return;
        };
        let calls = (0..).zip(&served.queues);
        let calls =
            calls.map(|(position, queue)| Events::with_data(queue.call.as_ref(), position, EventSet::IN));
        // Nobody asks the backend anything now, so whatever it says is its end.
        let gone = EventSet::IN | EventSet::READ_HANG_UP;
        let socket = Events::with_data(self.backend.socket(), SOCKET, gone);
        for events in calls.chain([socket]) {
            if let Err(error) = ops.add(events) {
                error!(%error, "fs: the event loop refuses a descriptor");
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match (&self.state, events.data()) {
            (State::Served(served), SOCKET) => {
                warn!(
                    tag = self.tag,
                    "fs: the backend has gone; its file system fails from now on"
                );
                let calls = served
                    .queues
                    .iter()
                    .map(|queue| Events::empty(queue.call.as_ref()));
                for event in calls.chain([Events::empty(self.backend.socket())]) {
                    if let Err(error) = ops.remove(event) {
                        error!(%error, "fs: the event loop keeps a descriptor");
                    }
                }
                self.backend.hang_up();
                self.orphan();
                self.watch_orphans(ops);
            }
            (State::Served(_), position) => self.relay(position),
            (State::Orphaned(_), _) => self.fail_all(),
            (State::Offered, _) => {
                if let Err(error) = ops.remove(events) {
                    error!(%error, "fs: the event loop keeps a descriptor");
                }
            }
        }
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn features(&self) -> u64 {
        self.backend.features() & FEATURES
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // 5.11.4: the tag, filled up with zeros, and num_request_queues.
        let mut config = [0; FS_TAG_BYTES + 4];
        for (target, source) in config.iter_mut().zip(self.tag.bytes()) {
            *target = source;
        }
        // All but the one for urgent messages; seventeen at most.
        let requests = self.queue_sizes.len() as u32 - 1;
        config[FS_TAG_BYTES..].copy_from_slice(&requests.to_le_bytes());
        config_space::read(&config, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Succeeds without a backend too: then what comes fails.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            queues,
            features,
            interrupt,
        } = activation;
        let mut served = Vec::new();
        let mut handed_over = Vec::new();
        for (index, active) in (0_u16..).zip(queues) {
            if !active.queue.ready() {
                continue;
            }
            let ring = Ring::find(index, &active.queue, &memory)
                .ok_or(ActivateError::Driver("a ring lies across the ends of memory"))?;
            let call = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
            let call = Arc::new(call.map_err(|source| ActivateError::Host {
                operation: "create an eventfd",
                source,
            })?);
            let events = QueueEvents {
                kick: Arc::clone(&active.notify),
                call: Arc::clone(&call),
            };
            handed_over.push((ring, events));
            served.push(ServedByBackend { index, active, call });
        }
        let started = self.backend.start(&memory, features, handed_over);
        self.state = State::Served(Served {
            memory,
            interrupt,
            queues: served,
        });
        if let Err(error) = started {
            warn!(
                error = &error as &dyn std::error::Error,
                tag = self.tag,
                "fs: no backend; its file system fails"
            );
            self.orphan();
        }
        Ok(())
    }

    fn deactivate(&mut self) {
        if let State::Served(served) = std::mem::replace(&mut self.state, State::Offered) {
            let queues = served.queues.iter().map(|queue| queue.index);
            if let Err(error) = self.backend.stop(queues.collect()) {
                warn!(
                    error = &error as &dyn std::error::Error,
                    tag = self.tag,
                    "fs: the backend is given up"
                );
            }
        }
    }
}
