//! virtio-vsock (virtio 1.2, section 5.10), muxed to unix sockets on the host. Never vhost-vsock: that is one CID space
//! for the whole host and kernel code in reach of the guest.
//!
//! # Protocol primer
//!
//! Queue 0 carries packets to the guest (rx), queue 1 from the guest (tx), queue 2 events (TRANSPORT_RESET, in a restored
//! Machine). A packet is a 44-byte header ([`packet::Header`]) and, for RW, payload. A
//! connection is named by its two ports, since the two CIDs are fixed: 2 for the host and the guest's own.
//!
//! ```text
//!  opening       REQUEST ─▶        ◀─ RESPONSE      (or RST: nobody listens)
//!  bytes         RW ─▶ ◀─ RW       each side tells in every header how much it can buffer (buf_alloc) and how much
//!                                  it has passed on (fwd_cnt); who has nothing to send tells by CREDIT_UPDATE
//!  closing       SHUTDOWN ─▶       ◀─ RST           flags: 1 "I will not receive", 2 "I will not send", permanent
//! ```
//!
//! # On the host
//!
//! Host to guest: connect to the socket, send `CONNECT <port>\n`, read `OK <port>\n`, then bytes ([`handshake`]). Guest
//! to host: port N of CID 2 is the unix socket `<socket>_<N>`.
//!
//! # Files
//!
//! [`packet`] is the wire, [`credit`] the flow control of one connection, [`connection`] the state machine of one
//! connection, [`stream`] its host socket, [`muxer`] all connections and their epoll set, [`rings`] the guest's queues, [`events`] what a
//! restored guest is told, [`active`] moves the packets, and [`device`] joins muxer and rings to the event loop.

mod active;
mod connection;
mod credit;
mod device;
mod events;
mod handshake;
mod muxer;
mod packet;
mod rings;
mod stream;

#[cfg(test)]
mod tests;

pub(crate) use device::{SavedVsock, Vsock, VsockError};

/// The host's well-known CID (5.10.4).
const HOST_CID: u64 = 2;
