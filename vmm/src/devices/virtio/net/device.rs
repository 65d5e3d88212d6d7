//! The device on the event loop: features, configuration, and what is watched when.
//!
//! The tap is watched for input while the guest has buffers, and for output while a frame waits for it; watching what
//! cannot be served would keep a level-triggered loop busy.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use tracing::{debug, error};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;

use super::super::{ActivateError, Activation, GuestMemory, Interrupt, VirtioDevice, config_space};
use super::rx::{Rx, RxEnd};
use super::tap::Tap;
use super::tx::{Tx, TxEnd};

/// rx, tx.
const QUEUE_SIZES: [u16; 2] = [256, 256];
const RX: u16 = 0;
const TX: u16 = 1;

const RX_NOTIFY: u32 = 0;
const TX_NOTIFY: u32 = 1;
const TAP: u32 = 2;

/// Why there is no net device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    #[error("cannot make the tap non-blocking")]
    Tap(#[source] std::io::Error),
}

/// virtio-net.
#[derive(Debug)]
pub(crate) struct Net {
    mac: [u8; 6],
    tap: Tap,
    state: State,
    /// What the event loop was told about the tap.
    watched: EventSet,
}

#[derive(Debug)]
enum State {
    Offered,
    Active(Active),
    /// The driver broke a queue.
    Broken,
}

#[derive(Debug)]
struct Active {
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    rx: Rx,
    tx: Tx,
    /// What the tap is to be watched for.
    wanted: EventSet,
}

impl Net {
    /// A card on a tap that was opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
    pub(crate) fn new(mac: [u8; 6], tap: OwnedFd) -> Result<Self, NetError> {
        Ok(Self::with_tap(mac, Tap::new(tap).map_err(NetError::Tap)?))
    }

    /// Likewise, with a datagram socket in place of the tap.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn on_socket(mac: [u8; 6], socket: OwnedFd) -> Result<Self, NetError> {
        Ok(Self::with_tap(
            mac,
            Tap::from_socket(socket).map_err(NetError::Tap)?,
        ))
    }

    fn with_tap(mac: [u8; 6], tap: Tap) -> Self {
        Self {
            mac,
            tap,
            state: State::Offered,
            watched: EventSet::empty(),
        }
    }

    /// Tap to guest.
    pub(crate) fn receive(&mut self) {
        let State::Active(active) = &mut self.state else {
            return;
        };
        if let Err(error) = active.receive(&self.tap) {
            self.break_off(&error);
        }
    }

    /// Guest to tap.
    pub(crate) fn transmit(&mut self) {
        let State::Active(active) = &mut self.state else {
            return;
        };
        if let Err(error) = active.transmit(&self.tap) {
            self.break_off(&error);
        }
    }

    fn break_off(&mut self, error: &virtio_queue::Error) {
        error!(%error, "net: the driver broke a queue; the device stops until it is reset");
        self.state = State::Broken;
    }

    /// Tells the event loop what the tap is to be watched for now.
    fn watch(&mut self, ops: &mut EventOps<'_>) {
        let wanted = match &self.state {
            State::Active(active) => active.wanted,
            State::Offered | State::Broken => EventSet::empty(),
        };
        if wanted == self.watched {
            return;
        }
        let events = Events::with_data(&self.tap, TAP, wanted);
        // A descriptor without wanted events still reports errors and hang-ups, so it is taken out.
        let result = if self.watched.is_empty() {
            ops.add(events)
        } else if wanted.is_empty() {
            ops.remove(events)
        } else {
            ops.modify(events)
        };
        match result {
            Ok(()) => self.watched = wanted,
            Err(error) => error!(%error, "net: the event loop refuses the tap"),
        }
    }

    /// What the tap should be watched for.
    #[cfg(test)]
    pub(super) fn wanted(&self) -> EventSet {
        match &self.state {
            State::Active(active) => active.wanted,
            State::Offered | State::Broken => EventSet::empty(),
        }
    }
}

impl Active {
    fn receive(&mut self, tap: &Tap) -> Result<(), virtio_queue::Error> {
        let (end, interrupt) = self.rx.pass(&self.memory, tap)?;
        self.wanted.set(EventSet::IN, end == RxEnd::TapWatched);
        if interrupt {
            self.interrupt.signal_queue(RX);
        }
        Ok(())
    }

    fn transmit(&mut self, tap: &Tap) -> Result<(), virtio_queue::Error> {
        let (end, interrupt) = self.tx.pass(&self.memory, tap)?;
        self.wanted.set(EventSet::OUT, end == TxEnd::TapFull);
        if end == TxEnd::BudgetSpent
            && let Err(error) = self.tx.queue.notify.write(1)
        {
            error!(%error, "net: cannot notify itself");
        }
        if interrupt {
            self.interrupt.signal_queue(TX);
        }
        Ok(())
    }
}

impl MutEventSubscriber for Net {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.watched = EventSet::empty();
        let State::Active(active) = &self.state else {
            return;
        };
        for event in [
            Events::with_data(&active.rx.queue.notify, RX_NOTIFY, EventSet::IN),
            Events::with_data(&active.tx.queue.notify, TX_NOTIFY, EventSet::IN),
        ] {
            if let Err(error) = ops.add(event) {
                error!(%error, "net: the event loop refuses a descriptor");
            }
        }
        // Buffers and frames may have been first.
        self.receive();
        self.transmit();
        self.watch(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let State::Active(active) = &self.state else {
            // Broken: nobody would take the event back, and it would come again for ever.
            if let Err(error) = ops.remove(events) {
                error!(%error, "net: the event loop keeps a descriptor");
            }
            return;
        };
        let notify = match events.data() {
            RX_NOTIFY => Some(&active.rx.queue.notify),
            TX_NOTIFY => Some(&active.tx.queue.notify),
            _ => None,
        };
        if let Some(Err(error)) = notify.map(|notify| notify.read()) {
            debug!(%error, "net: notification was taken already");
        }
        match events.data() {
            RX_NOTIFY => self.receive(),
            TX_NOTIFY => self.transmit(),
            _ => {
                // An error of the tap comes with whatever was asked for, and shows when the tap is used.
                if events.event_set() != EventSet::OUT {
                    self.receive();
                }
                if events.event_set() != EventSet::IN {
                    self.transmit();
                }
            }
        }
        self.watch(ops);
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        [
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_STATUS,
        ]
        .iter()
        .fold(0, |features, bit| features | 1 << bit)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // 5.1.4: mac, status; the rest belongs to features that are not offered.
        let [s0, s1, ..] = VIRTIO_NET_S_LINK_UP.to_le_bytes();
        let [m0, m1, m2, m3, m4, m5] = self.mac;
        config_space::read(&[m0, m1, m2, m3, m4, m5, s0, s1], offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            queues,
            features,
            interrupt,
        } = activation;
        let mut queues = queues.into_iter();
        let (Some(rx), Some(tx)) = (queues.next(), queues.next()) else {
            return Err(ActivateError::Driver("net needs its rx and tx queues"));
        };
        if !rx.queue.ready() || !tx.queue.ready() {
            return Err(ActivateError::Driver("net needs its rx and tx queues"));
        }
        self.tap
            .configure(features)
            .map_err(|source| ActivateError::Host {
                operation: "set the tap's header and offloads",
                source,
            })?;
        let rx = Rx::new(rx, features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0);
        let tx = Tx::new(tx, features);
        self.state = State::Active(Active {
            memory,
            interrupt,
            rx,
            tx,
            wanted: EventSet::empty(),
        });
        Ok(())
    }

    fn deactivate(&mut self) {
        self.state = State::Offered;
    }
}
