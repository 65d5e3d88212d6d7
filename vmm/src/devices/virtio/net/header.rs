//! `struct virtio_net_hdr` (5.1.6): what the guest's may ask for, and the count of buffers in ours.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
};

/// Length with `num_buffers`, which is always there with VIRTIO_F_VERSION_1.
pub(super) const HEADER_LENGTH: usize = 12;

/// Longest frame with its header: 14 bytes Ethernet and 65535 of IP (5.1.6.3.1), one VLAN tag more.
pub(super) const MAX_FRAME: usize = HEADER_LENGTH + 14 + 65_535 + 4;
/// Shortest: an Ethernet header.
pub(super) const MIN_FRAME: usize = HEADER_LENGTH + 14;

/// Offset of `num_buffers`.
const NUM_BUFFERS: usize = 10;

/// The header of a frame that the guest sends, as the tap gets it; `None` if the guest asks for what it did not
/// negotiate. The kernel checks offsets and sizes itself when it takes the frame.
pub(super) fn checked(header: [u8; HEADER_LENGTH], features: u64) -> Option<[u8; HEADER_LENGTH]> {
    let has = |bit: u32| features & (1 << bit) != 0;
    let [flags, gso, rest @ ..] = header;
    // Bits that mean something only from device to driver are ignored (5.1.6.2.2).
    let flags = u32::from(flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM;
    if flags != 0 && !has(VIRTIO_NET_F_CSUM) {
        return None;
    }
    let gso = u32::from(gso);
    let ecn = gso & VIRTIO_NET_HDR_GSO_ECN != 0;
    let allowed = match gso & !VIRTIO_NET_HDR_GSO_ECN {
        VIRTIO_NET_HDR_GSO_NONE => !ecn,
        VIRTIO_NET_HDR_GSO_TCPV4 => has(VIRTIO_NET_F_HOST_TSO4),
        VIRTIO_NET_HDR_GSO_TCPV6 => has(VIRTIO_NET_F_HOST_TSO6),
        _ => false,
    };
    if !allowed || (ecn && !has(VIRTIO_NET_F_HOST_ECN)) {
        return None;
    }
    let mut checked = [0; HEADER_LENGTH];
    checked[2..].copy_from_slice(&rest);
    // Both fit: they came from bytes.
    checked[0] = u8::try_from(flags).ok()?;
    checked[1] = u8::try_from(gso).ok()?;
    checked[NUM_BUFFERS..].fill(0);
    Some(checked)
}

/// `bytes`, which came from the tap, with the count of buffers that the frame fills.
pub(super) fn with_buffers(mut bytes: [u8; HEADER_LENGTH], buffers: u16) -> [u8; HEADER_LENGTH] {
    bytes[NUM_BUFFERS..].copy_from_slice(&buffers.to_le_bytes());
    bytes
}
