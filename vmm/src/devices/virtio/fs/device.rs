//! The device: tag and number of queues in the configuration; a relay per queue while there is a backend, and what becomes of
//! the queues when it goes.

use std::error::Error;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use tracing::{error, warn};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vmm_sys_util::timerfd::TimerFd;

use super::super::single_queue::ServedQueue;
use super::super::{ActivateError, Activation, VirtioDevice, config_space};
use super::backend::{Backend, BackendError, ServedRing};
use super::channel::{Channel, Fault, Room};
use super::orphan::Orphan;
use super::region::{PAGE, Region};
use super::relay::Relay;
use crate::config::{FS_TAG_BYTES, FsShape};

const FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// FORGET and INTERRUPT have less than 100 bytes; a page is each's share, and no slot waits for one.
const URGENT: Room = Room {
    buffers: 64 * PAGE,
    largest: PAGE,
};
/// virtiofsd reads and writes 1 MiB at most (its max_write); what is beyond is for headers and for names and values, of which
/// Linux's largest has 64 KiB. Seven of the largest fit, and pages that no request needed do not exist.
const REQUESTS: Room = Room {
    buffers: 8 << 20,
    largest: (1 << 20) + (128 << 10),
};
/// A device that was busy within this time keeps its buffers: new ones would have to be cleared by the host.
const REST: Duration = Duration::from_secs(1);
/// Token of the backend's socket; doorbells and calls have twice the relay's position, calls one more.
const SOCKET: u32 = u32::MAX;
/// Token of the timer.
const TIMER: u32 = u32::MAX - 1;

/// Why there is no file system.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FsError {
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

/// The backend has rings.
#[derive(Debug)]
struct Served {
    relays: Vec<Relay>,
    /// Set while buffers may have been touched.
    timer: TimerFd,
    timer_set: bool,
    /// Since the timer was set.
    busy: bool,
}

impl Served {
    /// Passes on what came with this token.
    fn relay(&mut self, token: u32) -> Result<(), Fault> {
        let Some(relay) = self.relays.get_mut((token / 2) as usize) else {
            return Ok(());
        };
        self.busy = true;
        let result = if token.is_multiple_of(2) {
            relay.forward()
        } else {
            relay.backward()
        };
        if !self.timer_set {
            self.set_timer();
        }
        result
    }

    /// The timer has rung.
    fn rest(&mut self) {
        if self.busy {
            return self.set_timer();
        }
        self.relays.iter_mut().for_each(Relay::rest);
        self.timer_set = false;
        // Not read but taken back, which never blocks.
        if let Err(error) = self.timer.clear() {
            warn!(%error, "fs: clearing the timer failed");
        }
    }

    fn set_timer(&mut self) {
        self.busy = false;
        self.timer_set = true;
        if let Err(error) = self.timer.reset(REST, None) {
            warn!(%error, "fs: setting the timer failed");
        }
    }
}

impl Fs {
    /// A file system of this shape, served by whoever is at the other end of `socket`.
    pub(crate) fn new(socket: UnixStream, shape: FsShape) -> Result<Self, FsError> {
        let queues = shape.queues + 1;
        Ok(Self {
            tag: shape.tag,
            queue_sizes: vec![shape.queue_size; usize::from(queues)],
            backend: Backend::open(socket, queues)?,
            state: State::Offered,
        })
    }

    /// The backend has gone: what it had fails, and so does what comes.
    pub(super) fn orphan(&mut self) {
        self.backend.hang_up();
        match std::mem::replace(&mut self.state, State::Offered) {
            State::Served(served) => {
                let orphans = served.relays.into_iter().map(Relay::orphan);
                self.state = State::Orphaned(orphans.collect());
                self.fail_all();
            }
            other => self.state = other,
        }
    }

    /// Answers everything in the queues of a backend that has gone.
    pub(super) fn fail_all(&mut self) {
        if let State::Orphaned(orphans) = &mut self.state {
            orphans.iter_mut().for_each(Orphan::fail_all);
        }
    }

    /// Ends with the backend, and leaves only the doorbells on the event loop.
    fn lose_backend(&mut self, ops: &mut EventOps<'_>) {
        let State::Served(served) = &self.state else {
            return;
        };
        let calls = served
            .relays
            .iter()
            .map(|relay| Events::empty(relay.channel().call()));
        let own = [Events::empty(self.backend.socket()), Events::empty(&served.timer)];
        for event in calls.chain(own) {
            if let Err(error) = ops.remove(event) {
                error!(%error, "fs: the event loop keeps a descriptor");
            }
        }
        self.orphan();
    }

    /// The region, and a relay in it for each queue that the driver uses.
    fn connect(&self, activation: Activation) -> std::io::Result<(Region, Vec<Relay>)> {
        let rooms = (0..self.queue_sizes.len()).map(|queue| if queue == 0 { URGENT } else { REQUESTS });
        let region = Region::new(rooms.clone().map(Room::bytes).sum())?;
        let mut offset = 0;
        let mut relays = Vec::new();
        for ((index, active), room) in (0..).zip(activation.queues).zip(rooms) {
            if active.queue.ready() {
                let memory = activation.memory.clone();
                let queue = ServedQueue::new(index, active, memory, Arc::clone(&activation.interrupt));
                relays.push(Relay::new(index, queue, Channel::new(&region, offset, room)?));
            }
            offset += room.bytes();
        }
        Ok((region, relays))
    }
}

impl MutEventSubscriber for Fs {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let served = match &self.state {
            State::Offered => return,
            State::Served(served) => served,
            State::Orphaned(orphans) => return orphans.iter().for_each(|orphan| orphan.watch(ops)),
        };
        for (position, relay) in (0..).zip(&served.relays) {
            relay.watch(ops, 2 * position, 2 * position + 1);
        }
        // Nobody asks the backend anything now, so whatever it says is its end.
        let gone = EventSet::IN | EventSet::READ_HANG_UP;
        let socket = Events::with_data(self.backend.socket(), SOCKET, gone);
        let timer = Events::with_data(&served.timer, TIMER, EventSet::IN);
        for events in [socket, timer] {
            if let Err(error) = ops.add(events) {
                error!(%error, "fs: the event loop refuses a descriptor");
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match (&mut self.state, events.data()) {
            (State::Served(_), SOCKET) => {
                warn!(
                    tag = self.tag,
                    "fs: the backend has gone; its file system fails from now on"
                );
                self.lose_backend(ops);
            }
            (State::Served(served), TIMER) => served.rest(),
            (State::Served(served), token) => {
                if let Err(fault) = served.relay(token) {
                    let error = &fault as &dyn Error;
                    warn!(
                        error,
                        tag = self.tag,
                        "fs: the backend is given up; its file system fails"
                    );
                    self.lose_backend(ops);
                }
            }
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
        FEATURES
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
        let host = |operation| move |source| ActivateError::Host { operation, source };
        let (region, relays) = self.connect(activation).map_err(host("make the bounce region"))?;
        let timer = TimerFd::new().map_err(std::io::Error::from);
        let timer = timer.map_err(host("create a timer"))?;
        let rings = relays.iter().map(|relay| ServedRing {
            index: relay.index(),
            places: relay.channel().ring().places(),
            events: relay.channel().events(),
        });
        let started = self.backend.start(&region, rings.collect());
        self.state = State::Served(Served {
            relays,
            timer,
            timer_set: false,
            busy: false,
        });
        if let Err(error) = started {
            warn!(
                error = &error as &dyn Error,
                tag = self.tag,
                "fs: no backend; its file system fails"
            );
            self.orphan();
        }
        Ok(())
    }

    fn deactivate(&mut self) {
        if let State::Served(served) = std::mem::replace(&mut self.state, State::Offered) {
            let queues = served.relays.iter().map(Relay::index);
            if let Err(error) = self.backend.stop(queues.collect()) {
                warn!(
                    error = &error as &dyn Error,
                    tag = self.tag,
                    "fs: the backend is given up"
                );
            }
        }
    }
}
