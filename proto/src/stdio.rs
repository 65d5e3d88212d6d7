//! The byte streams of container processes between daemon and agent: handshake and frames, encoding only.
//!
//! The daemon connects to guest vsock port [`STDIO_PORT`] once per process for its output and once more for its stdin,
//! and opens each connection with a [`Hello`]; the agent answers one [`Status`] byte. Then:
//!
//! - [`Role::Output`]: the agent sends frames ([`FrameHeader`] + payload) from the wanted offset on. Offsets count the
//!   payload bytes of stdout and stderr together, in the order in which the agent read them. The daemon sends back
//!   8-byte little-endian offsets up to which it has stored everything; until then the agent keeps the bytes, at most
//!   [`WINDOW`] of them, and beyond that it stops reading the process's pipes. A frame of length 0 says that this stream
//!   has ended. When all streams have ended and been sent, the agent shuts down its sending side.
//! - [`Role::Stdin`]: raw bytes to the process; shutting down the sending side is end of file.
//! - [`Role::StdinKept`]: the same, but the end of the connection is no end of file: the process's stdin stays open for the
//!   next one.
//!
//! A second connection for the same process and role replaces the first, which is closed. Stdin has a connection of its
//! own because a process that does not read its stdin must not hold up acknowledgements.

use std::fmt;

/// gRPC service `agent.v1.Agent`, listened on by the agent.
pub const AGENT_PORT: u32 = 1024;
/// Listened on by the daemon (through the VMM's unix socket); the agent's `Ready` arrives here.
pub const READY_PORT: u32 = 1025;
/// This module's streams, listened on by the agent.
pub const STDIO_PORT: u32 = 1026;
/// Bytes of unacknowledged output that the agent keeps per process.
pub const WINDOW: usize = 256 * 1024;
/// Longest payload of one frame.
pub const MAX_FRAME: usize = 64 * 1024;
/// Longest id in a hello, bytes.
pub const MAX_ID: usize = 128;

const MAGIC: [u8; 4] = *b"cpio";
/// Bytes of a [`Hello`] before the two ids.
pub const HELLO_FIXED_LEN: usize = 16;
/// Bytes of an encoded [`FrameHeader`].
pub const FRAME_HEADER_LEN: usize = 5;

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// stdout and stderr, agent to daemon.
    Output,
    /// stdin, daemon to agent.
    Stdin,
    /// stdin that outlives the connection.
    StdinKept,
}

/// Opens a stdio connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// What the connection carries.
    pub role: Role,
    /// First output byte wanted; 0 for stdin.
    pub offset: u64,
    /// The container.
    pub container_id: String,
    /// Empty: the container's init process.
    pub exec_id: String,
}

/// The agent's answer to a [`Hello`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The stream follows.
    Ok,
    /// No such container or process.
    NotFound,
    /// Bytes before the wanted offset were acknowledged and are gone, or the offset lies ahead of the output.
    OffsetGone,
    /// The process was created without stdin.
    NoStdin,
}

/// One of a process's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// File descriptor 1, or the terminal.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// Precedes each payload on an output connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Where the payload came from.
    pub stream: Stream,
    /// Payload bytes, at most [`MAX_FRAME`]; 0: the stream has ended.
    pub len: u32,
}

/// Bytes that are no valid message of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// The hello does not begin with the magic bytes.
    Magic,
    /// Unknown role byte.
    Role(u8),
    /// Unknown status byte.
    Status(u8),
    /// Unknown stream byte.
    Stream(u8),
    /// A frame longer than [`MAX_FRAME`].
    FrameTooLong(u32),
    /// An id that is longer than [`MAX_ID`], or not UTF-8.
    Id,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => write!(f, "stdio hello without the magic bytes"),
            Self::Role(byte) => write!(f, "unknown stdio role {byte}"),
            Self::Status(byte) => write!(f, "unknown stdio status {byte}"),
            Self::Stream(byte) => write!(f, "unknown output stream {byte}"),
            Self::FrameTooLong(len) => write!(f, "stdio frame of {len} bytes, more than {MAX_FRAME}"),
            Self::Id => write!(f, "stdio id longer than {MAX_ID} bytes or not UTF-8"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// What the fixed part of a hello says of the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HelloFixed {
    role: Role,
    offset: u64,
    container_id_len: u8,
    exec_id_len: u8,
}

impl Hello {
    /// Bytes to send.
    ///
    /// # Errors
    /// [`DecodeError::Id`] when an id is too long.
    pub fn encode(&self) -> Result<Vec<u8>, DecodeError> {
        let mut bytes = Vec::with_capacity(HELLO_FIXED_LEN + self.container_id.len() + self.exec_id.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.push(match self.role {
            Role::Output => 1,
            Role::Stdin => 2,
            Role::StdinKept => 3,
        });
        bytes.push(0);
        bytes.push(id_len(&self.container_id)?);
        bytes.push(id_len(&self.exec_id)?);
        bytes.extend_from_slice(&self.offset.to_le_bytes());
        bytes.extend_from_slice(self.container_id.as_bytes());
        bytes.extend_from_slice(self.exec_id.as_bytes());
        Ok(bytes)
    }
}

fn id_len(id: &str) -> Result<u8, DecodeError> {
    match u8::try_from(id.len()) {
        Ok(len) if usize::from(len) <= MAX_ID => Ok(len),
        _ => Err(DecodeError::Id),
    }
}

impl HelloFixed {
    /// Reads the first [`HELLO_FIXED_LEN`] bytes of a hello.
    ///
    /// # Errors
    /// When they are no hello.
    pub fn decode(bytes: &[u8; HELLO_FIXED_LEN]) -> Result<Self, DecodeError> {
        let [
            m0,
            m1,
            m2,
            m3,
            role,
            _,
            container_id_len,
            exec_id_len,
            offset @ ..,
        ] = *bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(DecodeError::Magic);
        }
        let role = match role {
            1 => Role::Output,
            2 => Role::Stdin,
            3 => Role::StdinKept,
            other => return Err(DecodeError::Role(other)),
        };
        if usize::from(container_id_len) > MAX_ID || usize::from(exec_id_len) > MAX_ID {
            return Err(DecodeError::Id);
        }
        Ok(Self {
            role,
            offset: u64::from_le_bytes(offset),
            container_id_len,
            exec_id_len,
        })
    }

    /// How many bytes of ids follow, at most 2 * [`MAX_ID`].
    #[must_use]
    pub fn ids_len(&self) -> usize {
        usize::from(self.container_id_len) + usize::from(self.exec_id_len)
    }

    /// Puts the hello together from the bytes of its ids.
    ///
    /// # Errors
    /// When `ids` has another length than [`Self::ids_len`] or is not UTF-8.
    pub fn with_ids(self, ids: &[u8]) -> Result<Hello, DecodeError> {
        if ids.len() != self.ids_len() {
            return Err(DecodeError::Id);
        }
        let (container_id, exec_id) = ids.split_at(usize::from(self.container_id_len));
        let text = |id: &[u8]| String::from_utf8(id.to_vec()).map_err(|_| DecodeError::Id);
        Ok(Hello {
            role: self.role,
            offset: self.offset,
            container_id: text(container_id)?,
            exec_id: text(exec_id)?,
        })
    }
}

impl Status {
    /// The byte to send.
    #[must_use]
    pub fn encode(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::NotFound => 1,
            Self::OffsetGone => 2,
            Self::NoStdin => 3,
        }
    }

    /// Reads the answer.
    ///
    /// # Errors
    /// When the byte is unknown.
    pub fn decode(byte: u8) -> Result<Self, DecodeError> {
        match byte {
            0 => Ok(Self::Ok),
            1 => Ok(Self::NotFound),
            2 => Ok(Self::OffsetGone),
            3 => Ok(Self::NoStdin),
            other => Err(DecodeError::Status(other)),
        }
    }
}

impl FrameHeader {
    /// Bytes to send before the payload.
    #[must_use]
    pub fn encode(self) -> [u8; FRAME_HEADER_LEN] {
        let [l0, l1, l2, l3] = self.len.to_le_bytes();
        let stream = match self.stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        };
        [stream, l0, l1, l2, l3]
    }

    /// Reads a header.
    ///
    /// # Errors
    /// When the stream is unknown or the frame too long.
    pub fn decode(bytes: [u8; FRAME_HEADER_LEN]) -> Result<Self, DecodeError> {
        let [stream, l0, l1, l2, l3] = bytes;
        let stream = match stream {
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            other => return Err(DecodeError::Stream(other)),
        };
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        if usize::try_from(len).is_ok_and(|len| len <= MAX_FRAME) {
            Ok(Self { stream, len })
        } else {
            Err(DecodeError::FrameTooLong(len))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_survives_the_wire() {
        let hello = Hello {
            role: Role::Output,
            offset: 1 << 40,
            container_id: "c".repeat(MAX_ID),
            exec_id: "probe-7".to_owned(),
        };
        let bytes = hello.encode().unwrap();
        let fixed = HelloFixed::decode(bytes[..HELLO_FIXED_LEN].try_into().unwrap()).unwrap();
        assert_eq!(fixed.with_ids(&bytes[HELLO_FIXED_LEN..]).unwrap(), hello);
    }

    #[test]
    fn ids_that_are_too_long_are_refused_on_both_sides() {
        let hello = Hello {
            role: Role::Stdin,
            offset: 0,
            container_id: "c".repeat(MAX_ID + 1),
            exec_id: String::new(),
        };
        assert_eq!(hello.encode(), Err(DecodeError::Id));
        let mut bytes = [0; HELLO_FIXED_LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = 1;
        bytes[6] = 200;
        assert_eq!(HelloFixed::decode(&bytes), Err(DecodeError::Id));
    }

    #[test]
    fn frames_longer_than_the_limit_are_refused() {
        let longest = FrameHeader {
            stream: Stream::Stderr,
            len: 64 * 1024,
        };
        assert_eq!(FrameHeader::decode(longest.encode()), Ok(longest));
        let mut bytes = longest.encode();
        bytes[1] = 1;
        assert_eq!(
            FrameHeader::decode(bytes),
            Err(DecodeError::FrameTooLong(64 * 1024 + 1))
        );
    }

    #[test]
    fn every_status_byte_means_one_thing() {
        for byte in 0..=u8::MAX {
            match Status::decode(byte) {
                Ok(status) => assert_eq!(status.encode(), byte),
                Err(error) => assert_eq!(error, DecodeError::Status(byte)),
            }
        }
    }
}
