//! Clients whose `:authority` is a socket's path, percent-encoded or not, or nothing at all.
//!
//! gRPC libraries do not agree on what a unix socket's authority is, and the h2 crate refuses a request whose authority is
//! none by RFC 3986 before anything of ours sees it, without a way to tell it otherwise. The socket is ours and has one
//! name only, so the authority says nothing: [`Socket`] puts zeros in its place between the kernel and h2. `frames` finds
//! the header blocks, `hpack` replaces the value in them.

mod frames;
mod hpack;

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};
use tonic::transport::server::Connected;

use self::frames::Rewriter;
#[cfg(feature = "testing")]
pub(super) use self::frames::rewritten;

/// Read from the kernel at once.
const CHUNK: usize = 16 * 1024;

/// A client's connection as h2 may see it.
#[derive(Debug)]
pub(super) struct Socket {
    stream: UnixStream,
    rewriter: Rewriter,
    /// For h2, from `given` on.
    ready: Vec<u8>,
    given: usize,
}

impl Socket {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            rewriter: Rewriter::new(),
            ready: Vec::new(),
            given: 0,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.given == this.ready.len() {
            this.ready.clear();
            this.given = 0;
            let mut chunk = [0; CHUNK];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                this.rewriter.finish(&mut this.ready);
                if this.ready.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            }
            this.rewriter.push(chunk.filled(), &mut this.ready);
        }
        let left = &this.ready[this.given..];
        let taken = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..taken]);
        this.given += taken;
        Poll::Ready(Ok(()))
    }
}

/// What the daemon says passes as it is.
impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl Connected for Socket {
    type ConnectInfo = <UnixStream as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}
