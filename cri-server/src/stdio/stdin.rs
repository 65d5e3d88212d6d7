//! Bytes to a process's standard input. Not resumed: bytes that a lost connection swallowed are lost, as with a closed pipe.

use std::{io, time::Duration};

use proto::stdio::{Role, STDIO_PORT, Status};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};

use super::output::ProcessId;
use crate::guest::{DialError, Dialer};

/// For the hello's answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// An open way to a process's standard input.
#[derive(Debug)]
pub struct Stdin {
    stream: UnixStream,
}

/// Why a process's standard input cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum StdinError {
    /// No connection to the guest.
    #[error("open the stdin of process {process}")]
    Dial {
        /// Which one.
        process: String,
        /// Why.
        source: DialError,
    },
    /// The guest refused, or answered what is no answer.
    #[error("the guest has no stdin of process {process}: {reason}")]
    Refused {
        /// Which one.
        process: String,
        /// Why.
        reason: &'static str,
    },
    /// The connection broke.
    #[error("open the stdin of process {process}")]
    Io {
        /// Which one.
        process: String,
        /// The operating system's answer.
        source: io::Error,
    },
}

impl Stdin {
    /// Connects to the stdin of `process`; replaces another connection to it. The connection's end is end of file.
    ///
    /// # Errors
    /// [`StdinError`]
    pub async fn open(dialer: &Dialer, process: &ProcessId) -> Result<Self, StdinError> {
        Self::connect(dialer, process, Role::Stdin).await
    }

    /// As [`Self::open`], but the process's stdin stays open for the next one.
    ///
    /// # Errors
    /// [`StdinError`]
    pub async fn open_kept(dialer: &Dialer, process: &ProcessId) -> Result<Self, StdinError> {
        Self::connect(dialer, process, Role::StdinKept).await
    }

    async fn connect(dialer: &Dialer, process: &ProcessId, role: Role) -> Result<Self, StdinError> {
        let refused = |reason| StdinError::Refused {
            process: process.to_string(),
            reason,
        };
        let hello = process
            .hello(role, 0)
            .map_err(|_| refused("its id is too long"))?;
        let mut stream = dialer.dial(STDIO_PORT).await.map_err(|source| StdinError::Dial {
            process: process.to_string(),
            source,
        })?;
        let exchange = timeout(DEADLINE, async {
            stream.write_all(&hello).await?;
            stream.read_u8().await
        });
        let answer = exchange
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| StdinError::Io {
                process: process.to_string(),
                source,
            })?;
        match Status::decode(answer) {
            Ok(Status::Ok) => Ok(Self { stream }),
            Ok(Status::NotFound) => Err(refused("no such process")),
            Ok(Status::NoStdin) => Err(refused("it was created without stdin")),
            Ok(Status::OffsetGone) | Err(_) => Err(refused("the answer is not understood")),
        }
    }

    /// Writes all of `bytes`; waits while the process does not read.
    ///
    /// # Errors
    /// When the process has closed its stdin or is gone.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// End of file for the process.
    ///
    /// # Errors
    /// When the process is gone.
    pub async fn close(mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }
}
