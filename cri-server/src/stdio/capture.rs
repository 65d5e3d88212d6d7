//! The output of a short process (ExecSync) in memory, limited per stream. Nothing is logged.
//!
//! A probe that writes without end must neither fill the daemon's memory nor be stopped by a full pipe (CVE-2022-1708): what
//! is above the limit is read, acknowledged and dropped.

use bytes::Bytes;
use proto::stdio::Stream;

use super::output::{Output, OutputError, OutputEvent, ProcessId};
use crate::guest::Dialer;

/// Bytes per stream that are kept, as containerd and CRI-O do.
pub const MAX_CAPTURE: usize = 16 * 1024 * 1024;

/// What a process wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured {
    /// At most the limit.
    pub stdout: Vec<u8>,
    /// At most the limit.
    pub stderr: Vec<u8>,
    /// Bytes of both streams beyond the limit.
    pub dropped: u64,
}

/// Collects the output of one process.
#[derive(Debug)]
pub struct Capture {
    output: Output,
    limit: usize,
    captured: Captured,
}

impl Capture {
    /// Collects the output of `process` from its beginning, at most `limit` bytes of each stream ([`MAX_CAPTURE`]).
    #[must_use]
    pub fn new(dialer: Dialer, process: ProcessId, limit: usize) -> Self {
        Self {
            output: Output::new(dialer, process, false, 0),
            limit,
            captured: Captured::default(),
        }
    }

    /// Returns when both streams have ended. Cancel-safe: with a deadline around it, what came so far is kept.
    ///
    /// # Errors
    /// [`OutputError`]; what came so far is kept.
    pub async fn run(&mut self) -> Result<(), OutputError> {
        loop {
            match self.output.next().await? {
                OutputEvent::Data { stream, bytes } => {
                    self.keep(stream, &bytes);
                    self.output.acknowledge(self.output.offset()).await;
                }
                OutputEvent::StreamEnd(_) => {}
                OutputEvent::End => return Ok(()),
            }
        }
    }

    /// What came so far.
    #[must_use]
    pub fn into_captured(self) -> Captured {
        self.captured
    }

    fn keep(&mut self, stream: Stream, bytes: &Bytes) {
        let kept = match stream {
            Stream::Stdout => &mut self.captured.stdout,
            Stream::Stderr => &mut self.captured.stderr,
        };
        let room = self.limit.saturating_sub(kept.len());
        let (within, beyond) = bytes.split_at(room.min(bytes.len()));
        kept.extend_from_slice(within);
        self.captured.dropped += beyond.len() as u64;
    }
}
