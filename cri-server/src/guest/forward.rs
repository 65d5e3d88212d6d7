//! Connections to TCP ports inside the pod, dialled by the agent (`proto::port_forward`).

use std::{io, time::Duration};

use proto::port_forward::{ANSWER_LEN, Answer, DecodeError, Hello, PORT_FORWARD_PORT};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};

use super::connect::{DialError, Dialer};

/// For the agent's answer: its own limits, and a guest under heavy load.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why there is no connection to a port.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Nobody listens there, or does not accept.
    #[error("connect to port {port} in the pod")]
    Refused {
        /// Which port.
        port: u16,
        /// What connect(2) answered in the guest.
        source: io::Error,
    },
    /// No connection to the guest.
    #[error("reach the pod for its port {port}")]
    Dial {
        /// Which port.
        port: u16,
        /// Why.
        source: DialError,
    },
    /// The connection to the guest broke, or nothing came in time.
    #[error("wait for the pod's answer about its port {port}")]
    Lost {
        /// Which port.
        port: u16,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The guest does not keep to the protocol.
    #[error("understand the pod's answer about its port {port}")]
    Protocol {
        /// Which port.
        port: u16,
        /// How.
        source: DecodeError,
    },
}

/// A connection to `port` of the pod's loopback interface: raw bytes, each direction ends by itself.
///
/// # Errors
/// [`ForwardError`]
pub async fn forward(dialer: &Dialer, port: u16) -> Result<UnixStream, ForwardError> {
    let dialled = dialer.dial(PORT_FORWARD_PORT).await;
    let mut stream = dialled.map_err(|source| ForwardError::Dial { port, source })?;
    let exchange = timeout(DEADLINE, async {
        stream.write_all(&Hello { port }.encode()).await?;
        let mut answer = [0; ANSWER_LEN];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    });
    let answer = exchange
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|source| ForwardError::Lost { port, source })?;
    match Answer::decode(answer) {
        Ok(Answer::Connected) => Ok(stream),
        Ok(Answer::Refused(errno)) => Err(ForwardError::Refused {
            port,
            source: io::Error::from_raw_os_error(errno),
        }),
        Err(source) => Err(ForwardError::Protocol { port, source }),
    }
}
