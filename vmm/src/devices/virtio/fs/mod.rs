//! virtio-fs (virtio 1.2, section 5.11): a directory of the host, served by another process, virtiofsd.
//!
//! # Protocol primer
//!
//! Queue 0 is for urgent messages (FORGET, INTERRUPT), queues from 1 on are for requests: FUSE's messages, a header and what
//! follows to read, the answer to write. The configuration has a tag of 36 bytes, by which the guest mounts, and the number
//! of request queues. No DAX window and no notification queue.
//!
//! # The bounce region
//!
//! ```text
//!  guest's memory             bounce region (memfd)                 virtiofsd
//!  queue ─────── send ──▶ buffers, shadow ring ── kick ──▶ reads and writes there,
//!  queue ◀──── receive ── buffers, shadow ring ◀─ call ─── and nowhere else
//! ```
//!
//! The device is a vhost-user front end: over a unix socket it hands the backend memory, the rings' places and an eventfd each
//! way per queue. That memory is not the guest's. It is a small region of the device's own, in which this process drives a
//! ring per queue as a driver would: requests are copied there, answers back. The price is a copy each way on the event loop;
//! for it the backend, which parses what the guest says, sees nothing of the guest but its requests, and guest memory need
//! not be shared with anybody. A queue whose part of the region is full waits. What both sides write is hostile: the guest's
//! chains are measured before they are copied, and a backend whose used ring cannot be is given up.
//!
//! [`backend`] is the conversation, [`region`] the memory and [`arena`] who has which of its pages, [`shadow`] the ring,
//! [`channel`] one queue's traffic in it, [`relay`] that with the guest's queue, [`orphan`] what becomes of the queues when the
//! backend is gone, [`device`] the device.

mod arena;
mod backend;
mod channel;
mod device;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzzing;
mod orphan;
mod region;
mod relay;
mod shadow;

#[cfg(test)]
mod tests;

pub(crate) use device::{Fs, FsError};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use fuzzing::{bounce_queue, fail_queue};
