//! The host's side of opening a connection to the guest: one line, `CONNECT <port>\n`, before the bytes.
//!
//! The line is peeked at, never read beyond its end: what the client sends behind it belongs to the guest.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{MsgFlags, recv};

/// Longest possible line: "CONNECT 4294967295\n" and a carriage return.
const MAX_LINE: usize = 20;

/// What the client has said so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// The line is not complete.
    Incomplete,
    /// It wants this port of the guest.
    Port(u32),
    /// It went away, or it speaks something else.
    Refused,
}

/// Reads the line if it is complete; `socket` is non-blocking.
pub(super) fn read_greeting(socket: &UnixStream) -> io::Result<Greeting> {
    let mut bytes = [0; MAX_LINE];
    let peeked = match recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK) {
        Ok(0) => return Ok(Greeting::Refused),
        Ok(count) => count,
        Err(nix::Error::EAGAIN) => return Ok(Greeting::Incomplete),
        Err(error) => return Err(error.into()),
    };
    let (greeting, length) = parse_line(bytes.get(..peeked).unwrap_or_default());
    if matches!(greeting, Greeting::Port(_)) {
        // These bytes are there: no other reader takes them between the two calls.
        recv(socket.as_raw_fd(), &mut bytes[..length], MsgFlags::empty())?;
    }
    Ok(greeting)
}

/// The greeting in `bytes`, and how long its line is.
pub(super) fn parse_line(bytes: &[u8]) -> (Greeting, usize) {
    let Some(end) = bytes.iter().take(MAX_LINE).position(|byte| *byte == b'\n') else {
        let greeting = if bytes.len() < MAX_LINE {
            Greeting::Incomplete
        } else {
            Greeting::Refused
        };
        return (greeting, 0);
    };
    let port = std::str::from_utf8(&bytes[..end])
        .ok()
        .and_then(|line| line.trim_end_matches('\r').strip_prefix("CONNECT "))
        // u32's own parser takes a sign; a port has none.
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok());
    (port.map_or(Greeting::Refused, Greeting::Port), end + 1)
}
