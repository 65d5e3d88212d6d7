//! Connections of a port-forward between daemon and agent: handshake only, raw bytes afterwards.
//!
//! The daemon connects to guest vsock port [`PORT_FORWARD_PORT`] once per forwarded connection and sends a [`Hello`]. The
//! agent dials that TCP port on the pod's loopback interface, 127.0.0.1 and then ::1, and answers an [`Answer`]. After
//! success both sides send raw bytes; shutting down a sending side is passed on as end of file, and the connection ends when
//! both are. Closing it in any other way resets what the agent dialled.

use std::fmt;

/// This module's connections, listened on by the agent.
pub const PORT_FORWARD_PORT: u32 = 1027;
/// Bytes of an encoded [`Hello`].
pub const HELLO_LEN: usize = 8;
/// Bytes of an encoded [`Answer`].
pub const ANSWER_LEN: usize = 8;

const MAGIC: [u8; 4] = *b"cppf";
/// Largest errno of Linux.
const MAX_ERRNO: i32 = 4095;

/// Opens a forwarded connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// TCP port in the pod, not 0.
    pub port: u16,
}

/// What became of the dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Raw bytes follow.
    Connected,
    /// errno of connect(2) to 127.0.0.1, positive: the connection ends.
    Refused(i32),
}

/// Bytes that are no valid message of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// The message does not begin with the magic bytes.
    Magic,
    /// Port 0.
    Port,
    /// Not an errno.
    Errno(i32),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => write!(f, "port-forward message without the magic bytes"),
            Self::Port => write!(f, "port-forward to port 0"),
            Self::Errno(errno) => write!(f, "port-forward answer with the errno {errno}"),
        }
    }
}

impl std::error::Error for DecodeError {}

impl Hello {
    /// Bytes to send.
    #[must_use]
    pub fn encode(self) -> [u8; HELLO_LEN] {
        let [m0, m1, m2, m3] = MAGIC;
        let [p0, p1] = self.port.to_le_bytes();
        [m0, m1, m2, m3, p0, p1, 0, 0]
    }

    /// Reads a hello.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(bytes: [u8; HELLO_LEN]) -> Result<Self, DecodeError> {
        let [m0, m1, m2, m3, p0, p1, _, _] = bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(DecodeError::Magic);
        }
        match u16::from_le_bytes([p0, p1]) {
            0 => Err(DecodeError::Port),
            port => Ok(Self { port }),
        }
    }
}

impl Answer {
    /// Bytes to send.
    #[must_use]
    pub fn encode(self) -> [u8; ANSWER_LEN] {
        let errno = match self {
            Self::Connected => 0,
            Self::Refused(errno) => errno,
        };
        let [m0, m1, m2, m3] = MAGIC;
        let [e0, e1, e2, e3] = errno.to_le_bytes();
        [m0, m1, m2, m3, e0, e1, e2, e3]
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(bytes: [u8; ANSWER_LEN]) -> Result<Self, DecodeError> {
        let [m0, m1, m2, m3, e0, e1, e2, e3] = bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(DecodeError::Magic);
        }
        match i32::from_le_bytes([e0, e1, e2, e3]) {
            0 => Ok(Self::Connected),
            errno @ 1..=MAX_ERRNO => Ok(Self::Refused(errno)),
            other => Err(DecodeError::Errno(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let hello = Hello { port: 0xabcd };
        assert_eq!(Hello::decode(hello.encode()), Ok(hello));
        for answer in [Answer::Connected, Answer::Refused(111)] {
            assert_eq!(Answer::decode(answer.encode()), Ok(answer));
        }
    }

    #[test]
    fn nonsense_is_refused_on_both_sides() {
        assert_eq!(Hello::decode(*b"GET / HT"), Err(DecodeError::Magic));
        assert_eq!(Hello::decode(Hello { port: 0 }.encode()), Err(DecodeError::Port));
        assert_eq!(Answer::decode(*b"HTTP/1.1"), Err(DecodeError::Magic));
        for errno in [-1, 4096, i32::MIN] {
            assert_eq!(
                Answer::decode(Answer::Refused(errno).encode()),
                Err(DecodeError::Errno(errno))
            );
        }
    }
}
