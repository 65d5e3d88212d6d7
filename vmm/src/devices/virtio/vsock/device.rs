//! The device on the event loop: what wakes it, and what its driver and snapshots see of it. [`Active`] moves the packets; what
//! a pass leaves goes on through the device's own notification.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use tracing::{debug, error};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use super::super::{ActivateError, Activation, SavedDevice, SavedState, VirtioDevice, config_space};
use super::active::{Active, Progress};
use super::events::EventQueue;
use super::muxer::{Muxer, path_fits};

/// rx, tx, events. Linux keeps the whole rx queue filled with pages, so its size is guest memory: 512 KiB.
const QUEUE_SIZES: [u16; 3] = [128, 128, 16];

const RX_NOTIFY: u32 = 0;
const TX_NOTIFY: u32 = 1;
const HOST: u32 = 2;
const EVENTS_NOTIFY: u32 = 3;

/// Why there is no vsock device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VsockError {
    #[error("vsock.guest_cid {0} is reserved: it must be at least 3 and not 4294967295")]
    ReservedCid(u32),
    #[error("vsock.socket {} is too long: with \"_4294967295\" behind it, it must be shorter than 108 bytes", .0.display())]
    PathTooLong(PathBuf),
    #[error("cannot listen on vsock.socket {}", path.display())]
    Listen {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// virtio-vsock.
#[derive(Debug)]
pub(crate) struct Vsock {
    guest_cid: u32,
    muxer: Muxer,
    state: State,
    first_connection: Arc<OnceLock<u64>>,
    /// The driver has still to learn that its connections are lost: it comes from a snapshot, which has none.
    reset_owed: bool,
}

/// What a snapshot keeps beyond the queues: no connection, and so no name of one may be used again at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedVsock {
    next_port: u32,
}

#[derive(Debug)]
enum State {
    Offered,
    Active(Active),
    /// The driver broke a queue; nothing works until it resets the device.
    Broken,
}

impl Vsock {
    /// Listens on `socket` at once. `first_connection` gets the CLOCK_MONOTONIC nanoseconds of the guest's first REQUEST.
    pub(crate) fn new(
        guest_cid: u32,
        socket: &Path,
        first_connection: Arc<OnceLock<u64>>,
    ) -> Result<Self, VsockError> {
        // 5.10.4: 0, 1, 2 and the upper bits are reserved; 2^32-1 is VMADDR_CID_ANY.
        if guest_cid < 3 || guest_cid == u32::MAX {
            return Err(VsockError::ReservedCid(guest_cid));
        }
        if !path_fits(socket) {
            return Err(VsockError::PathTooLong(socket.to_owned()));
        }
        let muxer = Muxer::bind(u64::from(guest_cid), socket).map_err(|source| VsockError::Listen {
            path: socket.to_owned(),
            source,
        })?;
        Ok(Self {
            guest_cid,
            muxer,
            state: State::Offered,
            first_connection,
            reset_owed: false,
        })
    }

    /// Its driver comes from a snapshot, with which this was saved.
    pub(crate) fn restored(mut self, saved: SavedVsock) -> Self {
        self.muxer.continue_ports(saved.next_port);
        self.reset_owed = true;
        self
    }

    /// Moves packets until both sides have nothing more or the budget is spent.
    pub(super) fn pass(&mut self) {
        let State::Active(active) = &mut self.state else {
            return;
        };
        let passed = active.pass(&mut self.muxer, &self.first_connection);
        if active.events.as_ref().is_none_or(|events| !events.owes()) {
            self.reset_owed = false;
        }
        match passed {
            Ok(Progress::BudgetSpent) => {
                if let Err(error) = active.tx.notify.write(1) {
                    error!(%error, "vsock: cannot notify itself");
                }
            }
            Ok(Progress::Done | Progress::Blocked) => {}
            Err(error) => {
                error!(%error, "vsock: the driver broke a queue; the device stops until it is reset");
                self.muxer.close_all();
                self.state = State::Broken;
            }
        }
    }

    /// What happened on the host, then a pass.
    pub(crate) fn host_pass(&mut self) {
        self.muxer.host_events();
        self.pass();
    }

    #[cfg(test)]
    pub(super) fn muxer(&self) -> &Muxer {
        &self.muxer
    }
}

impl MutEventSubscriber for Vsock {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let State::Active(active) = &self.state else {
            return;
        };
        let events = [
            Events::with_data(&active.rx.notify, RX_NOTIFY, EventSet::IN),
            Events::with_data(&active.tx.notify, TX_NOTIFY, EventSet::IN),
            Events::with_data_raw(self.muxer.descriptor(), HOST, EventSet::IN),
        ];
        let news = active.events.as_ref();
        let news = news.map(|news| Events::with_data(&news.active.notify, EVENTS_NOTIFY, EventSet::IN));
        for event in events.into_iter().chain(news) {
            if let Err(error) = ops.add(event) {
                error!(%error, "vsock: the event loop refuses a descriptor");
            }
        }
        // Clients of the host and packets of the guest may have been first.
        if let Err(error) = active.tx.notify.write(1) {
            error!(%error, "vsock: cannot notify itself");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let State::Active(active) = &self.state else {
            // Broken: nobody would take the event back, and it would come again for ever.
            if let Err(error) = ops.remove(events) {
                error!(%error, "vsock: the event loop keeps a descriptor");
            }
            return;
        };
        let notify = match (events.data(), &active.events) {
            (RX_NOTIFY, _) => &active.rx.notify,
            (TX_NOTIFY, _) => &active.tx.notify,
            (EVENTS_NOTIFY, Some(news)) => &news.active.notify,
            _ => return self.host_pass(),
        };
        if let Err(error) = notify.read() {
            debug!(%error, "vsock: notification was taken already");
        }
        self.pass();
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config_space::read(&u64::from(self.guest_cid).to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            queues,
            interrupt,
            features: _,
        } = activation;
        let mut queues = queues.into_iter();
        let (Some(rx), Some(tx)) = (queues.next(), queues.next()) else {
            return Err(ActivateError::Driver("vsock needs its rx and tx queues"));
        };
        if !rx.queue.ready() || !tx.queue.ready() {
            return Err(ActivateError::Driver("vsock needs its rx and tx queues"));
        }
        let reset_owed = self.reset_owed;
        let events = queues.next().map(|events| EventQueue::new(events, reset_owed));
        self.state = State::Active(Active {
            memory,
            rx,
            tx,
            events,
            interrupt,
        });
        self.muxer.start();
        Ok(())
    }

    fn save(&self) -> Option<SavedDevice> {
        let progress = match &self.state {
            State::Offered => Vec::new(),
            State::Active(active) => active.progress(),
            State::Broken => return None,
        };
        Some(SavedDevice {
            progress,
            own: SavedState::Vsock(SavedVsock {
                next_port: self.muxer.next_port(),
            }),
        })
    }

    /// A driver that begins anew has no connections to lose.
    fn deactivate(&mut self) {
        self.reset_owed = false;
        self.muxer.close_all();
        self.state = State::Offered;
    }
}
