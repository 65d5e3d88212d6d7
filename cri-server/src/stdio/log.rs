//! The log of one container: a task that moves the guest's output into the file that kubelet reads, exactly once.
//!
//! Bytes are acknowledged to the agent when the log and its position have them, so that a daemon may die at any moment
//! (dropping a [`ContainerLog`] is no different) and the next one goes on. A full disk stops the log and, through the agent's
//! window, the process; nothing is thrown away. Format in `lines`, files in `file`.

mod file;
mod lines;
mod position;
mod timestamp;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use proto::stdio::Stream;
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use self::file::LogWriter;
use super::output::{Output, OutputError, OutputEvent, ProcessId};
use crate::guest::Dialer;

/// Between two tries to write to a disk that is full: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// Events that an attached client may be behind before it loses some; an event is at most 64 KiB.
const SUBSCRIBER_EVENTS: usize = 64;
/// Reopen requests that wait; kubelet sends one at a time.
const COMMANDS: usize = 4;

/// What a log is made of.
#[derive(Debug, Clone)]
pub struct LogSpec {
    /// To the container's guest.
    pub dialer: Dialer,
    /// The container; its init process is logged.
    pub container_id: String,
    /// It was created with a terminal, and has no stderr.
    pub terminal: bool,
    /// The log as CRI names it. `None`: the output is only passed on to subscribers.
    pub log_path: Option<PathBuf>,
    /// Where the daemon remembers how far the log is: in its own state, one per container, in a directory that exists.
    pub position_path: PathBuf,
}

/// How a log came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogEnd {
    /// Both streams have ended and everything is in the file.
    Complete,
    /// The guest gives no more: the container was removed there, or it broke the protocol. Everything received is in the file.
    Lost,
    /// The deadline passed first. The position is kept.
    Unfinished,
}

/// Why a log cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file cannot be opened or written.
    #[error("{operation} the log {} (position {})", path.as_deref().unwrap_or(Path::new("-")).display(), position.display())]
    Io {
        /// "open", "reopen"
        operation: &'static str,
        /// The log.
        path: Option<PathBuf>,
        /// Its position file.
        position: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The log has ended: there is nothing to reopen.
    #[error("the log of container {container_id} has ended")]
    Ended {
        /// Which one.
        container_id: String,
    },
}

/// A log that is being written. Dropping it stops the writing at once; a later one resumes it.
#[derive(Debug)]
pub struct ContainerLog {
    container_id: String,
    commands: mpsc::Sender<Command>,
    end: watch::Receiver<Option<LogEnd>>,
    events: broadcast::Sender<OutputEvent>,
    /// The task, stopped with this value.
    _task: JoinSet<()>,
}

/// What the task is asked for.
#[derive(Debug)]
enum Command {
    Reopen(oneshot::Sender<Result<(), LogError>>),
    GuestEnded,
}

impl ContainerLog {
    /// Opens the log, makes its directories, and starts to write.
    ///
    /// # Errors
    /// When the log or its position cannot be opened: nothing was started.
    pub async fn open(spec: LogSpec) -> Result<Self, LogError> {
        let writer = open_writer(&spec).await?;
        Ok(Self::start(spec, Some(writer)))
    }

    /// As [`Self::open`] for a container that runs already: what cannot be opened now is tried again until it can.
    #[must_use]
    pub fn resume(spec: LogSpec) -> Self {
        Self::start(spec, None)
    }

    fn start(spec: LogSpec, writer: Option<LogWriter>) -> Self {
        let (command_sender, commands) = mpsc::channel(COMMANDS);
        let (end_sender, end) = watch::channel(None);
        let (events, _) = broadcast::channel(SUBSCRIBER_EVENTS);
        let container_id = spec.container_id.clone();
        let logger = Logger {
            spec,
            commands,
            events: events.clone(),
            guest_ended: false,
        };
        let mut task = JoinSet::new();
        task.spawn(async move {
            let end = logger.run(writer).await;
            end_sender.send_replace(Some(end));
        });
        Self {
            container_id,
            commands: command_sender,
            end,
            events,
            _task: task,
        }
    }

    /// Goes on in a new file at the log's path, after kubelet has renamed the old one.
    ///
    /// # Errors
    /// [`LogError`]; the old file is written on then.
    pub async fn reopen(&self) -> Result<(), LogError> {
        let ended = || LogError::Ended {
            container_id: self.container_id.clone(),
        };
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(Command::Reopen(reply))
            .await
            .map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Everything from now on, for a client that attaches; `None` when the log has ended. One that does not keep up loses
    /// events and is told so (`RecvError::Lagged`): no client may hold up the log. The last event is [`OutputEvent::End`].
    #[must_use]
    pub fn subscribe(&self) -> Option<broadcast::Receiver<OutputEvent>> {
        let receiver = self.events.subscribe();
        self.end.borrow().is_none().then_some(receiver)
    }

    /// How the log ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<LogEnd> {
        *self.end.borrow()
    }

    /// As [`Self::finish`] after the Machine has ended: what came from it before is written, an unfinished line as well, and
    /// nothing is waited for that cannot come any more.
    pub async fn finish_without_guest(self, deadline: Duration) -> LogEnd {
        // A log that has ended takes no commands, and needs none.
        drop(self.commands.send(Command::GuestEnded).await);
        self.finish(deadline).await
    }

    /// Waits until everything is written, or the deadline, and stops.
    pub async fn finish(mut self, deadline: Duration) -> LogEnd {
        match timeout(deadline, self.end.wait_for(Option::is_some)).await {
            Ok(Ok(end)) => end.unwrap_or(LogEnd::Unfinished),
            Ok(Err(_)) | Err(_) => LogEnd::Unfinished,
        }
    }
}

/// The task behind a [`ContainerLog`].
struct Logger {
    spec: LogSpec,
    commands: mpsc::Receiver<Command>,
    events: broadcast::Sender<OutputEvent>,
    /// Was said while the log could not be written.
    guest_ended: bool,
}

/// The handle is gone, or the blocking pool is: nobody waits for the log any more.
struct Abandoned;

impl Logger {
    async fn run(mut self, writer: Option<LogWriter>) -> LogEnd {
        let end = self.write_all(writer).await.unwrap_or(LogEnd::Unfinished);
        // Nobody may be attached.
        drop(self.events.send(OutputEvent::End));
        end
    }

    async fn write_all(&mut self, writer: Option<LogWriter>) -> Result<LogEnd, Abandoned> {
        let mut writer = match writer {
            Some(writer) => writer,
            None => self.open_with_patience().await?,
        };
        let process = ProcessId {
            container_id: self.spec.container_id.clone(),
            exec_id: None,
        };
        let dialer = self.spec.dialer.clone();
        let mut output = Output::new(dialer, process, self.spec.terminal, writer.stored_offset());
        loop {
            if self.guest_ended {
                output.guest_has_ended();
            }
            let event = tokio::select! {
                command = self.commands.recv() => {
                    match command.ok_or(Abandoned)? {
                        Command::Reopen(reply) => writer = self.reopen(writer, reply).await?,
                        Command::GuestEnded => self.guest_ended = true,
                    }
                    continue;
                }
                event = output.next() => event,
            };
            match event {
                Ok(OutputEvent::End) => return Ok(LogEnd::Complete),
                Ok(event) => {
                    writer = self.commit(writer, event.clone()).await?;
                    output.acknowledge(writer.stored_offset()).await;
                    // Nobody may be attached.
                    drop(self.events.send(event));
                }
                Err(error) => {
                    tracing::warn!(
                        container = self.spec.container_id,
                        error = &error as &dyn std::error::Error,
                        "the log ends here"
                    );
                    if is_final(&error) {
                        self.complete_lines(writer).await?;
                    }
                    return Ok(LogEnd::Lost);
                }
            }
        }
    }

    /// Bytes of a line whose end will never come are written all the same.
    async fn complete_lines(&mut self, mut writer: LogWriter) -> Result<(), Abandoned> {
        for stream in [Stream::Stdout, Stream::Stderr] {
            writer = self.commit(writer, OutputEvent::StreamEnd(stream)).await?;
        }
        Ok(())
    }

    /// Brings one event into the file, however long the disk is full; answers reopen requests meanwhile.
    async fn commit(&mut self, writer: LogWriter, event: OutputEvent) -> Result<LogWriter, Abandoned> {
        let (mut writer, mut result) = off_the_event_loop(writer, move |writer| {
            match &event {
                OutputEvent::Data { stream, bytes } => writer.push(*stream, bytes),
                OutputEvent::StreamEnd(stream) => writer.end(*stream),
                OutputEvent::End => {}
            }
            writer.commit()
        })
        .await?;
        let mut pause = FIRST_PAUSE;
        while let Err(error) = result {
            tracing::warn!(container = self.spec.container_id, %error, "cannot write the log; it waits");
            tokio::select! {
                command = self.commands.recv() => match command.ok_or(Abandoned)? {
                    Command::Reopen(reply) => writer = self.reopen(writer, reply).await?,
                    Command::GuestEnded => self.guest_ended = true,
                },
                () = sleep(pause) => pause = (pause * 2).min(LAST_PAUSE),
            }
            (writer, result) = off_the_event_loop(writer, LogWriter::commit).await?;
        }
        Ok(writer)
    }

    async fn reopen(
        &self,
        writer: LogWriter,
        reply: oneshot::Sender<Result<(), LogError>>,
    ) -> Result<LogWriter, Abandoned> {
        let (writer, result) = off_the_event_loop(writer, LogWriter::reopen).await?;
        let answer = result.map_err(|source| log_error("reopen", &self.spec, source));
        // The caller may have given up.
        drop(reply.send(answer));
        Ok(writer)
    }

    async fn open_with_patience(&mut self) -> Result<LogWriter, Abandoned> {
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match open_writer(&self.spec).await {
                Ok(writer) => return Ok(writer),
                Err(error) => error,
            };
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the log does not resume yet"
            );
            tokio::select! {
                // A reopen request is another reason to try; whether that one works is its answer.
                command = self.commands.recv() => {
                    match (command.ok_or(Abandoned)?, open_writer(&self.spec).await) {
                        (Command::Reopen(reply), Ok(writer)) => {
                            drop(reply.send(Ok(())));
                            return Ok(writer);
                        }
                        (Command::Reopen(reply), Err(error)) => drop(reply.send(Err(error))),
                        (Command::GuestEnded, opened) => {
                            self.guest_ended = true;
                            if let Ok(writer) = opened {
                                return Ok(writer);
                            }
                        }
                    }
                }
                () = sleep(pause) => pause = (pause * 2).min(LAST_PAUSE),
            }
        }
    }
}

/// Whether the process's output is over for every daemon, and not only for this one.
fn is_final(error: &OutputError) -> bool {
    match error {
        OutputError::NotFound { .. } | OutputError::GuestEnded { .. } => true,
        OutputError::OffsetGone { .. } | OutputError::Protocol { .. } => false,
    }
}

async fn open_writer(spec: &LogSpec) -> Result<LogWriter, LogError> {
    let (path, position) = (spec.log_path.clone(), spec.position_path.clone());
    tokio::task::spawn_blocking(move || LogWriter::open(path.as_deref(), &position))
        .await
        .map_err(io::Error::other)
        .flatten()
        .map_err(|source| log_error("open", spec, source))
}

fn log_error(operation: &'static str, spec: &LogSpec, source: io::Error) -> LogError {
    LogError::Io {
        operation,
        path: spec.log_path.clone(),
        position: spec.position_path.clone(),
        source,
    }
}

/// A disk may block for seconds when it writes back.
async fn off_the_event_loop(
    mut writer: LogWriter,
    action: impl FnOnce(&mut LogWriter) -> io::Result<()> + Send + 'static,
) -> Result<(LogWriter, io::Result<()>), Abandoned> {
    tokio::task::spawn_blocking(move || {
        let result = action(&mut writer);
        (writer, result)
    })
    .await
    .map_err(|_| Abandoned)
}
