//! Frames of SPDY/3.1, decoded piece by piece and encoded. Pure: bytes in, frames out.
//!
//! A data frame may be 16 MiB long: it comes out in the pieces in which it arrived, so that the buffer stays small.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::{
    error::SpdyError,
    headers::{HeaderReader, HeaderWriter, Headers},
};

/// Bytes before every payload.
const HEADER: usize = 8;
/// Longest control frame that is taken: header blocks are short, and so is every other kind.
const MAX_CONTROL: usize = 16 * 1024;
/// Marks a control frame.
const CONTROL: u32 = 0x8000_0000;
const VERSION: u16 = 3;
const FIN: u8 = 1;
/// Stream ids and windows have 31 bits.
const MASK: u32 = 0x7fff_ffff;
/// The setting that says how much a peer takes on each stream before it says more.
const INITIAL_WINDOW_SIZE: u32 = 7;

mod kind {
    pub(super) const SYN_STREAM: u16 = 1;
    pub(super) const SYN_REPLY: u16 = 2;
    pub(super) const RST_STREAM: u16 = 3;
    pub(super) const SETTINGS: u16 = 4;
    pub(super) const PING: u16 = 6;
    pub(super) const GOAWAY: u16 = 7;
    pub(super) const HEADERS: u16 = 8;
    pub(super) const WINDOW_UPDATE: u16 = 9;
}

/// Why a stream is broken off, as RST_STREAM says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResetReason {
    InvalidStream,
    Refused,
    Cancel,
}

/// Why a connection ends, as GOAWAY says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GoAwayReason {
    Done,
    ProtocolError,
}

/// What a peer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    SynStream {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    /// A piece of a data frame; `fin` is told with the last.
    Data {
        stream: u32,
        fin: bool,
        bytes: Bytes,
    },
    Reset {
        stream: u32,
    },
    /// `None`: nothing of it concerns us.
    Settings {
        initial_window: Option<u32>,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// More headers of a stream: only their FIN means anything here.
    Headers {
        stream: u32,
        fin: bool,
    },
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
}

/// Takes a connection's bytes apart.
#[derive(Debug)]
pub(super) struct Decoder {
    buffer: BytesMut,
    headers: HeaderReader,
    data: Option<Payload>,
}

/// What is still to come of a data frame.
#[derive(Debug, Clone, Copy)]
struct Payload {
    stream: u32,
    fin: bool,
    left: usize,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            buffer: BytesMut::new(),
            headers: HeaderReader::new(),
            data: None,
        }
    }

    /// Where bytes that were received go.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next frame, once its bytes are there; every byte belongs to one frame only.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, SpdyError> {
        loop {
            if let Some(payload) = self.data.take() {
                if payload.left > 0 && self.buffer.is_empty() {
                    self.data = Some(payload);
                    return Ok(None);
                }
                return Ok(Some(self.piece(payload)));
            }
            let Some(header) = self.buffer.first_chunk::<HEADER>() else {
                return Ok(None);
            };
            let [word0, word1, word2, word3, flags, length @ ..] = *header;
            let word = u32::from_be_bytes([word0, word1, word2, word3]);
            let [length0, length1, length2] = length;
            let length = u32::from_be_bytes([0, length0, length1, length2]);
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if word & CONTROL == 0 {
                self.buffer.advance(HEADER);
                self.data = Some(Payload {
                    stream: word,
                    fin: flags & FIN != 0,
                    left: length,
                });
                continue;
            }
            let version = u16::from_be_bytes([word0 & 0x7f, word1]);
            let kind = u16::from_be_bytes([word2, word3]);
            if version != VERSION {
                return Err(SpdyError::Version(version));
            }
            if length > MAX_CONTROL {
                return Err(SpdyError::TooLong { kind, length });
            }
            if self.buffer.len() < HEADER + length {
                return Ok(None);
            }
            self.buffer.advance(HEADER);
            let payload = self.buffer.split_to(length);
            if let Some(frame) = self.control(kind, flags, &payload)? {
                return Ok(Some(frame));
            }
        }
    }

    fn piece(&mut self, payload: Payload) -> Frame {
        let bytes = self.buffer.split_to(payload.left.min(self.buffer.len())).freeze();
        let left = payload.left - bytes.len();
        if left > 0 {
            self.data = Some(Payload { left, ..payload });
        }
        Frame::Data {
            stream: payload.stream,
            fin: payload.fin && left == 0,
            bytes,
        }
    }

    /// `None`: a kind that nobody knows, which is to be ignored.
    fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> Result<Option<Frame>, SpdyError> {
        let control = Control { kind, payload };
        let fin = flags & FIN != 0;
        Ok(Some(match kind {
            kind::SYN_STREAM => Frame::SynStream {
                stream: control.number(0)?,
                fin,
                // The associated stream, priority and slot are of no use here.
                headers: self.headers.read(control.rest(10)?)?,
            },
            kind::SYN_REPLY => Frame::SynReply {
                stream: control.number(0)?,
                fin,
                headers: self.headers.read(control.rest(4)?)?,
            },
            kind::HEADERS => {
                let stream = control.number(0)?;
                // Read, because all blocks are one stream.
                self.headers.read(control.rest(4)?)?;
                Frame::Headers { stream, fin }
            }
            kind::RST_STREAM => {
                control.is_long(8)?;
                Frame::Reset {
                    stream: control.number(0)?,
                }
            }
            kind::SETTINGS => Frame::Settings {
                initial_window: control.initial_window()?,
            },
            kind::PING => {
                control.is_long(4)?;
                Frame::Ping { id: control.word(0)? }
            }
            kind::GOAWAY => {
                control.is_long(8)?;
                Frame::GoAway
            }
            kind::WINDOW_UPDATE => {
                control.is_long(8)?;
                Frame::WindowUpdate {
                    stream: control.number(0)?,
                    delta: control.number(4)?,
                }
            }
            _ => return Ok(None),
        }))
    }
}

/// A control frame that is whole.
#[derive(Clone, Copy)]
struct Control<'p> {
    kind: u16,
    payload: &'p [u8],
}

impl<'p> Control<'p> {
    fn wrong(self) -> SpdyError {
        SpdyError::Length {
            kind: self.kind,
            length: self.payload.len(),
        }
    }

    fn is_long(self, length: usize) -> Result<(), SpdyError> {
        if self.payload.len() == length {
            Ok(())
        } else {
            Err(self.wrong())
        }
    }

    fn rest(self, from: usize) -> Result<&'p [u8], SpdyError> {
        self.payload.get(from..).ok_or_else(|| self.wrong())
    }

    fn word(self, at: usize) -> Result<u32, SpdyError> {
        let bytes = self.rest(at)?.first_chunk::<4>().ok_or_else(|| self.wrong())?;
        Ok(u32::from_be_bytes(*bytes))
    }

    /// A stream id or a window.
    fn number(self, at: usize) -> Result<u32, SpdyError> {
        Ok(self.word(at)? & MASK)
    }

    /// Of SETTINGS.
    fn initial_window(self) -> Result<Option<u32>, SpdyError> {
        let entries = usize::try_from(self.word(0)?).unwrap_or(usize::MAX);
        self.is_long(entries.saturating_mul(8).saturating_add(4))?;
        let mut initial_window = None;
        for at in (4..self.payload.len()).step_by(8) {
            // In front of the id is a byte of flags.
            if self.word(at)? & 0x00ff_ffff == INITIAL_WINDOW_SIZE {
                initial_window = Some(self.number(at + 4)?);
            }
        }
        Ok(initial_window)
    }
}

/// Puts frames together.
#[derive(Debug)]
pub(super) struct Encoder {
    headers: HeaderWriter,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self {
            headers: HeaderWriter::new(),
        }
    }

    pub(super) fn syn_reply(&mut self, stream: u32, out: &mut BytesMut) {
        let block = self.headers.write(&Headers::new());
        control(kind::SYN_REPLY, 0, 4 + block.len(), out);
        out.put_u32(stream);
        out.put_slice(&block);
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn syn_stream(&mut self, stream: u32, headers: &Headers, out: &mut BytesMut) {
        let block = self.headers.write(headers);
        control(kind::SYN_STREAM, 0, 10 + block.len(), out);
        out.put_u32(stream);
        out.put_bytes(0, 6);
        out.put_slice(&block);
    }
}

/// The header of a data frame; its payload follows.
pub(super) fn data(stream: u32, length: usize, fin: bool, out: &mut BytesMut) {
    out.put_u32(stream);
    flags_and_length(u8::from(fin), length, out);
}

pub(super) fn reset(stream: u32, reason: ResetReason, out: &mut BytesMut) {
    control(kind::RST_STREAM, 0, 8, out);
    out.put_u32(stream);
    out.put_u32(match reason {
        ResetReason::InvalidStream => 2,
        ResetReason::Refused => 3,
        ResetReason::Cancel => 5,
    });
}

pub(super) fn ping(id: u32, out: &mut BytesMut) {
    control(kind::PING, 0, 4, out);
    out.put_u32(id);
}

pub(super) fn go_away(last_stream: u32, reason: GoAwayReason, out: &mut BytesMut) {
    control(kind::GOAWAY, 0, 8, out);
    out.put_u32(last_stream);
    out.put_u32(match reason {
        GoAwayReason::Done => 0,
        GoAwayReason::ProtocolError => 1,
    });
}

/// Stream 0 is the connection.
pub(super) fn window_update(stream: u32, delta: u32, out: &mut BytesMut) {
    control(kind::WINDOW_UPDATE, 0, 8, out);
    out.put_u32(stream);
    out.put_u32(delta);
}

fn control(kind: u16, flags: u8, length: usize, out: &mut BytesMut) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    flags_and_length(flags, length, out);
}

/// Callers' payloads are far below the 16 MiB that the field can hold.
fn flags_and_length(flags: u8, length: usize, out: &mut BytesMut) {
    let length = u32::try_from(length).unwrap_or_default() & 0x00ff_ffff;
    out.put_u32(u32::from(flags) << 24 | length);
}

#[cfg(test)]
mod tests;
