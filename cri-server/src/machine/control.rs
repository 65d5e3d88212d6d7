//! Client of a VMM's control socket (`proto::machine`): one line of JSON each way, descriptors attached.
//!
//! Each request has a connection of its own: after a deadline nothing of an old answer can be taken for a new one. The VMM
//! may have been taken over by its guest, so its answers are limited in size and only their expected kind is believed.

use std::{io, os::fd::BorrowedFd, path::PathBuf, time::Duration};

use proto::machine::{Description, Device, FileSource, MAX_PAGE_RUNS, PageRun, Request, Response, Stats};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time::{Instant, sleep, timeout},
};

use super::layout::Layout;
use crate::{
    guest::text,
    sys::unix_socket::{self, MAX_DESCRIPTORS},
};

/// The VMM answers from its event loop, which never blocks; this much is a node under heavy load.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two tries while the VMM has not made its socket yet.
const CONNECT_PAUSE: Duration = Duration::from_millis(5);
/// Longest answer; a console ring of 1 MiB can become six times as long in JSON.
const MAX_RESPONSE: u64 = 8 * 1024 * 1024;
/// Longest refusal that is passed on, bytes.
const MAX_MESSAGE: usize = 1024;

/// Talks to the VMM of one Machine. Cheap: nothing is open between requests.
#[derive(Debug, Clone)]
pub struct ControlClient {
    socket: PathBuf,
    deadline: Duration,
}

/// Why a control request had no effect that is known of.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No answer in time; the request may have been carried out.
    #[error("{operation}: the VMM did not answer within {} s", after.as_secs_f32())]
    Timeout {
        /// The request.
        operation: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The VMM cannot be talked to: it has ended, or ends.
    #[error("{operation}: talk to the VMM through {}", socket.display())]
    Io {
        /// The request.
        operation: &'static str,
        /// The control socket.
        socket: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The VMM said no, and nothing has changed.
    #[error("{operation}: the VMM refused: {message}")]
    Refused {
        /// The request.
        operation: &'static str,
        /// Its reason.
        message: String,
    },
    /// The answer is none that this request can have.
    #[error("{operation}: the VMM's answer is not understood: {what}")]
    Malformed {
        /// The request.
        operation: &'static str,
        /// What is wrong.
        what: String,
    },
}

impl ControlClient {
    /// A client of the Machine at `layout`; nothing is connected yet.
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        Self {
            socket: layout.control(),
            deadline: DEADLINE,
        }
    }

    /// The same client with another deadline for each request.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// What the Machine is and where its devices are.
    ///
    /// # Errors
    /// [`ControlError`]
    pub async fn describe(&self) -> Result<Description, ControlError> {
        match self.request("describe", &Request::Describe {}, &[]).await? {
            Response::Description(description) => Ok(description),
            other => Err(unexpected("describe", &other)),
        }
    }

    /// Adds a device whose [`FileSource::Fd`](proto::machine::FileSource) indexes `descriptors`; returns its PCI address,
    /// of the form `0000:00:05.0`.
    ///
    /// # Errors
    /// [`ControlError`]
    pub async fn add_device(
        &self,
        device: Device,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<String, ControlError> {
        let operation = "add a device";
        let request = Request::AddDevice { device };
        match self.request(operation, &request, descriptors).await? {
            Response::Added { pci_address } if text::is_pci_address(&pci_address) => Ok(pci_address),
            Response::Added { pci_address } => Err(ControlError::Malformed {
                operation,
                what: format!("{:?} is no PCI address", text::one_line(&pci_address, 32)),
            }),
            other => Err(unexpected(operation, &other)),
        }
    }

    /// Which pages of its snapshot the Machine's guest has written. They are for VMMs of other pods, so that no more is believed than that
    /// they are numbers: the VMM that is given them looks where they lie.
    ///
    /// # Errors
    /// [`ControlError`]; `Refused` when they are too many.
    pub async fn copied_pages(&self) -> Result<Vec<PageRun>, ControlError> {
        let operation = "ask for copied pages";
        match self.request(operation, &Request::CopiedPages {}, &[]).await? {
            Response::CopiedPages { runs } if runs.len() <= MAX_PAGE_RUNS => Ok(runs),
            other => Err(unexpected(operation, &other)),
        }
    }

    /// Takes a device away that the guest does not use any more.
    ///
    /// # Errors
    /// [`ControlError`]
    pub async fn remove_device(&self, id: &str) -> Result<(), ControlError> {
        let request = Request::RemoveDevice { id: id.to_owned() };
        self.done("remove a device", &request, &[]).await
    }

    /// Asks the guest to have this much memory plugged beyond what it was started with, MiB, a multiple of 2. How far it has
    /// got is in [`Self::stats`]; it may stay above a smaller wish while its memory is in use.
    ///
    /// # Errors
    /// [`ControlError`]; `Refused` when the Machine cannot grow as far, or has no memory device.
    pub async fn resize_memory(&self, plugged_mib: u64) -> Result<(), ControlError> {
        let request = Request::ResizeMemory { plugged_mib };
        self.done("resize the memory", &request, &[]).await
    }

    /// Halts the guest's processors.
    ///
    /// # Errors
    /// [`ControlError`]
    pub async fn pause(&self) -> Result<(), ControlError> {
        self.done("halt the guest", &Request::Pause {}, &[]).await
    }

    /// Writes the halted guest to two empty files, for others to go on from if they name `origin`.
    ///
    /// # Errors
    /// [`ControlError`]; what is in the files is of no use then.
    pub async fn snapshot(
        &self,
        memory: BorrowedFd<'_>,
        state: BorrowedFd<'_>,
        origin: &str,
    ) -> Result<(), ControlError> {
        let request = Request::Snapshot {
            memory: FileSource::Fd(0),
            state: FileSource::Fd(1),
            origin: origin.to_owned(),
        };
        self.done("write the guest down", &request, &[memory, state])
            .await
    }

    /// What the guest wrote to its console: printable text and line ends, the newest `limit` bytes at most.
    ///
    /// # Errors
    /// [`ControlError`]
    pub async fn console(&self, limit: usize) -> Result<String, ControlError> {
        let operation = "read the console";
        match self.request(operation, &Request::Console {}, &[]).await? {
            Response::Console { text, .. } => Ok(text::tail(&text, limit)),
            other => Err(unexpected(operation, &other)),
        }
    }

    /// The VMM's counters.
    ///
    /// # Errors
    /// [`ControlError`]
    pub async fn stats(&self) -> Result<Stats, ControlError> {
        match self.request("read the counters", &Request::Stats {}, &[]).await? {
            Response::Stats(stats) => Ok(stats),
            other => Err(unexpected("read the counters", &other)),
        }
    }

    /// Asks the VMM to end at once; `Process::exited` tells when it has.
    ///
    /// # Errors
    /// [`ControlError`]
    pub async fn stop(&self) -> Result<(), ControlError> {
        self.done("stop", &Request::Stop {}, &[]).await
    }

    /// A request that is answered with nothing but that it was carried out.
    async fn done(
        &self,
        operation: &'static str,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ControlError> {
        match self.request(operation, request, descriptors).await? {
            Response::Done {} => Ok(()),
            other => Err(unexpected(operation, &other)),
        }
    }

    async fn request(
        &self,
        operation: &'static str,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Response, ControlError> {
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(ControlError::Malformed {
                operation,
                what: format!(
                    "{} descriptors, at most {MAX_DESCRIPTORS} can be sent",
                    descriptors.len()
                ),
            });
        }
        let mut line = serde_json::to_vec(request).map_err(|error| self.io(operation, error.into()))?;
        line.push(b'\n');
        let answer = timeout(self.deadline, self.exchange(&line, descriptors))
            .await
            .map_err(|_| ControlError::Timeout {
                operation,
                after: self.deadline,
            })?
            .map_err(|source| self.io(operation, source))?;
        match serde_json::from_slice(&answer) {
            Ok(Response::Error { message }) => Err(ControlError::Refused {
                operation,
                message: text::one_line(&message, MAX_MESSAGE),
            }),
            Ok(response) => Ok(response),
            Err(error) => Err(ControlError::Malformed {
                operation,
                what: text::one_line(&error.to_string(), MAX_MESSAGE),
            }),
        }
    }

    async fn exchange(&self, line: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<Vec<u8>> {
        let mut stream = self.connect().await?;
        let sent = unix_socket::send_with_descriptors(&stream, line, descriptors).await?;
        stream.write_all(line.get(sent..).unwrap_or_default()).await?;
        let mut answer = Vec::new();
        let mut reader = BufReader::new(stream).take(MAX_RESPONSE);
        reader.read_until(b'\n', &mut answer).await?;
        if answer.pop() == Some(b'\n') {
            Ok(answer)
        } else if reader.limit() == 0 {
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("an answer longer than {MAX_RESPONSE} bytes"),
            ))
        } else {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof))
        }
    }

    /// A VMM that was just started makes its socket within milliseconds; one that has ended refuses at once, and the socket
    /// file of one that never came does not exist. Absence is therefore waited for, within a part of the deadline.
    async fn connect(&self) -> io::Result<UnixStream> {
        let until = Instant::now() + self.deadline / 2;
        loop {
            match unix_socket::connect(&self.socket).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < until => {
                    sleep(CONNECT_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    fn io(&self, operation: &'static str, source: io::Error) -> ControlError {
        ControlError::Io {
            operation,
            socket: self.socket.clone(),
            source,
        }
    }
}

fn unexpected(operation: &'static str, response: &Response) -> ControlError {
    let kind = match response {
        Response::Description(_) => "a description",
        Response::Added { .. } => "an added device",
        Response::Done {} => "done",
        Response::Console { .. } => "a console",
        Response::Stats(_) => "counters",
        Response::CopiedPages { .. } => "copied pages",
        Response::Error { .. } => "an error",
    };
    ControlError::Malformed {
        operation,
        what: format!("it answered with {kind}"),
    }
}

#[cfg(test)]
mod tests;
