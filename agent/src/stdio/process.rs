//! A process's three streams as the agent holds them, and the task that reads its output.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use proto::stdio::{Stream, WINDOW};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::log::{Next, OffsetGone, OutputLog};
use crate::lock::lock;
use crate::sys;

/// Bytes read at once: a pipe's default capacity.
const READ: usize = 64 * 1024;

/// The agent's ends of a process's streams.
#[derive(Debug)]
pub(crate) struct Ends {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
    terminal: bool,
}

/// The process's ends, to be sent along with its order.
#[derive(Debug)]
pub(crate) struct ProcessEnds {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl ProcessEnds {
    pub(crate) fn borrow(&self) -> [BorrowedFd<'_>; 3] {
        [self.stdin.as_fd(), self.stdout.as_fd(), self.stderr.as_fd()]
    }

    /// In the order of their numbers.
    pub(crate) fn into_descriptors(self) -> [OwnedFd; 3] {
        [self.stdin, self.stdout, self.stderr]
    }
}

/// Pipes for a process without a terminal; without stdin it reads /dev/null.
///
/// # Errors
/// What pipe2(2) answers.
pub(crate) fn pipes(with_stdin: bool) -> io::Result<(Ends, ProcessEnds)> {
    let (ours_in, theirs_in) = if with_stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        (Some(write), read)
    } else {
        (None, std::fs::File::open("/dev/null")?.into())
    };
    let (stdout, theirs_out) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, theirs_err) = pipe_with(PipeFlags::CLOEXEC)?;
    let ends = Ends {
        stdin: ours_in,
        stdout,
        stderr: Some(stderr),
        terminal: false,
    };
    let process = ProcessEnds {
        stdin: theirs_in,
        stdout: theirs_out,
        stderr: theirs_err,
    };
    Ok((ends, process))
}

/// The master of a process's terminal.
///
/// # Errors
/// What fcntl(2) answers.
pub(crate) fn terminal(master: OwnedFd, with_stdin: bool) -> io::Result<Ends> {
    let stdin = if with_stdin {
        Some(rustix::io::fcntl_dupfd_cloexec(&master, 0)?)
    } else {
        None
    };
    Ok(Ends {
        stdin,
        stdout: master,
        stderr: None,
        terminal: true,
    })
}

/// One process's streams, shared by its pump and the daemon's connections.
#[derive(Debug)]
pub(crate) struct ProcessStdio {
    log: Mutex<OutputLog>,
    /// Something was pushed, or a stream ended.
    pushed: Notify,
    /// There is room again.
    drained: Notify,
    stdin: Mutex<Stdin>,
    /// The terminal's master, for its size.
    terminal: Option<OwnedFd>,
    /// The connections of each role: a new one replaces the old.
    output_connection: Mutex<CancellationToken>,
    stdin_connection: Mutex<CancellationToken>,
    closed: CancellationToken,
}

#[derive(Debug)]
enum Stdin {
    /// Created without.
    Absent,
    Open(std::sync::Arc<AsyncFd<OwnedFd>>),
    Closed,
}

/// What [`ProcessStdio::pump`] reads.
#[derive(Debug)]
pub(crate) struct Outputs {
    stdout: AsyncFd<OwnedFd>,
    stderr: Option<AsyncFd<OwnedFd>>,
}

impl ProcessStdio {
    /// Registers the descriptors with the runtime that it is called in.
    ///
    /// # Errors
    /// What fcntl(2) and epoll_ctl(2) answer.
    pub(crate) fn new(ends: Ends) -> io::Result<(Self, Outputs)> {
        let terminal = if ends.terminal {
            Some(rustix::io::fcntl_dupfd_cloexec(&ends.stdout, 0)?)
        } else {
            None
        };
        let stdin = match ends.stdin {
            Some(stdin) => Stdin::Open(std::sync::Arc::new(non_blocking(stdin)?)),
            None => Stdin::Absent,
        };
        let stdio = Self {
            log: Mutex::new(OutputLog::new(WINDOW, ends.stderr.is_some())),
            pushed: Notify::new(),
            drained: Notify::new(),
            stdin: Mutex::new(stdin),
            terminal,
            output_connection: Mutex::default(),
            stdin_connection: Mutex::default(),
            closed: CancellationToken::new(),
        };
        let outputs = Outputs {
            stdout: non_blocking(ends.stdout)?,
            stderr: ends.stderr.map(non_blocking).transpose()?,
        };
        Ok((stdio, outputs))
    }

    /// Reads both outputs until they end, or until [`Self::close`].
    pub(crate) async fn pump(&self, outputs: Outputs) {
        let stdout = self.pump_stream(&outputs.stdout, Stream::Stdout);
        let stderr = async {
            if let Some(stderr) = &outputs.stderr {
                self.pump_stream(stderr, Stream::Stderr).await;
            }
        };
        tokio::select! {
            ((), ()) = async { tokio::join!(stdout, stderr) } => {}
            () = self.closed.cancelled() => {}
        }
    }

    async fn pump_stream(&self, source: &AsyncFd<OwnedFd>, stream: Stream) {
        let mut buffer = Vec::new();
        loop {
            let drained = self.drained.notified();
            if lock(&self.log).room() == 0 {
                drained.await;
                continue;
            }
            let Ok(mut ready) = source.readable().await else {
                break;
            };
            // The other stream may have filled the log meanwhile: room is looked at and used under one lock.
            let mut log = lock(&self.log);
            buffer.resize(log.room().min(READ), 0);
            if buffer.is_empty() {
                continue;
            }
            match rustix::io::read(source.get_ref(), &mut buffer) {
                Ok(0) => break,
                Ok(got) => {
                    log.push(stream, buffer.get(..got).unwrap_or_default());
                    self.pushed.notify_waiters();
                }
                Err(Errno::AGAIN) => {
                    ready.clear_ready();
                    // Kept only while there is something to read: hundreds of idle processes must not hold a buffer.
                    buffer = Vec::new();
                }
                Err(Errno::INTR) => {}
                // A terminal's master reads EIO when the last slave is closed: its end of file.
                Err(_) => break,
            }
        }
        lock(&self.log).finish(stream);
        self.pushed.notify_waiters();
    }

    /// Takes over as the one output connection, from `offset` on; everything before counts as acknowledged.
    pub(super) fn attach_output(&self, offset: u64) -> Result<CancellationToken, OffsetGone> {
        {
            let mut log = lock(&self.log);
            log.check(offset)?;
            // The daemon asks for what it has not stored. Were the rest not acknowledged by that, a full window of
            // stored bytes would stay full, and neither side would ever have anything to say.
            log.acknowledge(offset)?;
        }
        self.drained.notify_waiters();
        Ok(self.replace(&self.output_connection))
    }

    /// Takes over as the one stdin connection; `None` when the process was made without stdin.
    pub(super) fn attach_stdin(
        &self,
    ) -> Option<(CancellationToken, Option<std::sync::Arc<AsyncFd<OwnedFd>>>)> {
        let stdin = match &*lock(&self.stdin) {
            Stdin::Absent => return None,
            Stdin::Open(stdin) => Some(stdin.clone()),
            Stdin::Closed => None,
        };
        Some((self.replace(&self.stdin_connection), stdin))
    }

    fn replace(&self, connection: &Mutex<CancellationToken>) -> CancellationToken {
        let token = self.closed.child_token();
        std::mem::replace(&mut *lock(connection), token.clone()).cancel();
        token
    }

    /// What to send at `offset`, as soon as there is something.
    pub(super) async fn next(&self, offset: u64) -> Result<Next, OffsetGone> {
        loop {
            // Made before the look, so that a push in between is not missed.
            let pushed = self.pushed.notified();
            match lock(&self.log).next(offset)? {
                Next::Wait => {}
                next => return Ok(next),
            }
            pushed.await;
        }
    }

    /// The streams that the process has.
    pub(super) fn streams(&self) -> Vec<Stream> {
        lock(&self.log).streams().collect()
    }

    pub(super) fn acknowledge(&self, offset: u64) -> Result<(), OffsetGone> {
        lock(&self.log).acknowledge(offset)?;
        self.drained.notify_waiters();
        Ok(())
    }

    /// End of file for the process. A terminal stays open: its end of file is a character that the daemon sends.
    pub(super) fn close_stdin(&self) {
        if self.terminal.is_none() {
            let mut stdin = lock(&self.stdin);
            if matches!(*stdin, Stdin::Open(_)) {
                *stdin = Stdin::Closed;
            }
        }
    }

    /// The terminal, if the process has one.
    pub(crate) fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.terminal.as_ref().map(AsFd::as_fd)
    }

    /// Ends pump and connections; what was not acknowledged is forgotten.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }
}

fn non_blocking(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    sys::readiness::register(fd)
}
