//! The host socket of an open connection, and the bytes of the guest that it did not take yet.
//!
//! What epoll told last is remembered here, because it tells of changes only. When each direction ends, the connection
//! decides.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{MsgFlags, UnixAddr, sendmsg};
use tracing::debug;

use super::super::buffers::Segments;
use super::super::sys;

/// A backlog that grew beyond this gives its memory back when it is empty.
const BACKLOG_KEPT: usize = 16 * 1024;

/// An open host socket.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) socket: UnixStream,
    /// What edge-triggered epoll told last; cleared by EAGAIN only.
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// Both directions of the socket are over.
    pub(super) hung_up: bool,
    pub(super) from_host: FromHost,
    pub(super) to_host: ToHost,
    /// Bytes of the guest that the socket did not take yet.
    backlog: VecDeque<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FromHost {
    Flowing,
    /// End of file was read, or the guest will not receive.
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ToHost {
    Flowing,
    /// The guest will not send; the backlog is still to be written.
    Finishing,
    /// The socket's sending side is shut down, or its peer does not read any more.
    Ended,
}

impl Stream {
    /// `socket` is connected and non-blocking. It may have become ready before epoll knew it: both are tried.
    pub(super) fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            readable: true,
            writable: true,
            hung_up: false,
            from_host: FromHost::Flowing,
            to_host: ToHost::Flowing,
            backlog: VecDeque::new(),
        }
    }

    /// Takes bytes of the guest, straight to the socket if nothing waits before them. Returns how many went on.
    pub(super) fn accept(&mut self, payload: &Segments<'_>) -> io::Result<u32> {
        if self.to_host == ToHost::Ended {
            // Dropped: the guest learns by SHUTDOWN.
            return Ok(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        }
        let mut written = 0;
        if self.backlog.is_empty() && self.writable && payload.len() > 0 {
            match sys::send_vectored(self.socket.as_fd(), payload.slices()) {
                Ok(count) => written = count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) => {
                    self.keep(payload, 0);
                    return Err(error);
                }
            }
        }
        self.keep(payload, written);
        // A short write means that the socket is full now; epoll tells when that changes.
        self.writable &= self.backlog.is_empty();
        Ok(u32::try_from(written).unwrap_or(u32::MAX))
    }

    /// Copies `payload` from byte `skip` on behind the backlog. Credit bounds how much that can be.
    fn keep(&mut self, payload: &Segments<'_>, mut skip: usize) {
        for slice in payload.slices() {
            let Ok(rest) = slice.offset(skip.min(slice.len())) else {
                return;
            };
            skip -= skip.min(slice.len());
            let mut piece = vec![0; rest.len()];
            let copied = rest.copy_to(&mut piece);
            self.backlog.extend(piece.get(..copied).unwrap_or_default());
        }
    }

    /// Writes the backlog as far as the socket takes it. Returns how many bytes went on, whatever came then.
    pub(super) fn flush(&mut self) -> (u32, io::Result<()>) {
        let mut written: u32 = 0;
        while self.writable && !self.backlog.is_empty() {
            let (front, back) = self.backlog.as_slices();
            let pieces = [IoSlice::new(front), IoSlice::new(back)];
            match sendmsg::<UnixAddr>(
                self.socket.as_raw_fd(),
                &pieces,
                &[],
                MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Ok(count) => {
                    self.backlog.drain(..count.min(self.backlog.len()));
                    // The backlog is no longer than the window, which is a u32.
                    written = written.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
                }
                Err(nix::Error::EAGAIN) => self.writable = false,
                Err(nix::Error::EINTR) => {}
                Err(error) => return (written, Err(error.into())),
            }
        }
        if self.backlog.is_empty() && self.backlog.capacity() > BACKLOG_KEPT {
            self.backlog = VecDeque::new();
        }
        (written, Ok(()))
    }

    /// Whether everything that the guest sent is on its way.
    pub(super) fn is_flushed(&self) -> bool {
        self.backlog.is_empty()
    }

    /// Forgets what was not written, because nobody reads it. Returns how many bytes that were.
    pub(super) fn give_up_writing(&mut self) -> u32 {
        self.to_host = ToHost::Ended;
        let backlog = std::mem::take(&mut self.backlog);
        // No longer than the window, which is a u32.
        u32::try_from(backlog.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn shut_down(&self, how: Shutdown) {
        if let Err(error) = self.socket.shutdown(how) {
            // ENOTCONN: the peer was faster.
            debug!(%error, ?how, "vsock: shutdown of the host's socket");
        }
    }
}
