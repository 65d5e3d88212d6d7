//! What a process has written and the daemon has not acknowledged: offsets, order and limits. Pure, no I/O.
//!
//! Offsets count the bytes of both streams together in the order in which they were read. The window bounds memory and
//! is the only back pressure: who has no room does not read.

use std::collections::VecDeque;

use proto::stdio::{MAX_FRAME, Stream};

/// Unacknowledged output of one process.
#[derive(Debug)]
pub(super) struct OutputLog {
    window: usize,
    /// Offset of the first byte that is kept.
    start: u64,
    bytes: VecDeque<u8>,
    /// Which stream the bytes up to `end` belong to; covers `bytes` without gaps, ascending.
    runs: VecDeque<Run>,
    stdout: End,
    stderr: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    end: u64,
    stream: Stream,
}

/// Whether a stream can still produce bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The process has no such stream (a terminal has stdout only).
    Absent,
    Open,
    Ended,
}

/// The next thing that a reader at some offset is to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A frame of these bytes.
    Bytes(Stream, Vec<u8>),
    /// Nothing more for now.
    Wait,
    /// All was sent, and no stream is open.
    Finished,
}

/// An offset whose bytes are not here: acknowledged and gone, or not written yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OffsetGone;

impl OutputLog {
    pub(super) fn new(window: usize, with_stderr: bool) -> Self {
        Self {
            window,
            start: 0,
            bytes: VecDeque::new(),
            runs: VecDeque::new(),
            stdout: End::Open,
            stderr: if with_stderr { End::Open } else { End::Absent },
        }
    }

    /// How many bytes may be pushed now.
    pub(super) fn room(&self) -> usize {
        self.window.saturating_sub(self.bytes.len())
    }

    /// Appends what was read from `stream`; the caller read no more than [`Self::room`].
    pub(super) fn push(&mut self, stream: Stream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.bytes.extend(bytes);
        let end = self.end();
        match self.runs.back_mut() {
            Some(run) if run.stream == stream => run.end = end,
            _ => self.runs.push_back(Run { end, stream }),
        }
    }

    /// Notes end of file.
    pub(super) fn finish(&mut self, stream: Stream) {
        match stream {
            Stream::Stdout => self.stdout = End::Ended,
            Stream::Stderr => self.stderr = End::Ended,
        }
    }

    /// The streams that the process has, ended or not.
    pub(super) fn streams(&self) -> impl Iterator<Item = Stream> + use<> {
        let streams = [(Stream::Stdout, self.stdout), (Stream::Stderr, self.stderr)];
        streams
            .into_iter()
            .filter(|(_, end)| *end != End::Absent)
            .map(|(stream, _)| stream)
    }

    /// Whether a reader may begin at `offset`.
    ///
    /// # Errors
    /// [`OffsetGone`] when its byte is not kept.
    pub(super) fn check(&self, offset: u64) -> Result<(), OffsetGone> {
        if offset < self.start || offset > self.end() {
            Err(OffsetGone)
        } else {
            Ok(())
        }
    }

    /// The daemon has stored everything before `offset`. An older acknowledgement changes nothing.
    ///
    /// # Errors
    /// [`OffsetGone`] for bytes that were never written.
    pub(super) fn acknowledge(&mut self, offset: u64) -> Result<(), OffsetGone> {
        if offset > self.end() {
            return Err(OffsetGone);
        }
        let stored = offset.saturating_sub(self.start);
        self.bytes.drain(..length(stored).min(self.bytes.len()));
        self.start = self.start.max(offset);
        while self.runs.front().is_some_and(|run| run.end <= self.start) {
            self.runs.pop_front();
        }
        if self.bytes.is_empty() {
            // An idle process keeps no window's worth of memory.
            self.bytes.shrink_to(0);
        }
        Ok(())
    }

    /// What comes at `offset`.
    ///
    /// # Errors
    /// [`OffsetGone`] when its byte is not kept.
    pub(super) fn next(&self, offset: u64) -> Result<Next, OffsetGone> {
        self.check(offset)?;
        let Some(run) = self.runs.iter().find(|run| run.end > offset) else {
            let open = self.stdout == End::Open || self.stderr == End::Open;
            return Ok(if open { Next::Wait } else { Next::Finished });
        };
        let from = length(offset - self.start);
        let to = length(run.end - self.start).min(from + MAX_FRAME);
        Ok(Next::Bytes(
            run.stream,
            self.bytes.range(from..to).copied().collect(),
        ))
    }

    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

/// Distances within the window fit every usize.
fn length(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}
