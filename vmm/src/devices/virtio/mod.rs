//! What a virtio device is to the rest of the VMM: the contract between a device and its transport (virtio 1.2).
//!
//! The transport (`pci::transport`) owns the driver-facing registers, validates the queues and decides when a device
//! lives; a device owns what happens to buffers. A device knows neither PCI nor KVM.

pub(crate) mod balloon;
pub(crate) mod block;
pub(crate) mod buffers;
pub(crate) mod config_space;
pub(crate) mod fs;
mod gather;
pub(crate) mod mem;
pub(crate) mod net;
pub(crate) mod pmem;
pub(crate) mod single_queue;
mod sys;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod testing;
pub(crate) mod vsock;

use std::fmt::Debug;
use std::sync::Arc;

use event_manager::MutEventSubscriber;
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

/// Guest memory as every device sees it.
pub(crate) type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// What the transport hands to a device when the driver says DRIVER_OK.
#[derive(Debug)]
pub(crate) struct Activation {
    pub(crate) memory: GuestMemory,
    /// As many as `queue_max_sizes` names, in that order. A queue that the driver left disabled is there with
    /// `queue.ready() == false`; queue 0 is always ready.
    pub(crate) queues: Vec<ActiveQueue>,
    /// Features that the driver accepted; a subset of what the device offered.
    pub(crate) features: u64,
    pub(crate) interrupt: Arc<dyn Interrupt>,
}

/// A queue that the driver has set up and the transport has validated (`Queue::is_valid`). `set_event_idx` has been
/// called if the driver accepted VIRTIO_RING_F_EVENT_IDX.
#[derive(Debug)]
pub(crate) struct ActiveQueue {
    pub(crate) queue: Queue,
    /// Readable when the driver has put buffers into the queue. Non-blocking. Shared with the transport, so that it stays
    /// open, and can be taken off the event loop, after a device has dropped its queue.
    pub(crate) notify: Arc<EventFd>,
}

/// How far a device has come in a queue: the numbers of the next chain to take and to give back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QueueProgress {
    pub(crate) next_avail: u16,
    pub(crate) next_used: u16,
}

impl QueueProgress {
    pub(crate) fn of(queue: &Queue) -> Self {
        Self {
            next_avail: queue.next_avail(),
            next_used: queue.next_used(),
        }
    }
}

/// What a snapshot keeps of a device beyond its function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedDevice {
    /// Queues by number; one that is not named was not used.
    pub(crate) progress: Vec<(u16, QueueProgress)>,
    pub(crate) own: SavedState,
}

/// Which of the devices that can be in a snapshot, with what only it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SavedState {
    /// Without connections.
    Vsock(vsock::SavedVsock),
    Balloon(balloon::SavedBalloon),
    Memory(mem::SavedMem),
}

/// How a device reaches the driver. May be used from any thread.
pub(crate) trait Interrupt: Send + Sync + Debug {
    /// Buffers of queue `index` were used. The device asks `Queue::needs_notification` first.
    fn signal_queue(&self, index: u16);
    /// The configuration space has changed.
    fn signal_config(&self);
}

/// Why a device could not start. The transport sets DEVICE_NEEDS_RESET; the driver sees the device as broken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ActivateError {
    /// A resource of the host was refused.
    #[error("cannot {operation} for the virtio device")]
    Host {
        /// Verb and object: "create the worker thread".
        operation: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// The driver's choice of features or queues cannot be served.
    #[error("the driver's set-up cannot be served: {0}")]
    Driver(&'static str),
}

/// A virtio device. Life: offered -> `activate` -> (events) -> `deactivate` -> may be activated again.
///
/// `activate`, `deactivate` and the event methods are called on the event loop's thread only. After a successful
/// `activate` the loop adds the device as a subscriber, and `MutEventSubscriber::init` registers the queues' `notify`
/// and the device's own descriptors; the loop removes the subscriber (which unregisters every descriptor it added)
/// before it calls `deactivate`. Config space is accessed on vCPU threads; a mutex around the device serialises both.
pub(crate) trait VirtioDevice: MutEventSubscriber + Send {
    /// `virtio_bindings::virtio_ids`.
    fn device_type(&self) -> u32;
    /// Everything the device offers, VERSION_1 included: the transport adds nothing.
    fn features(&self) -> u64;
    /// One maximum per queue, each a power of two.
    fn queue_max_sizes(&self) -> &[u16];
    /// Bytes beyond the device's configuration stay as they are in `data` (all ones).
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Another number after each change of the configuration that the driver did not make (2.5.1).
    fn config_generation(&self) -> u8 {
        0
    }
    /// Writes to read-only fields are ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]);
    /// Shared memory or extra guest-physical regions are not announced here: pmem's region is a KVM memory slot that
    /// the builder maps and whose address the device only reports in its config.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;
    /// What a snapshot keeps of the device. `None`: it holds more than can be kept (another process, a tap, a worker's
    /// requests), or its driver broke it.
    fn save(&self) -> Option<SavedDevice> {
        None
    }
    /// Driver reset or removal: drop the queues and whatever belongs to this activation. Also called after a failed
    /// `activate`.
    fn deactivate(&mut self);
}
