//! One client's socket: bytes and descriptors in, answers out, without ever waiting.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use event_manager::EventSet;
use proto::machine::{Request, Response};

use super::line::{Line, LineBuffer};
use super::sys;

/// How long the last answers may take when the process ends.
const FINISH: Duration = Duration::from_millis(200);
/// A client that does not read its answers is not listened to beyond this.
const UNSENT_LIMIT: usize = 1 << 20;

/// Whether a client is worth keeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Open,
    Closed,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    buffer: LineBuffer,
    lines: VecDeque<Line<OwnedFd>>,
    unsent: VecDeque<u8>,
    /// Requests that were taken and not answered yet.
    unanswered: usize,
    /// It has closed its side, or said something that cannot be read further: answer what is asked, then close.
    ended: bool,
}

impl Client {
    pub(super) fn new(stream: UnixStream) -> Self {
        let (buffer, lines, unsent) = (LineBuffer::new(), VecDeque::new(), VecDeque::new());
        Self {
            stream,
            buffer,
            lines,
            unsent,
            unanswered: 0,
            ended: false,
        }
    }

    /// Answers the oldest unanswered request.
    pub(super) fn answer(&mut self, response: &Response) {
        self.unanswered = self.unanswered.saturating_sub(1);
        self.append(response);
    }

    /// The next complete request, to be answered; or what is wrong with the line.
    pub(super) fn next_line(&mut self) -> Option<Result<(Request, Vec<OwnedFd>), String>> {
        let (line, descriptors) = self.lines.pop_front()?;
        self.unanswered += 1;
        let request = serde_json::from_slice(&line).map_err(|error| format!("not a request: {error}"));
        Some(request.map(|request| (request, descriptors)))
    }

    /// What to wait for; none: nothing more is to come.
    pub(super) fn wanted(&self) -> Option<EventSet> {
        let mut wanted = EventSet::empty();
        if !self.ended && self.unsent.len() < UNSENT_LIMIT {
            wanted |= EventSet::IN;
        }
        if !self.unsent.is_empty() {
            wanted |= EventSet::OUT;
        }
        (!wanted.is_empty() || self.unanswered > 0).then_some(wanted)
    }

    /// Moves bytes as far as the socket allows.
    pub(super) fn advance(&mut self, ready: EventSet) -> Progress {
        if ready.intersects(EventSet::ERROR) {
            return Progress::Closed;
        }
        if ready.intersects(EventSet::IN | EventSet::HANG_UP) && !self.ended {
            match self.receive() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::debug!(%error, "a client of the control socket is gone");
                    return Progress::Closed;
                }
            }
        }
        self.send()
    }

    /// Sends what is left, and waits a little for it.
    pub(super) fn finish(&mut self) {
        let patient = self
            .stream
            .set_nonblocking(false)
            .and_then(|()| self.stream.set_write_timeout(Some(FINISH)));
        if patient.is_ok() {
            self.send();
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        let (length, descriptors) = sys::receive(&self.stream, &mut bytes)?;
        if length == 0 {
            self.ended = true;
            return Ok(());
        }
        let lines = self.buffer.push(&bytes[..length], descriptors);
        match lines {
            Ok(lines) => self.lines.extend(lines),
            Err(error) => {
                self.ended = true;
                self.append(&Response::Error {
                    message: error.to_string(),
                });
            }
        }
        Ok(())
    }

    fn append(&mut self, response: &Response) {
        match serde_json::to_vec(response) {
            Ok(line) => {
                self.unsent.extend(line);
                self.unsent.push_back(b'\n');
            }
            Err(error) => tracing::error!(%error, "cannot encode an answer"),
        }
    }

    fn send(&mut self) -> Progress {
        while !self.unsent.is_empty() {
            let (first, _) = self.unsent.as_slices();
            match self.stream.write(first) {
                Ok(0) => return Progress::Closed,
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Progress::Closed,
            }
        }
        Progress::Open
    }
}

impl AsRawFd for Client {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
