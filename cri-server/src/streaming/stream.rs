//! A client's streams as handlers see them, whichever protocol carries them.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    spdy::{Credit, SpdyOutgoing},
    websocket::ChannelOutgoing,
};

/// The client takes no more of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// Bytes from the client. Dropped, whatever still comes is thrown away.
#[derive(Debug)]
pub(crate) struct Incoming {
    pieces: mpsc::Receiver<Bytes>,
    credit: Option<Credit>,
}

/// Bytes to the client.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Spdy(SpdyOutgoing),
    Channel(ChannelOutgoing),
}

impl Incoming {
    pub(super) fn new(pieces: mpsc::Receiver<Bytes>, credit: Option<Credit>) -> Self {
        Self { pieces, credit }
    }

    /// What comes next, never empty; `None` when the client has ended the stream. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        let bytes = self.pieces.recv().await?;
        if let Some(credit) = &self.credit {
            credit.took(bytes.len());
        }
        Some(bytes)
    }
}

impl Outgoing {
    /// Waits until the client takes the bytes; several calls' bytes arrive in their order.
    pub(crate) async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        match self {
            Self::Spdy(stream) => stream.send(bytes).await,
            Self::Channel(channel) => channel.send(bytes).await,
        }
    }

    /// The last byte was sent.
    pub(crate) async fn finish(self) -> Result<(), Gone> {
        match self {
            Self::Spdy(stream) => stream.finish().await,
            // A channel ends with its connection only.
            Self::Channel(_) => Ok(()),
        }
    }

    /// Is cancelled when the client has broken the stream off, or is gone.
    pub(crate) fn broken(&self) -> CancellationToken {
        match self {
            Self::Spdy(stream) => stream.broken(),
            Self::Channel(channel) => channel.broken(),
        }
    }
}
