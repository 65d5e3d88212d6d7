//! virtio-net (virtio 1.2, section 5.1) on a tap that the daemon opened.
//!
//! # Protocol primer
//!
//! Queue 0 receives, queue 1 transmits; no control queue. Every frame has a 12-byte header before it, on the queues and,
//! by TUNSETVNETHDRSZ, on the tap alike, so frames pass between the two without being looked at: checksums and the
//! cutting of 64 KiB segments are left to whoever touches the wire last. With VIRTIO_NET_F_MRG_RXBUF a received frame
//! may fill several buffers; the first header tells how many.
//!
//! [`header`] is that header, [`tap`] the host's side, [`rx`] and [`tx`] the queues, [`device`] the device.

mod device;
mod header;
mod rx;
mod tap;
mod tx;

#[cfg(test)]
mod tests;

pub(crate) use device::{Net, NetError};
