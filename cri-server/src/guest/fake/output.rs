//! What a fake process has written and nobody has acknowledged yet: the window of `proto::stdio`, with replay.

use std::{collections::VecDeque, sync::Mutex};

use proto::stdio::{Stream, WINDOW};
use tokio::sync::Notify;

use super::lock;

/// The output of one process.
#[derive(Debug, Default)]
pub(super) struct OutputBuffer {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Offset of the first byte of `kept`.
    base: u64,
    kept: VecDeque<(Stream, u8)>,
    ended: bool,
    /// Which connection may read; a later one takes over.
    reader: u64,
}

/// What a reader gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Bytes of one stream.
    Data(Stream, Vec<u8>),
    /// There is no more.
    End,
    /// Another connection reads now.
    Replaced,
}

impl OutputBuffer {
    /// Writes all of `bytes`; waits while the window is full.
    pub(super) async fn write(&self, stream: Stream, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let changed = self.changed.notified();
            let room = {
                let mut state = lock(&self.state);
                let room = (WINDOW - state.kept.len()).min(bytes.len());
                let (now, later) = bytes.split_at(room);
                state.kept.extend(now.iter().map(|byte| (stream, *byte)));
                bytes = later;
                room
            };
            if room > 0 {
                self.changed.notify_waiters();
            } else {
                changed.await;
            }
        }
    }

    /// Bytes of both streams so far.
    pub(super) fn written(&self) -> u64 {
        let state = lock(&self.state);
        state.base + state.kept.len() as u64
    }

    /// Both streams have ended.
    pub(super) fn end(&self) {
        lock(&self.state).ended = true;
        self.changed.notify_waiters();
    }

    /// Takes over reading at `offset`; `None` when that is not kept.
    pub(super) fn open(&self, offset: u64) -> Option<u64> {
        let mut state = lock(&self.state);
        let kept = state.base..=state.base + state.kept.len() as u64;
        if !kept.contains(&offset) {
            return None;
        }
        state.reader += 1;
        self.changed.notify_waiters();
        Some(state.reader)
    }

    /// The next bytes from `offset` on, at most `limit`; waits for them.
    pub(super) async fn read(&self, reader: u64, offset: u64, limit: usize) -> Chunk {
        loop {
            let changed = self.changed.notified();
            {
                let state = lock(&self.state);
                if state.reader != reader {
                    return Chunk::Replaced;
                }
                // Acknowledgements never pass what was sent.
                let skip = usize::try_from(offset - state.base).unwrap_or(usize::MAX);
                let mut ahead = state.kept.iter().skip(skip).peekable();
                if let Some((stream, _)) = ahead.peek().copied() {
                    let same = ahead.take(limit).take_while(|(of, _)| of == stream);
                    return Chunk::Data(*stream, same.map(|(_, byte)| *byte).collect());
                }
                if state.ended {
                    return Chunk::End;
                }
            }
            changed.await;
        }
    }

    /// Everything before `offset` is stored by the daemon.
    pub(super) fn acknowledge(&self, offset: u64) {
        let mut state = lock(&self.state);
        let len = state.kept.len() as u64;
        let stored = offset.saturating_sub(state.base).min(len);
        state.kept.drain(..usize::try_from(stored).unwrap_or(0));
        state.base += stored;
        drop(state);
        self.changed.notify_waiters();
    }
}
