//! The socket between agent and stage: length-prefixed messages with descriptors attached to the length.
//!
//! Both ends are this binary, but a stage has already joined a container's namespaces when it answers: lengths and
//! counts are checked all the same.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message: arguments, environment and a seccomp program fit many times.
pub(crate) const MAX_MESSAGE: usize = 8 * 1024 * 1024;
/// Most descriptors with one message.
const MAX_DESCRIPTORS: usize = 5;
const LENGTH_BYTES: usize = size_of::<u32>();

/// A message and what came with it.
#[derive(Debug)]
pub(crate) struct Received<T> {
    pub(crate) message: T,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// The bytes of `message`, its length first.
///
/// # Errors
/// When it is longer than [`MAX_MESSAGE`].
pub(crate) fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; LENGTH_BYTES];
    bytes = postcard::to_extend(message, bytes).map_err(io::Error::other)?;
    let len = bytes.len().saturating_sub(LENGTH_BYTES);
    if len > MAX_MESSAGE {
        return Err(io::Error::other(format!(
            "stage message of {len} bytes, more than {MAX_MESSAGE}"
        )));
    }
    let len = u32::try_from(len).map_err(io::Error::other)?;
    if let Some(prefix) = bytes.first_chunk_mut::<LENGTH_BYTES>() {
        *prefix = len.to_le_bytes();
    }
    Ok(bytes)
}

/// Sends some of `bytes`, and all of `descriptors`; how many bytes were taken.
///
/// # Errors
/// What sendmsg(2) answers.
pub(crate) fn send_some(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("more descriptors than a stage message carries"));
    }
    Ok(rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?)
}

/// Receives some bytes into `buffer` and appends descriptors; 0 at end of file.
///
/// # Errors
/// What recvmsg(2) answers.
pub(crate) fn receive_some(
    socket: impl AsFd,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    Ok(received.bytes)
}

/// A message being received, whatever pieces it comes in.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Assembly {
    /// Reads once. `None`: more has to come.
    ///
    /// # Errors
    /// End of file within a message (`UnexpectedEof`) or before one (`ConnectionAborted`), what recvmsg(2) answers, a
    /// length beyond [`MAX_MESSAGE`], bytes that are no `T`.
    pub(crate) fn read_once<T: DeserializeOwned>(
        &mut self,
        socket: impl AsFd,
    ) -> io::Result<Option<Received<T>>> {
        let wanted = self.wanted()?;
        let have = self.bytes.len();
        self.bytes.resize(wanted, 0);
        let rest = self.bytes.get_mut(have..).unwrap_or_default();
        let got = receive_some(socket, rest, &mut self.descriptors);
        self.bytes.truncate(have + got.as_ref().copied().unwrap_or(0));
        if got? == 0 {
            let kind = if have == 0 {
                io::ErrorKind::ConnectionAborted
            } else {
                io::ErrorKind::UnexpectedEof
            };
            return Err(kind.into());
        }
        if self.bytes.len() < LENGTH_BYTES || self.bytes.len() < self.wanted()? {
            return Ok(None);
        }
        let body = self.bytes.get(LENGTH_BYTES..).unwrap_or_default();
        let message = postcard::from_bytes(body).map_err(io::Error::other)?;
        self.bytes.clear();
        Ok(Some(Received {
            message,
            descriptors: std::mem::take(&mut self.descriptors),
        }))
    }

    /// How long the bytes must become: the length prefix first, then what it says.
    fn wanted(&self) -> io::Result<usize> {
        let Some(prefix) = self.bytes.first_chunk::<LENGTH_BYTES>() else {
            return Ok(LENGTH_BYTES);
        };
        let len = usize::try_from(u32::from_le_bytes(*prefix)).map_err(io::Error::other)?;
        if len > MAX_MESSAGE {
            return Err(io::Error::other(format!(
                "stage message of {len} bytes, more than {MAX_MESSAGE}"
            )));
        }
        Ok(LENGTH_BYTES + len)
    }
}

/// Sends a whole message; blocks.
///
/// # Errors
/// As [`encode`] and [`send_some`].
pub(crate) fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = encode(message)?;
    let mut sent = send_some(&socket, &bytes, descriptors)?;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        sent += send_some(&socket, rest, &[])?;
    }
    Ok(())
}

/// Receives a whole message; blocks.
///
/// # Errors
/// As [`Assembly::read_once`].
pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Received<T>> {
    let mut assembly = Assembly::default();
    loop {
        if let Some(received) = assembly.read_once(&socket)? {
            return Ok(received);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_long_message_with_descriptors_arrives_whole() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let sent: Vec<Vec<u8>> = (0..200u8).map(|byte| vec![byte; 10_000]).collect();
        let expected = sent.clone();
        let sender = std::thread::Builder::new()
            .spawn(move || {
                let file = std::fs::File::open("/dev/null").unwrap();
                send(&ours, &sent, &[file.as_fd(), ours.as_fd()]).unwrap();
            })
            .unwrap();
        let received: Received<Vec<Vec<u8>>> = receive(&theirs).unwrap();
        sender.join().unwrap();
        assert_eq!(received.message, expected);
        assert_eq!(received.descriptors.len(), 2);
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_allocated() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send_some(&ours, &u32::MAX.to_le_bytes(), &[]).unwrap();
        assert!(receive::<String>(&theirs).is_err());
    }

    #[test]
    fn end_of_file_between_messages_differs_from_end_of_file_within() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        assert_eq!(
            receive::<String>(&theirs).unwrap_err().kind(),
            io::ErrorKind::ConnectionAborted
        );
        let (ours, theirs) = UnixStream::pair().unwrap();
        send_some(&ours, &[9, 0, 0, 0, 1], &[]).unwrap();
        drop(ours);
        assert_eq!(
            receive::<String>(&theirs).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
