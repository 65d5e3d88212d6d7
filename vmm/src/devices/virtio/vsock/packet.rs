//! The packet on the wire: header and operations (virtio 1.2, 5.10.6). No queue and no socket here.
//!
//! Own codec instead of the virtio-vsock crate's: that one wants a packet in at most two descriptors and one mapping,
//! while a Linux guest from 6.7 on sends MSG_ZEROCOPY payload as one descriptor per page fragment; and it writes each
//! header field to guest memory on its own.

use super::super::buffers::{BufferError, Buffers, Segments};
use super::HOST_CID;

/// `struct virtio_vsock_hdr`.
pub(super) const HEADER_LENGTH: usize = 44;

/// VIRTIO_VSOCK_TYPE_STREAM; the other type (SEQPACKET) is not offered.
pub(super) const TYPE_STREAM: u16 = 1;

/// VIRTIO_VSOCK_SHUTDOWN_RCV: the sender will not receive any more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// VIRTIO_VSOCK_SHUTDOWN_SEND: the sender will not send any more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// VIRTIO_VSOCK_OP_*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
    /// A number that the specification does not have.
    Unknown(u16),
}

impl Operation {
    fn from_wire(value: u16) -> Self {
        match value {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            other => Self::Unknown(other),
        }
    }

    fn to_wire(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
            Self::Unknown(other) => other,
        }
    }
}

/// The two ports that name a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// The header, all fields little-endian on the wire and in the specification's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source_cid: u64,
    pub(super) destination_cid: u64,
    pub(super) source_port: u32,
    pub(super) destination_port: u32,
    /// Payload bytes.
    pub(super) length: u32,
    pub(super) kind: u16,
    pub(super) operation: Operation,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// A packet from the host without payload, flags and credit.
    pub(super) fn to_guest(guest_cid: u64, ports: Ports, operation: Operation) -> Self {
        Self {
            source_cid: HOST_CID,
            destination_cid: guest_cid,
            source_port: ports.host,
            destination_port: ports.guest,
            length: 0,
            kind: TYPE_STREAM,
            operation,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    /// The RST that answers a packet which belongs to no connection. It comes from wherever the packet was sent to.
    pub(super) fn reset_for(&self) -> Self {
        Self {
            source_cid: self.destination_cid,
            destination_cid: self.source_cid,
            source_port: self.destination_port,
            destination_port: self.source_port,
            length: 0,
            kind: self.kind,
            operation: Operation::Reset,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    /// The connection that a packet of the guest belongs to.
    pub(super) fn ports(&self) -> Ports {
        Ports {
            host: self.destination_port,
            guest: self.source_port,
        }
    }

    pub(super) fn decode(bytes: &[u8; HEADER_LENGTH]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes(field(bytes, at));
        let u32_at = |at: usize| u32::from_le_bytes(field(bytes, at));
        let u64_at = |at: usize| u64::from_le_bytes(field(bytes, at));
        Self {
            source_cid: u64_at(0),
            destination_cid: u64_at(8),
            source_port: u32_at(16),
            destination_port: u32_at(20),
            length: u32_at(24),
            kind: u16_at(28),
            operation: Operation::from_wire(u16_at(30)),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        bytes[0..8].copy_from_slice(&self.source_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.destination_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.source_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.destination_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.operation.to_wire().to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// Why a chain of the tx queue is no packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PacketError {
    #[error("the chain has no usable buffers")]
    Buffers(#[source] BufferError),
    #[error("the chain is shorter than a packet header")]
    NoHeader,
    #[error("the header tells {told} bytes of payload and the chain has {found}")]
    ShortPayload { told: u32, found: usize },
}

/// A packet from the guest: the header as it was once, the payload still in guest memory.
pub(super) fn parse(
    buffers: Result<Buffers<'_>, BufferError>,
) -> Result<(Header, Segments<'_>), PacketError> {
    let mut payload = buffers.map_err(PacketError::Buffers)?.readable;
    let bytes = payload
        .take_array::<HEADER_LENGTH>()
        .ok_or(PacketError::NoHeader)?;
    let header = Header::decode(&bytes);
    let length = header.length as usize;
    if payload.len() < length {
        return Err(PacketError::ShortPayload {
            told: header.length,
            found: payload.len(),
        });
    }
    payload.truncate(length);
    Ok((header, payload))
}

/// `N` bytes at a constant offset inside the header.
fn field<const N: usize>(bytes: &[u8; HEADER_LENGTH], at: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[at..at + N]);
    value
}
