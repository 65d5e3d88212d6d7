//! What the tasks and streams of one SPDY connection share: which streams there are, the windows, and what is to be said
//! besides data. No I/O; the writer is woken when there is something for it.
//!
//! Windows: Kubernetes' clients (moby/spdystream) neither send window updates nor heed them, and TCP alone slows them and us
//! down. A peer that does send updates is another kind, and from its first one on its windows bind us.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    error::SpdyError,
    frame::{self, Encoder, GoAwayReason, ResetReason},
};

/// Streams of one connection at a time: two per forwarded connection.
const MAX_STREAMS: usize = 1024;
/// Answers (replies and resets) that wait for a peer that does not read.
const MAX_ANSWERS: usize = 4 * MAX_STREAMS;
/// Pings that wait for their echo; beyond that none is kept, since nobody reads them.
const MAX_PINGS: usize = 32;
/// Windows of SPDY/3.1 before anyone says otherwise.
const FIRST_WINDOW: i64 = 64 * 1024;
/// Bytes taken before the peer is told of them.
const CREDIT_STEP: u32 = 16 * 1024;
/// Windows have 31 bits.
const MAX_WINDOW: i64 = 0x7fff_ffff;

/// The part that is shared.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// There is something to say.
    pub(super) work: Notify,
    /// A window has opened.
    pub(super) opened: Notify,
    /// The connection is over; each stream's token is a child of it.
    pub(super) closed: CancellationToken,
}

#[derive(Debug)]
struct State {
    streams: HashMap<u32, StreamState>,
    /// The newest that the peer opened.
    last_stream: u32,
    peer: Peer,
    replies: VecDeque<u32>,
    resets: VecDeque<(u32, ResetReason)>,
    pings: VecDeque<u32>,
    /// Bytes that were taken and not told, by stream; 0 is the connection.
    credit: BTreeMap<u32, u32>,
    go_away: Option<GoAwayReason>,
}

/// What the peer takes from us.
#[derive(Debug)]
struct Peer {
    uses_windows: bool,
    initial: i64,
    /// The connection's.
    window: i64,
}

#[derive(Debug)]
struct StreamState {
    reset: CancellationToken,
    /// Gone when the peer has sent its last byte.
    inbound: Option<mpsc::Sender<Bytes>>,
    outbound_ended: bool,
    /// Without the initial one, which may change: negative.
    window: i64,
}

impl Shared {
    pub(super) fn new(closed: CancellationToken) -> Self {
        Self {
            state: Mutex::new(State {
                streams: HashMap::new(),
                last_stream: 0,
                peer: Peer {
                    uses_windows: false,
                    initial: FIRST_WINDOW,
                    window: FIRST_WINDOW,
                },
                replies: VecDeque::new(),
                resets: VecDeque::new(),
                pings: VecDeque::new(),
                credit: BTreeMap::new(),
                go_away: None,
            }),
            work: Notify::new(),
            opened: Notify::new(),
            closed,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic with this lock held can only be one of the standard library's.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream that the peer opens; `None` when there are too many and it was refused.
    pub(super) fn open(
        &self,
        stream: u32,
        inbound: mpsc::Sender<Bytes>,
    ) -> Result<Option<CancellationToken>, SpdyError> {
        let mut state = self.lock();
        // A client's ids are odd and grow.
        if stream.is_multiple_of(2) || stream <= state.last_stream {
            return Err(SpdyError::StreamId(stream));
        }
        state.last_stream = stream;
        if state.streams.len() >= MAX_STREAMS {
            state.answer_reset(stream, ResetReason::Refused)?;
            drop(state);
            self.work.notify_one();
            return Ok(None);
        }
        let reset = self.closed.child_token();
        state.streams.insert(
            stream,
            StreamState {
                reset: reset.clone(),
                inbound: Some(inbound),
                outbound_ended: false,
                window: 0,
            },
        );
        Ok(Some(reset))
    }

    /// Says that a stream is accepted.
    pub(super) fn reply(&self, stream: u32) {
        self.lock().replies.push_back(stream);
        self.work.notify_one();
    }

    /// Where bytes of a stream go; `None` when nobody takes them any more.
    pub(super) fn inbound(&self, stream: u32) -> Option<(mpsc::Sender<Bytes>, CancellationToken)> {
        let state = self.lock();
        let found = state.streams.get(&stream)?;
        Some((found.inbound.clone()?, found.reset.clone()))
    }

    /// Whether the stream is there at all, in whatever state.
    pub(super) fn knows(&self, stream: u32) -> bool {
        let state = self.lock();
        stream != 0 && stream <= state.last_stream && !stream.is_multiple_of(2)
    }

    /// The peer has sent its last byte.
    pub(super) fn inbound_ended(&self, stream: u32) {
        let mut state = self.lock();
        if let Some(found) = state.streams.get_mut(&stream) {
            found.inbound = None;
            if found.outbound_ended {
                state.streams.remove(&stream);
            }
        }
    }

    /// We have sent ours.
    pub(super) fn outbound_ended(&self, stream: u32) {
        let mut state = self.lock();
        if let Some(found) = state.streams.get_mut(&stream) {
            found.outbound_ended = true;
            if found.inbound.is_none() {
                state.streams.remove(&stream);
            }
        }
    }

    /// The peer has broken a stream off.
    pub(super) fn was_reset(&self, stream: u32) {
        if let Some(found) = self.lock().streams.remove(&stream) {
            found.reset.cancel();
        }
    }

    /// Breaks a stream off, and says so unless it is over.
    pub(super) fn reset(&self, stream: u32, reason: ResetReason) -> Result<(), SpdyError> {
        let mut state = self.lock();
        if let Some(found) = state.streams.remove(&stream) {
            found.reset.cancel();
        } else if reason == ResetReason::Cancel {
            return Ok(());
        }
        let answered = state.answer_reset(stream, reason);
        drop(state);
        self.work.notify_one();
        answered
    }

    /// The connection is over, and so are all streams: their handlers hear nothing more.
    pub(super) fn end(&self) {
        self.closed.cancel();
        self.lock().streams.clear();
    }

    pub(super) fn ping(&self, id: u32) {
        let mut state = self.lock();
        if state.pings.len() < MAX_PINGS {
            state.pings.push_back(id);
            drop(state);
            self.work.notify_one();
        }
    }

    /// Lets the connection end after what is being said.
    pub(super) fn go_away(&self, reason: GoAwayReason) {
        self.lock().go_away = Some(reason);
        self.work.notify_one();
    }

    /// Answers that the peer does not read must not pile up.
    pub(super) fn check_answers(&self) -> Result<(), SpdyError> {
        let state = self.lock();
        if state.replies.len() + state.resets.len() >= MAX_ANSWERS {
            return Err(SpdyError::Flood(MAX_ANSWERS));
        }
        Ok(())
    }

    /// `length` bytes of a stream were taken, or thrown away.
    pub(super) fn took(&self, stream: u32, length: usize) {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let mut state = self.lock();
        let open = state
            .streams
            .get(&stream)
            .is_some_and(|found| found.inbound.is_some());
        let mut due = false;
        for id in [0, stream] {
            if id == 0 || open {
                let credit = state.credit.entry(id).or_default();
                *credit = credit.saturating_add(length);
                due |= *credit >= CREDIT_STEP;
            }
        }
        drop(state);
        if due {
            self.work.notify_one();
        }
    }

    /// How much of `wanted` the peer takes now on a stream; it is used by that.
    pub(super) fn allowance(&self, stream: u32, wanted: usize) -> usize {
        let mut state = self.lock();
        let peer = (state.peer.uses_windows, state.peer.initial, state.peer.window);
        let (uses_windows, initial, window) = peer;
        let Some(found) = state.streams.get_mut(&stream) else {
            // Broken off: the caller finds out when it sends.
            return wanted;
        };
        let allowed = if uses_windows {
            let open = window.min(initial.saturating_add(found.window));
            wanted.min(usize::try_from(open).unwrap_or(0))
        } else {
            wanted
        };
        let used = i64::try_from(allowed).unwrap_or(MAX_WINDOW);
        found.window = found.window.saturating_sub(used);
        state.peer.window = state.peer.window.saturating_sub(used);
        allowed
    }

    /// The peer takes more.
    pub(super) fn window_update(&self, stream: u32, delta: u32) -> Result<(), SpdyError> {
        let mut state = self.lock();
        let first = !std::mem::replace(&mut state.peer.uses_windows, true);
        let too_much = SpdyError::Window { stream, delta };
        let window = if stream == 0 {
            Some(&mut state.peer.window)
        } else {
            state.streams.get_mut(&stream).map(|found| &mut found.window)
        };
        if let Some(window) = window {
            *window = window.saturating_add(i64::from(delta));
            if delta == 0 || *window > MAX_WINDOW {
                return Err(too_much);
            }
        }
        drop(state);
        if first {
            tracing::trace!("the client uses SPDY windows");
        }
        self.opened.notify_waiters();
        Ok(())
    }

    pub(super) fn initial_window(&self, initial: u32) {
        let mut state = self.lock();
        state.peer.uses_windows = true;
        state.peer.initial = i64::from(initial);
        drop(state);
        self.opened.notify_waiters();
    }

    /// Writes down everything that is to be said besides data; whether the connection ends with it.
    pub(super) fn take_control(&self, encoder: &mut Encoder, out: &mut BytesMut) -> bool {
        let mut state = self.lock();
        for stream in std::mem::take(&mut state.replies) {
            encoder.syn_reply(stream, out);
        }
        for (stream, reason) in std::mem::take(&mut state.resets) {
            frame::reset(stream, reason, out);
        }
        for id in std::mem::take(&mut state.pings) {
            frame::ping(id, out);
        }
        state.take_credit(out);
        let go_away = state.go_away.take();
        if let Some(reason) = go_away {
            frame::go_away(state.last_stream, reason, out);
        }
        go_away.is_some()
    }
}

impl State {
    fn answer_reset(&mut self, stream: u32, reason: ResetReason) -> Result<(), SpdyError> {
        if self.resets.len() >= MAX_ANSWERS {
            return Err(SpdyError::Flood(MAX_ANSWERS));
        }
        self.resets.push_back((stream, reason));
        Ok(())
    }

    fn take_credit(&mut self, out: &mut BytesMut) {
        let streams = &self.streams;
        self.credit.retain(|stream, credit| {
            let open = *stream == 0 || streams.get(stream).is_some_and(|found| found.inbound.is_some());
            if open && *credit >= CREDIT_STEP {
                frame::window_update(*stream, *credit, out);
                return false;
            }
            open
        });
    }
}
