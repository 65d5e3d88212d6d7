//! virtio-fs (virtio 1.2, section 5.11): a directory of the host, served by another process, virtiofsd.
//!
//! # Protocol primer
//!
//! Queue 0 is for urgent messages (FORGET, INTERRUPT), queues from 1 on are for requests: FUSE's messages, a header and what
//! follows to read, the answer to write. The configuration has a tag of 36 bytes, by which the guest mounts, and the number
//! of request queues. No DAX window and no notification queue.
//!
//! None of it is read here. The device is a vhost-user front end: over a unix socket it hands the backend guest memory (one
//! sealed memfd, as much as can ever be plugged), the rings' places and an eventfd each way per queue. The driver's doorbell
//! is the backend's from then on, without a way through this process; its interrupts come back over the event loop, as
//! messages are sent in `pci::interrupt`.
//!
//! [`backend`] is the conversation, [`rings`] the places, [`orphan`] what becomes of the queues when the backend is gone,
//! [`device`] the device.

mod backend;
mod device;
mod orphan;
mod rings;

#[cfg(test)]
mod tests;

pub(crate) use device::{Fs, FsError};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use orphan::fail_queue;
