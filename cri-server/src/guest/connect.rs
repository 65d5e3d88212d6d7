//! Dials ports of a guest through the VMM's unix socket, and of a host pod's shim through a socket per port. Bytes only: what is
//! spoken on a port is said elsewhere.
//!
//! Protocol of the VMM's socket (`proto::machine::Vsock`): we send `CONNECT <port>\n`, the VMM answers `OK <n>\n` when the guest accepted, or
//! closes.

use std::{io, path::PathBuf, time::Duration};

use proto::host::port_socket;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};

use crate::{machine::Layout, sys::unix_socket};

/// A guest that has its kernel busy may take long to accept.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest answer: "OK ", ten digits, the line end.
const MAX_ANSWER: usize = 14;

/// Opens connections to one guest. Nothing is open between dials.
#[derive(Debug, Clone)]
pub struct Dialer {
    way: Way,
    deadline: Duration,
}

/// How a port is reached.
#[derive(Debug, Clone)]
enum Way {
    /// The VMM's socket, which muxes all ports.
    Vsock(PathBuf),
    /// A directory with a socket for each port.
    Sockets(PathBuf),
}

impl Way {
    fn socket(&self, port: u32) -> PathBuf {
        match self {
            Self::Vsock(socket) => socket.clone(),
            Self::Sockets(directory) => directory.join(port_socket(port)),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Neither accepted nor refused in time.
    #[error("guest port {port} did not answer within {} s", after.as_secs_f32())]
    Timeout {
        /// Which port.
        port: u32,
        /// How long was waited.
        after: Duration,
    },
    /// The VMM is gone, or nobody listens on the port.
    #[error("dial guest port {port} through {}", socket.display())]
    Io {
        /// Which port.
        port: u32,
        /// The socket that was dialled.
        socket: PathBuf,
        /// The operating system's answer; end of file is a refusal.
        source: io::Error,
    },
}

impl Dialer {
    /// A dialer for the guest of the Machine at `layout`.
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        Self {
            way: Way::Vsock(layout.vsock()),
            deadline: DEADLINE,
        }
    }

    /// A dialer for the shim of the host pod at `layout`.
    #[must_use]
    pub fn of_shim(layout: &Layout) -> Self {
        Self {
            way: Way::Sockets(layout.directory().to_owned()),
            deadline: DEADLINE,
        }
    }

    /// The same with another deadline for each dial.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// A connection to `port` of the guest.
    ///
    /// # Errors
    /// [`DialError`]
    pub async fn dial(&self, port: u32) -> Result<UnixStream, DialError> {
        match timeout(self.deadline, self.connect(port)).await {
            Ok(connected) => connected.map_err(|source| DialError::Io {
                port,
                socket: self.way.socket(port),
                source,
            }),
            Err(_) => Err(DialError::Timeout {
                port,
                after: self.deadline,
            }),
        }
    }

    async fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut stream = unix_socket::connect(&self.way.socket(port)).await?;
        if matches!(self.way, Way::Sockets(_)) {
            return Ok(stream);
        }
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
        let mut answer = Vec::with_capacity(MAX_ANSWER);
        // Byte by byte: what follows the line belongs to the guest's protocol.
        while answer.last() != Some(&b'\n') {
            if answer.len() == MAX_ANSWER {
                return Err(bad_answer(&answer));
            }
            answer.push(stream.read_u8().await?);
        }
        let accepted = answer
            .strip_prefix(b"OK ")
            .and_then(|rest| rest.strip_suffix(b"\n"))
            .is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit));
        if accepted {
            Ok(stream)
        } else {
            Err(bad_answer(&answer))
        }
    }
}

fn bad_answer(answer: &[u8]) -> io::Error {
    let answer = answer.escape_ascii();
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the VMM answered \"{answer}\" in the place of \"OK\""),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers one dial with `answer`, then sends `rest`.
    async fn dial_against(answer: &[u8], rest: &[u8]) -> Result<Vec<u8>, DialError> {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path(), "m").unwrap();
        layout.create().unwrap();
        let listener = unix_socket::listen(&layout.vsock()).unwrap();
        let dialer = Dialer::new(&layout).with_deadline(Duration::from_millis(500));
        let vmm = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut line = [0; 13];
            stream.read_exact(&mut line).await.unwrap();
            assert_eq!(&line, b"CONNECT 1024\n");
            stream.write_all(answer).await.unwrap();
            stream.write_all(rest).await.unwrap();
        };
        let guest = async {
            let mut stream = dialer.dial(1024).await?;
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.unwrap();
            Ok(bytes)
        };
        tokio::join!(vmm, guest).1
    }

    #[tokio::test]
    async fn the_first_bytes_of_the_guest_are_not_swallowed() {
        assert_eq!(
            dial_against(b"OK 1073741824\n", b"guest\n").await.unwrap(),
            b"guest\n"
        );
    }

    #[tokio::test]
    async fn every_other_answer_is_a_refusal() {
        for answer in [
            &b"OK 10737418241\n"[..],
            b"OK \n",
            b"OK x\n",
            b"KO 1\n",
            b"OK 1",
            b"",
            b"\n",
        ] {
            let result = dial_against(answer, b"").await;
            assert!(matches!(result, Err(DialError::Io { .. })), "{result:?}");
        }
    }

    #[tokio::test]
    async fn each_port_of_a_shim_is_a_socket_without_a_handshake() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path(), "m").unwrap();
        layout.create().unwrap();
        let dialer = Dialer::of_shim(&layout);
        assert!(matches!(dialer.dial(7).await, Err(DialError::Io { .. })));
        let listener = unix_socket::listen(&layout.directory().join("port-7.sock")).unwrap();
        let (dialled, accepted) = tokio::join!(dialer.dial(7), listener.accept());
        accepted.unwrap().0.write_all(b"first").await.unwrap();
        let mut bytes = Vec::new();
        dialled.unwrap().read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, b"first");
    }

    #[tokio::test]
    async fn a_vmm_that_is_gone_is_an_error_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path(), "m").unwrap();
        assert!(matches!(
            Dialer::new(&layout).dial(1).await,
            Err(DialError::Io { .. })
        ));
    }
}
