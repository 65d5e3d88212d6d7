//! A stream's two directions as its handler holds them.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{frame::ResetReason, state::Shared};
use crate::streaming::stream::Gone;

/// Longest data frame that we send.
const MAX_DATA: usize = 32 * 1024;

/// A piece of data on its way to the client.
#[derive(Debug)]
pub(super) struct Outbound {
    pub(super) stream: u32,
    pub(super) bytes: Bytes,
    pub(super) fin: bool,
}

/// Tells the client how much of what it sent was taken.
#[derive(Debug)]
pub(crate) struct Credit {
    pub(super) stream: u32,
    pub(super) shared: Arc<Shared>,
}

/// Bytes to the client. Dropped before [`Self::finish`], the stream is broken off.
#[derive(Debug)]
pub(crate) struct SpdyOutgoing {
    pub(super) stream: u32,
    pub(super) shared: Arc<Shared>,
    pub(super) queue: mpsc::Sender<Outbound>,
    pub(super) reset: CancellationToken,
    pub(super) finished: bool,
}

impl Credit {
    pub(crate) fn took(&self, length: usize) {
        self.shared.took(self.stream, length);
    }
}

impl SpdyOutgoing {
    /// Waits until the client takes the bytes.
    pub(crate) async fn send(&self, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let opened = self.shared.opened.notified();
            let allowed = self.shared.allowance(self.stream, bytes.len().min(MAX_DATA));
            if allowed == 0 {
                tokio::select! {
                    () = opened => continue,
                    () = self.reset.cancelled() => return Err(Gone),
                }
            }
            self.queue(bytes.split_to(allowed), false).await?;
        }
        Ok(())
    }

    /// The last byte was sent.
    pub(crate) async fn finish(mut self) -> Result<(), Gone> {
        self.queue(Bytes::new(), true).await?;
        self.finished = true;
        self.shared.outbound_ended(self.stream);
        Ok(())
    }

    /// Returns when the client has broken the stream off, or is gone.
    pub(crate) fn broken(&self) -> CancellationToken {
        self.reset.clone()
    }

    async fn queue(&self, bytes: Bytes, fin: bool) -> Result<(), Gone> {
        let outbound = Outbound {
            stream: self.stream,
            bytes,
            fin,
        };
        tokio::select! {
            biased;
            () = self.reset.cancelled() => Err(Gone),
            sent = self.queue.send(outbound) => sent.map_err(|_| Gone),
        }
    }
}

impl Drop for SpdyOutgoing {
    fn drop(&mut self) {
        if !self.finished {
            // A client that is flooded with resets that it does not read has its connection ended by the reader.
            drop(self.shared.reset(self.stream, ResetReason::Cancel));
        }
    }
}
