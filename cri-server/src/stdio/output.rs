//! One process's output as the daemon receives it: frames in order, each byte once, whatever becomes of the connection.
//!
//! [`Output::next`] connects, reads, and connects again at the first byte that it has not delivered. It is cancel-safe.
//! Delivered is not acknowledged: the agent keeps bytes until [`Output::acknowledge`], so that a daemon that dies in between
//! gets them again.

use std::{io, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use proto::stdio::{
    DecodeError, FRAME_HEADER_LEN, FrameHeader, Hello, MAX_FRAME, Role, STDIO_PORT, Status, Stream,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf},
    net::UnixStream,
    time::{sleep, timeout},
};

use crate::guest::{DialError, Dialer};

/// Between two tries to connect: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// For the hello's answer, and for one acknowledgement to be taken.
const DEADLINE: Duration = Duration::from_secs(10);

/// Which process of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessId {
    /// The container.
    pub container_id: String,
    /// The exec'd process; `None`: the container's init process.
    pub exec_id: Option<String>,
}

/// What a process's output consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputEvent {
    /// Bytes that the process wrote, never empty.
    Data {
        /// To which of its streams.
        stream: Stream,
        /// At most [`MAX_FRAME`].
        bytes: Bytes,
    },
    /// Nothing more comes from this stream. Told at most once per stream.
    StreamEnd(Stream),
    /// Nothing more comes at all.
    End,
}

/// Why an output cannot go on. Lost connections are not among them: those are made again.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The guest does not know the process.
    #[error("the guest has no output of process {process}")]
    NotFound {
        /// Which one.
        process: String,
    },
    /// The bytes from the wanted offset on were acknowledged before and are gone.
    #[error("the output of process {process} from byte {offset} on is not kept any more")]
    OffsetGone {
        /// Which one.
        process: String,
        /// The wanted offset.
        offset: u64,
    },
    /// The guest has ended, and its output with it.
    #[error("the guest has ended and the output of process {process} with it")]
    GuestEnded {
        /// Which one.
        process: String,
    },
    /// The guest does not keep to the protocol.
    #[error("the guest's stdio of process {process} breaks the protocol")]
    Protocol {
        /// Which one.
        process: String,
        /// How.
        source: DecodeError,
    },
}

/// The output of one process.
#[derive(Debug)]
pub struct Output {
    dialer: Dialer,
    process: ProcessId,
    /// Offset of the first byte that was not delivered.
    offset: u64,
    /// Everything before it is stored; told again on every new connection.
    acknowledged: u64,
    ends: Ends,
    connection: Option<Connection>,
    pause: Duration,
    /// A lost connection is not made again.
    guest_ended: bool,
}

#[derive(Debug)]
struct Connection {
    reader: ReadHalf<UnixStream>,
    writer: WriteHalf<UnixStream>,
    frames: Frames,
}

/// What arrived and was not delivered yet.
#[derive(Debug)]
pub(super) struct Frames {
    buffer: BytesMut,
    /// The frame whose payload is being read: stream, bytes that are left.
    frame: Option<(Stream, usize)>,
}

/// Which streams have ended, and which there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    stdout: bool,
    stderr: bool,
    terminal: bool,
}

/// What one try to go on came to.
enum Step {
    Event(OutputEvent),
    Refused(Status),
    Broken(DecodeError),
    Lost(io::Error),
}

impl std::fmt::Display for ProcessId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.exec_id {
            Some(exec_id) => write!(f, "{}/{exec_id}", self.container_id),
            None => f.write_str(&self.container_id),
        }
    }
}

impl ProcessId {
    pub(super) fn hello(&self, role: Role, offset: u64) -> Result<Vec<u8>, DecodeError> {
        Hello {
            role,
            offset,
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone().unwrap_or_default(),
        }
        .encode()
    }
}

impl Output {
    /// The output of `process` from byte `offset` on; nothing is connected yet. A process on a terminal has no stderr.
    #[must_use]
    pub fn new(dialer: Dialer, process: ProcessId, terminal: bool, offset: u64) -> Self {
        Self {
            dialer,
            process,
            offset,
            acknowledged: offset,
            ends: Ends::new(terminal),
            connection: None,
            pause: FIRST_PAUSE,
            guest_ended: false,
        }
    }

    /// The Machine has ended: what it sent before is still delivered, and then [`OutputError::GuestEnded`].
    pub fn guest_has_ended(&mut self) {
        self.guest_ended = true;
    }

    /// Offset of the first byte that was not delivered yet: stdout and stderr counted together.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What comes next; waits for it, and for the guest, without limit (but see [`Self::guest_has_ended`]). Cancel-safe. After [`OutputEvent::End`] it is
    /// `End` again.
    ///
    /// # Errors
    /// [`OutputError`]: there will be no more.
    pub async fn next(&mut self) -> Result<OutputEvent, OutputError> {
        loop {
            if self.ends.all() {
                // The connection stays for the last acknowledgement.
                return Ok(OutputEvent::End);
            }
            let step = match &mut self.connection {
                Some(connection) => connection.step(&mut self.ends).await,
                None => match self.open().await {
                    Ok(connection) => {
                        self.connection = Some(connection);
                        continue;
                    }
                    Err(step) => step,
                },
            };
            match step {
                Step::Event(event) => {
                    if let OutputEvent::Data { bytes, .. } = &event {
                        self.offset += bytes.len() as u64;
                        self.pause = FIRST_PAUSE;
                    }
                    return Ok(event);
                }
                Step::Refused(status) => {
                    self.connection = None;
                    return Err(self.refused(status));
                }
                Step::Broken(source) => {
                    self.connection = None;
                    return Err(OutputError::Protocol {
                        process: self.process.to_string(),
                        source,
                    });
                }
                Step::Lost(_) if self.guest_ended => {
                    self.connection = None;
                    return Err(OutputError::GuestEnded {
                        process: self.process.to_string(),
                    });
                }
                Step::Lost(error) => {
                    self.connection = None;
                    tracing::debug!(process = %self.process, offset = self.offset, %error, "output connection lost");
                    // Set before the wait, so that a cancelled call does not shorten the next one.
                    let pause = self.pause;
                    self.pause = (pause * 2).min(LAST_PAUSE);
                    sleep(pause).await;
                }
            }
        }
    }

    /// Tells the agent that everything before `offset` is stored and need not be kept. A connection that is lost meanwhile
    /// is none of the caller's business: the next one begins with the acknowledgement.
    pub async fn acknowledge(&mut self, offset: u64) {
        if offset <= self.acknowledged {
            return;
        }
        self.acknowledged = offset;
        let Some(connection) = &mut self.connection else {
            return;
        };
        // An agent that takes no acknowledgements would otherwise hold up the log for ever. A half-written one would shift all
        // that follow, so the connection is given up then.
        let sent = timeout(DEADLINE, connection.writer.write_all(&offset.to_le_bytes())).await;
        if !matches!(sent, Ok(Ok(()))) {
            self.connection = None;
        }
    }

    async fn open(&self) -> Result<Connection, Step> {
        let hello = self
            .process
            .hello(Role::Output, self.offset)
            .map_err(Step::Broken)?;
        let mut stream = match self.dialer.dial(STDIO_PORT).await {
            Ok(stream) => stream,
            Err(DialError::Io { source, .. }) => return Err(Step::Lost(source)),
            Err(DialError::Timeout { .. }) => return Err(Step::Lost(io::ErrorKind::TimedOut.into())),
        };
        let exchange = timeout(DEADLINE, async {
            stream.write_all(&hello).await?;
            let answer = stream.read_u8().await?;
            // The last acknowledgement may have been lost with the last connection, and an agent whose window is full waits
            // for it.
            if answer == Status::Ok.encode() {
                stream.write_all(&self.acknowledged.to_le_bytes()).await?;
            }
            Ok(answer)
        });
        let answer = match exchange.await {
            Ok(answer) => answer.map_err(Step::Lost)?,
            Err(_) => return Err(Step::Lost(io::ErrorKind::TimedOut.into())),
        };
        match Status::decode(answer).map_err(Step::Broken)? {
            Status::Ok => {
                let (reader, writer) = tokio::io::split(stream);
                Ok(Connection {
                    reader,
                    writer,
                    frames: Frames::new(),
                })
            }
            refusal => Err(Step::Refused(refusal)),
        }
    }

    fn refused(&self, status: Status) -> OutputError {
        let process = self.process.to_string();
        match status {
            Status::NotFound => OutputError::NotFound { process },
            Status::OffsetGone => OutputError::OffsetGone {
                process,
                offset: self.offset,
            },
            // No answer to a hello for output.
            Status::Ok | Status::NoStdin => OutputError::Protocol {
                process,
                source: DecodeError::Status(status.encode()),
            },
        }
    }
}

impl Connection {
    /// Takes what is in the buffer, or reads more. Only the read waits, and what it read stays in the buffer: cancel-safe.
    async fn step(&mut self, ends: &mut Ends) -> Step {
        loop {
            match self.frames.take(ends) {
                Ok(Some(event)) => return Step::Event(event),
                Ok(None) => {}
                Err(error) => return Step::Broken(error),
            }
            match self.reader.read_buf(self.frames.buffer()).await {
                Ok(0) => return Step::Lost(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) => return Step::Lost(error),
            }
        }
    }
}

impl Frames {
    pub(super) fn new() -> Self {
        Self {
            buffer: BytesMut::with_capacity(MAX_FRAME),
            frame: None,
        }
    }

    /// For what arrives next.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        self.buffer.reserve(MAX_FRAME);
        &mut self.buffer
    }

    /// Parts of a payload are passed on as they come, so the buffer never has to hold a whole frame.
    pub(super) fn take(&mut self, ends: &mut Ends) -> Result<Option<OutputEvent>, DecodeError> {
        loop {
            if let Some((stream, left)) = self.frame {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                let bytes = self.buffer.split_to(left.min(self.buffer.len())).freeze();
                self.frame = Some((stream, left - bytes.len())).filter(|(_, left)| *left > 0);
                return Ok(Some(OutputEvent::Data { stream, bytes }));
            }
            let Some(header) = self.buffer.first_chunk::<FRAME_HEADER_LEN>() else {
                return Ok(None);
            };
            let header = FrameHeader::decode(*header)?;
            self.buffer.advance(FRAME_HEADER_LEN);
            match usize::try_from(header.len) {
                Ok(0) if ends.set(header.stream) => return Ok(Some(OutputEvent::StreamEnd(header.stream))),
                Ok(0) => {}
                Ok(len) => self.frame = Some((header.stream, len)),
                Err(_) => return Err(DecodeError::FrameTooLong(header.len)),
            }
        }
    }
}

impl Ends {
    /// Of a process whose streams are open; on a terminal it has one.
    pub(super) fn new(terminal: bool) -> Self {
        Self {
            stdout: false,
            stderr: false,
            terminal,
        }
    }

    fn all(self) -> bool {
        self.stdout && (self.stderr || self.terminal)
    }

    /// Notes an end; whether it is news.
    fn set(&mut self, stream: Stream) -> bool {
        let ended = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        !std::mem::replace(ended, true)
    }
}

#[cfg(test)]
mod tests;
