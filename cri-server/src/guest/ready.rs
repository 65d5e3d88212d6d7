//! The ready signal: the agent connects out once and sends `Ready`. Nobody polls a guest.
//!
//! The listener exists before the VMM starts, so the signal cannot come too early. Whoever connects is the guest, so what it
//! sends is limited in size and time; a connection that sends nonsense is dropped and the next one is awaited.
//!
//! A guest that goes on from a snapshot has sent its signal before: [`goes_on`] dials it.

use std::{io, path::PathBuf, time::Duration};

use prost::Message as _;
use proto::{
    agent::v1,
    stdio::{AGENT_PORT, READY_PORT},
};
use tokio::{
    io::AsyncReadExt as _,
    net::{UnixListener, UnixStream},
    time::{Instant, sleep, timeout},
};

use super::{
    connect::{DialError, Dialer},
    text,
};
use crate::{machine::Layout, sys::unix_socket};

/// Protocol version that this daemon speaks with agents.
pub(crate) const PROTOCOL_VERSION: u32 = 1;
/// Longest `Ready`: four numbers and a version.
const MAX_READY: usize = 1024;
/// For one connection to send it.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks for the socket of a VMM that was just started. It is there after a few milliseconds.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Longest agent version that is passed on, bytes.
const MAX_VERSION: usize = 64;

/// What the agent says of itself when it is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Version of the agent, for people.
    pub agent_version: String,
    /// The guest's `CLOCK_BOOTTIME` when the agent's main was entered.
    pub main_entered: Duration,
    /// The guest's `CLOCK_BOOTTIME` when it was ready.
    pub ready: Duration,
}

/// Listens for the ready signal of one Machine; its socket file goes with it.
#[derive(Debug)]
pub struct ReadyListener {
    listener: UnixListener,
    path: PathBuf,
}

/// Why a guest is not ready.
#[derive(Debug, thiserror::Error)]
pub enum ReadyError {
    /// The signal cannot be listened for.
    #[error("listen for the ready signal at {}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// It did not come in time.
    #[error("the guest was not ready within {} s{}", after.as_secs_f32(), heard.as_deref().unwrap_or_default())]
    Timeout {
        /// How long was waited.
        after: Duration,
        /// What came in its place, if something did.
        heard: Option<String>,
    },
    /// One that goes on does not answer.
    #[error("the guest does not go on")]
    Silent(#[source] DialError),
    /// The guest's agent is of another version than this daemon.
    #[error(
        "the guest's agent speaks protocol {version}, this daemon {PROTOCOL_VERSION}: use the initramfs of this release"
    )]
    Version {
        /// What it speaks.
        version: u32,
    },
}

impl ReadyListener {
    /// Listens in the Machine's directory; replaces what an earlier try left there.
    ///
    /// # Errors
    /// [`ReadyError::Listen`]; needs a tokio runtime.
    pub fn bind(layout: &Layout) -> Result<Self, ReadyError> {
        let path = layout.vsock_port(READY_PORT);
        let removed = match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        match removed.and_then(|()| unix_socket::listen(&path)) {
            Ok(listener) => Ok(Self { listener, path }),
            Err(source) => Err(ReadyError::Listen { path, source }),
        }
    }

    /// Waits for the signal at most `deadline` long. Watch the process beside it: a VMM that has ended sends nothing.
    ///
    /// # Errors
    /// [`ReadyError`]
    pub async fn wait(self, deadline: Duration) -> Result<Ready, ReadyError> {
        let mut heard = None;
        let ready = timeout(deadline, async {
            loop {
                let received = match self.listener.accept().await {
                    Ok((stream, _)) => receive(stream).await,
                    Err(error) => Err(error),
                };
                match received {
                    Ok(ready) => return ready,
                    Err(error) => heard = Some(format!("; it sent no valid signal: {error}")),
                }
            }
        })
        .await;
        let Ok(ready) = ready else {
            return Err(ReadyError::Timeout {
                after: deadline,
                heard,
            });
        };
        if ready.protocol_version != PROTOCOL_VERSION {
            return Err(ReadyError::Version {
                version: ready.protocol_version,
            });
        }
        Ok(Ready {
            agent_version: text::one_line(&ready.agent_version, MAX_VERSION),
            main_entered: Duration::from_nanos(ready.main_entered_ns),
            ready: Duration::from_nanos(ready.ready_ns),
        })
    }
}

/// Waits at most `deadline` until the agent of a guest that goes on from a snapshot answers. Watch the process beside it.
///
/// # Errors
/// [`ReadyError::Silent`]
pub async fn goes_on(layout: &Layout, deadline: Duration) -> Result<(), ReadyError> {
    let until = Instant::now() + deadline;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match Dialer::new(layout).with_deadline(left).dial(AGENT_PORT).await {
            Ok(_) => return Ok(()),
            // The VMM has not made its socket, or does not listen on it yet.
            Err(DialError::Io { source, .. }) if is_early(&source) && !left.is_zero() => {
                sleep(LOOK_AGAIN).await;
            }
            Err(error) => return Err(ReadyError::Silent(error)),
        }
    }
}

fn is_early(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

impl Drop for ReadyListener {
    fn drop(&mut self) {
        // Removed with the directory at the latest.
        drop(std::fs::remove_file(&self.path));
    }
}

/// Reads one length-delimited message and then nothing.
async fn receive(stream: UnixStream) -> io::Result<v1::Ready> {
    let mut bytes = Vec::new();
    let mut limited = stream.take(MAX_READY as u64 + 1);
    timeout(CONNECTION_DEADLINE, limited.read_to_end(&mut bytes)).await??;
    if bytes.len() > MAX_READY {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("more than {MAX_READY} bytes"),
        ));
    }
    Ok(v1::Ready::decode_length_delimited(bytes.as_slice())?)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// What the daemon makes of guests that connect one after the other and send these bytes.
    async fn wait_for(sent: &[&[u8]]) -> Result<Ready, ReadyError> {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path(), "m").unwrap();
        layout.create().unwrap();
        // A daemon that was killed leaves its socket.
        drop(std::os::unix::net::UnixListener::bind(layout.vsock_port(READY_PORT)).unwrap());
        let listener = ReadyListener::bind(&layout).unwrap();
        let guest = async {
            for bytes in sent {
                let mut stream = unix_socket::connect(&layout.vsock_port(READY_PORT))
                    .await
                    .unwrap();
                // The daemon hangs up on endless ones.
                drop(stream.write_all(bytes).await);
            }
        };
        let (ready, ()) = tokio::join!(listener.wait(Duration::from_millis(300)), guest);
        assert!(!layout.vsock_port(READY_PORT).exists());
        ready
    }

    fn signal(protocol_version: u32) -> Vec<u8> {
        v1::Ready {
            protocol_version,
            agent_version: "1.0\n".to_owned(),
            main_entered_ns: 5,
            ready_ns: 7,
        }
        .encode_length_delimited_to_vec()
    }

    #[tokio::test]
    async fn the_signal_is_found_behind_nonsense() {
        let endless = vec![0xff; 3 * MAX_READY];
        let ready = wait_for(&[b"", b"\x05abc", &endless, &signal(PROTOCOL_VERSION)])
            .await
            .unwrap();
        assert_eq!(
            (ready.agent_version.as_str(), ready.ready),
            ("1.0 ", Duration::from_nanos(7))
        );
    }

    #[tokio::test]
    async fn a_guest_that_goes_on_is_ready_when_it_accepts_and_not_for_ever_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path(), "m").unwrap();
        layout.create().unwrap();
        let short = Duration::from_millis(50);
        let nobody = goes_on(&layout, short).await;
        assert!(matches!(nobody, Err(ReadyError::Silent(_))), "{nobody:?}");
        let vmm = async {
            sleep(short).await;
            let listener = unix_socket::listen(&layout.vsock()).unwrap();
            let (mut guest, _) = listener.accept().await.unwrap();
            guest.write_all(b"OK 7\n").await.unwrap();
            let (refused, _) = listener.accept().await.unwrap();
            drop(refused);
            let (stalled, _) = listener.accept().await.unwrap();
            sleep(2 * short).await;
            drop(stalled);
        };
        let daemon = async {
            goes_on(&layout, Duration::from_secs(30)).await.unwrap();
            // The guest has no agent: it will not have one later, either.
            assert!(goes_on(&layout, Duration::from_secs(30)).await.is_err());
            assert!(goes_on(&layout, short).await.is_err());
        };
        tokio::join!(vmm, daemon);
    }

    #[tokio::test]
    async fn nothing_and_nonsense_are_timeouts_and_another_version_is_refused() {
        assert!(matches!(
            wait_for(&[]).await,
            Err(ReadyError::Timeout { heard: None, .. })
        ));
        assert!(matches!(
            wait_for(&[b"x"]).await,
            Err(ReadyError::Timeout { heard: Some(_), .. })
        ));
        assert!(matches!(
            wait_for(&[&signal(2)]).await,
            Err(ReadyError::Version { version: 2 })
        ));
    }
}
