//! Receives a message with its descriptors from a unix socket.

#![expect(unsafe_code, reason = "descriptors arrive as numbers")]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

use super::line::DESCRIPTOR_LIMIT;

/// What one call of recvmsg(2) gave.
#[derive(Debug)]
pub(super) struct Piece {
    /// 0: the other side has closed.
    pub(super) length: usize,
    pub(super) descriptors: Vec<OwnedFd>,
    /// More descriptors came than there was room for; the kernel has closed them.
    pub(super) truncated: bool,
}

/// Reads what is there, at most one set of descriptors.
pub(super) fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<Piece> {
    let mut pieces = [IoSliceMut::new(bytes)];
    let mut space = nix::cmsg_space!([RawFd; DESCRIPTOR_LIMIT]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut pieces, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            descriptors.extend(numbers.into_iter().map(own));
        }
    }
    let truncated = message.flags.contains(MsgFlags::MSG_CTRUNC);
    Ok(Piece {
        length: message.bytes,
        descriptors,
        truncated,
    })
}

fn own(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just opened this number for us with the message (unix(7), SCM_RIGHTS); each number of a
    // message is a descriptor of its own, and nobody else has seen it.
    unsafe { OwnedFd::from_raw_fd(number) }
}
