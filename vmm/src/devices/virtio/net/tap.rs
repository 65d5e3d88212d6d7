//! The host's side: a tap descriptor with IFF_VNET_HDR.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};

use super::super::buffers::Slice;
use super::super::sys;
use super::header::HEADER_LENGTH;

#[derive(Debug)]
pub(super) struct Tap {
    descriptor: OwnedFd,
    #[cfg(any(test, feature = "fuzzing"))]
    is_socket: bool,
}

impl Tap {
    /// Makes `descriptor` non-blocking.
    pub(super) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFL)?);
        fcntl(&descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self {
            descriptor,
            #[cfg(any(test, feature = "fuzzing"))]
            is_socket: false,
        })
    }

    /// A datagram socket in place of a tap, for tests that have no privilege.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn from_socket(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            is_socket: true,
            ..Self::new(socket)?
        })
    }

    /// Agrees with the kernel on the header and on what the guest takes unfinished.
    pub(super) fn configure(&self, features: u64) -> io::Result<()> {
        #[cfg(any(test, feature = "fuzzing"))]
        if self.is_socket {
            return Ok(());
        }
        // At most 12.
        let length = i32::try_from(HEADER_LENGTH).unwrap_or(i32::MAX);
        sys::tun_set_header_length(self.descriptor.as_fd(), length)?;
        sys::tun_set_offload(self.descriptor.as_fd(), offloads(features))
    }

    pub(super) fn read(&self, slices: &[Slice<'_>]) -> io::Result<usize> {
        sys::read_vectored(self.descriptor.as_fd(), slices)
    }

    pub(super) fn read_to(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(&self.descriptor, buffer)?)
    }

    pub(super) fn write(&self, header: &[u8], frame: &[Slice<'_>]) -> io::Result<usize> {
        sys::write_vectored(self.descriptor.as_fd(), header, frame)
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

/// What the kernel may leave to the guest (`TUN_F_*`). Segments presuppose checksums (5.1.3.1).
fn offloads(features: u64) -> u32 {
    let has = |bit: u32| features & (1 << bit) != 0;
    if !has(VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let mut offloads = libc::TUN_F_CSUM;
    for (bit, flag) in [
        (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
        (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    ] {
        if has(bit) {
            offloads |= flag;
        }
    }
    if has(VIRTIO_NET_F_GUEST_ECN) && offloads != libc::TUN_F_CSUM {
        offloads |= libc::TUN_F_TSO_ECN;
    }
    offloads
}
