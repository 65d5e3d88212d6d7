//! Receives a message with its descriptors from a unix socket.

#![expect(unsafe_code, reason = "descriptors arrive as numbers")]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recv, recvmsg};

/// The kernel's limit for one message (`SCM_MAX_FD`): with room for all, none is ever cut off and lost.
const MESSAGE_DESCRIPTORS: usize = 253;

/// Reads what is there, but not beyond the end of a line. Nothing: the other side has closed.
///
/// A read of a stream joins messages up to and including the first one with descriptors (unix(7) does not say where in
/// the bytes that one began). So a read that stops at the line's end is the only way to know whose they are.
pub(super) fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let socket = stream.as_raw_fd();
    let there = recv(socket, bytes, MsgFlags::MSG_PEEK)?;
    let line_end = bytes[..there].iter().position(|byte| *byte == b'\n');
    let wanted = line_end.map_or(bytes.len(), |end| end + 1);
    let mut pieces = [IoSliceMut::new(&mut bytes[..wanted])];
    let mut space = nix::cmsg_space!([RawFd; MESSAGE_DESCRIPTORS]);
    let message = recvmsg::<UnixAddr>(socket, &mut pieces, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            descriptors.extend(numbers.into_iter().map(own));
        }
    }
    Ok((message.bytes, descriptors))
}

fn own(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just opened this number for us with the message (unix(7), SCM_RIGHTS); each number of a
    // message is a descriptor of its own, and nobody else has seen it.
    unsafe { OwnedFd::from_raw_fd(number) }
}
