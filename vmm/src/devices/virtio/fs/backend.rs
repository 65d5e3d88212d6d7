//! The conversation with a vhost-user backend. The messages are the vhost crate's.
//!
//! The crate waits for answers without end and takes a time-out of the socket for a reason to try again, so each exchange has
//! a thread of its own, and a backend that does not answer within [`PATIENCE`] has its socket shut down, which ends the
//! wait. After a failure of any kind the backend is gone for good: nothing tells what it has understood.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;
use std::{io, thread};

use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::GuestMemoryBackend;
use vmm_sys_util::eventfd::EventFd;

use super::region::Region;

/// The event loop stands still for as long, once: virtiofsd answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Feature bit by which a backend says that it has protocol features; the guest never sees it.
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// Why a backend cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackendError {
    #[error("cannot set the backend's socket up")]
    Socket(#[source] io::Error),
    #[error("cannot start the thread that talks to the backend")]
    Thread(#[source] io::Error),
    #[error("the backend does not {operation}")]
    Refused {
        /// Verb and object.
        operation: &'static str,
        #[source]
        source: vhost::Error,
    },
    #[error("the backend does not {operation} within {} s", PATIENCE.as_secs())]
    Silent {
        /// Verb and object.
        operation: &'static str,
    },
    #[error("the backend offers no {0}")]
    Lacks(&'static str),
    #[error("queues: the backend serves {offered}, {wanted} are needed with the one for urgent messages")]
    Queues { offered: u64, wanted: u64 },
}

/// A connected backend, or one that was.
pub(super) struct Backend {
    frontend: Frontend,
    /// The same socket, to be watched and shut down.
    socket: UnixStream,
}

/// A ring that the backend is to serve.
pub(super) struct ServedRing {
    /// The queue's number.
    pub(super) index: u16,
    pub(super) places: VringConfigData,
    pub(super) events: QueueEvents,
}

/// What the backend needs of one queue beside its ring.
#[derive(Debug)]
pub(super) struct QueueEvents {
    pub(super) kick: Arc<EventFd>,
    pub(super) call: Arc<EventFd>,
}

impl Backend {
    /// Asks who is there, and whether it can serve this many queues.
    pub(super) fn open(socket: UnixStream, queues: u16) -> Result<Self, BackendError> {
        // The flag belongs to the connection: whoever made it may have waited for it in an event loop of his.
        socket.set_nonblocking(false).map_err(BackendError::Socket)?;
        let watched = socket.try_clone().map_err(BackendError::Socket)?;
        let wanted = u64::from(queues);
        let backend = Self {
            frontend: Frontend::from_stream(socket, wanted),
            socket: watched,
        };
        let (features, offered) = backend.exchange("introduce itself", introduce)?;
        for (bit, name) in [
            (PROTOCOL_FEATURES, "protocol features"),
            (1 << VIRTIO_F_VERSION_1, "virtio 1"),
        ] {
            if features & bit == 0 {
                return Err(BackendError::Lacks(name));
            }
        }
        if offered < wanted {
            return Err(BackendError::Queues { offered, wanted });
        }
        Ok(backend)
    }

    /// Becomes readable when it has gone.
    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Hands the region and its rings over; it may use them from now on.
    pub(super) fn start(&self, region: &Region, queues: Vec<ServedRing>) -> Result<(), BackendError> {
        // Kept until the exchange is over: the message has the numbers of the descriptors.
        let region = region.clone();
        self.exchange("take the queues", move |frontend| {
            frontend.set_features(1 << VIRTIO_F_VERSION_1 | PROTOCOL_FEATURES)?;
            let regions = region.memory().iter();
            let regions = regions.map(VhostUserMemoryRegionInfo::from_guest_region);
            frontend.set_mem_table(&regions.collect::<Result<Vec<_>, _>>()?)?;
            for ServedRing {
                index,
                places,
                events,
            } in &queues
            {
                let index = usize::from(*index);
                frontend.set_vring_num(index, places.queue_size)?;
                frontend.set_vring_addr(index, places)?;
                frontend.set_vring_base(index, 0)?;
                frontend.set_vring_call(index, &events.call)?;
                frontend.set_vring_kick(index, &events.kick)?;
                frontend.set_vring_enable(index, true)?;
            }
            Ok(())
        })
    }

    /// Takes the queues back: it does not touch them any more.
    pub(super) fn stop(&self, queues: Vec<u16>) -> Result<(), BackendError> {
        self.exchange("give the queues back", move |frontend| {
            for queue in queues {
                frontend.set_vring_enable(usize::from(queue), false)?;
                frontend.get_vring_base(usize::from(queue))?;
            }
            Ok(())
        })
    }

    /// Ends the connection.
    pub(super) fn hang_up(&self) {
        // Fails only where the other side has done so before.
        drop(self.socket.shutdown(Shutdown::Both));
    }

    fn exchange<T: Send + 'static>(
        &self,
        operation: &'static str,
        talk: impl FnOnce(&mut Frontend) -> vhost::Result<T> + Send + 'static,
    ) -> Result<T, BackendError> {
        let mut frontend = self.frontend.clone();
        let (sender, answer) = channel();
        let thread = thread::Builder::new().name("vhost-user".to_owned());
        // The receiver is gone only after the exchange has failed.
        let thread = thread
            .spawn(move || drop(sender.send(talk(&mut frontend))))
            .map_err(BackendError::Thread)?;
        let result = match answer.recv_timeout(PATIENCE) {
            Ok(result) => result.map_err(|source| BackendError::Refused { operation, source }),
            Err(_) => Err(BackendError::Silent { operation }),
        };
        if result.is_err() {
            self.hang_up();
        }
        if thread.join().is_err() {
            tracing::error!("fs: the thread that talked to the backend has panicked");
        }
        result
    }
}

/// Features, and how many queues there are at most.
fn introduce(frontend: &mut Frontend) -> vhost::Result<(u64, u64)> {
    frontend.set_owner()?;
    let features = frontend.get_features()?;
    if features & PROTOCOL_FEATURES == 0 {
        return Ok((features, 0));
    }
    let ours = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
    let common = frontend.get_protocol_features()? & ours;
    frontend.set_protocol_features(common)?;
    // What is refused is to be seen; without this a backend that could not map memory would say nothing.
    if common.contains(VhostUserProtocolFeatures::REPLY_ACK) {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    let queues = if common.contains(VhostUserProtocolFeatures::MQ) {
        frontend.get_queue_num()?
    } else {
        u64::MAX
    };
    Ok((features, queues))
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Backend")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}
