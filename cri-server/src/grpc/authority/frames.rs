//! The client's half of an HTTP/2 connection (RFC 9113), cut into frames as far as it takes to find header blocks.
//!
//! Whatever is not as it should be ends the cutting: from there on the bytes pass as they come, and h2, which understands
//! all of them, refuses what is wrong in its own way. What waits here for more bytes is bounded by [`MAX_BLOCK`].

use super::hpack::with_plain_authority;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
/// RFC 9113: what a frame's payload may have unless we announced more, and we do not.
const MAX_PAYLOAD: usize = 16_384;
/// Frames of one header block, all together. h2 takes less than half of it.
const MAX_BLOCK: usize = 65_536;

const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Bytes of the fields that the flag PRIORITY announces.
const PRIORITY_LENGTH: usize = 5;

/// Where in the connection the next byte belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Preface,
    /// At the beginning of a frame.
    Frame,
    /// In a frame that passes as it is, with so many bytes to come.
    Payload {
        left: usize,
    },
    /// In the frames of a header block; so many bytes of them were looked at.
    Block {
        looked_at: usize,
    },
    /// Nothing is looked at any more.
    Transparent,
}

/// Takes bytes as they arrive, in pieces of any size, and gives those that h2 shall see.
#[derive(Debug)]
pub(super) struct Rewriter {
    place: Place,
    /// Arrived, and not decided about.
    waiting: Vec<u8>,
}

/// The nine bytes before a payload.
#[derive(Debug, Clone, Copy)]
struct Header {
    length: usize,
    kind: u8,
    flags: u8,
    stream: [u8; 4],
}

/// What a whole header block says besides its fields.
struct Block {
    flags: u8,
    stream: [u8; 4],
    priority: Vec<u8>,
    fields: Vec<u8>,
}

impl Rewriter {
    pub(super) fn new() -> Self {
        Self {
            place: Place::Preface,
            waiting: Vec::new(),
        }
    }

    /// More of the connection: what can be passed on is appended to `out`.
    pub(super) fn push(&mut self, arrived: &[u8], out: &mut Vec<u8>) {
        self.waiting.extend_from_slice(arrived);
        let mut at = 0;
        while let Some(taken) = self.step(at, out) {
            at += taken;
        }
        self.waiting.drain(..at);
    }

    /// The connection ended: what waited for more comes out as it is.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.waiting);
        self.place = Place::Transparent;
    }

    /// One decision about the bytes from `at` on: how many of them are settled; `None` when it takes more of them.
    fn step(&mut self, at: usize, out: &mut Vec<u8>) -> Option<usize> {
        let waiting = &self.waiting[at..];
        match self.place {
            _ if waiting.is_empty() => None,
            Place::Transparent => {
                out.extend_from_slice(waiting);
                Some(waiting.len())
            }
            Place::Preface if !PREFACE.starts_with(&waiting[..waiting.len().min(PREFACE.len())]) => {
                self.go(Place::Transparent, 0)
            }
            Place::Preface if waiting.len() < PREFACE.len() => None,
            Place::Preface => {
                out.extend_from_slice(PREFACE);
                self.go(Place::Frame, PREFACE.len())
            }
            Place::Payload { left } => {
                let taken = left.min(waiting.len());
                out.extend_from_slice(&waiting[..taken]);
                self.go(Place::after(left - taken), taken)
            }
            Place::Frame => {
                let header = Header::read(waiting)?;
                if header.kind == HEADERS {
                    return self.go(Place::Block { looked_at: 0 }, 0);
                }
                out.extend_from_slice(&waiting[..FRAME_HEADER]);
                self.go(Place::after(header.length), FRAME_HEADER)
            }
            Place::Block { looked_at } => self.look_at_block(at, looked_at, out),
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "the caller's way to say that it goes on")]
    fn go(&mut self, place: Place, taken: usize) -> Option<usize> {
        self.place = place;
        Some(taken)
    }

    /// The next frame of a header block; the block passes once its last frame is there.
    fn look_at_block(&mut self, at: usize, looked_at: usize, out: &mut Vec<u8>) -> Option<usize> {
        let block = &self.waiting[at..];
        let header = Header::read(&block[looked_at..])?;
        let end = looked_at + FRAME_HEADER + header.length;
        let expected = if looked_at == 0 { HEADERS } else { CONTINUATION };
        if header.kind != expected || header.length > MAX_PAYLOAD || end > MAX_BLOCK {
            return self.go(Place::Transparent, 0);
        }
        if block.len() < end {
            return None;
        }
        if header.flags & END_HEADERS == 0 {
            return self.go(Place::Block { looked_at: end }, 0);
        }
        let frames = &block[..end];
        match Block::read(frames).map(|block| (with_plain_authority(&block.fields), block)) {
            Some((Ok(None), _)) => out.extend_from_slice(frames),
            Some((Ok(Some(fields)), block)) => Block { fields, ..block }.write(out),
            Some((Err(_), _)) | None => return self.go(Place::Transparent, 0),
        }
        self.go(Place::Frame, end)
    }
}

impl Place {
    fn after(left: usize) -> Self {
        if left == 0 {
            Self::Frame
        } else {
            Self::Payload { left }
        }
    }
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let (&[high, middle, low, kind, flags, a, b, c, d], _) = bytes.split_first_chunk()?;
        Some(Self {
            length: usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low),
            kind,
            flags,
            stream: [a, b, c, d],
        })
    }

    fn write(self, out: &mut Vec<u8>) {
        let length = u32::try_from(self.length).unwrap_or(0).to_be_bytes();
        out.extend_from_slice(&length[1..]);
        out.extend_from_slice(&[self.kind, self.flags]);
        out.extend_from_slice(&self.stream);
    }
}

impl Block {
    /// Of HEADERS and all its CONTINUATIONs, whose lengths are known to be right; `None` when something else is wrong.
    fn read(frames: &[u8]) -> Option<Self> {
        let first = Header::read(frames)?;
        let mut rest = &frames[FRAME_HEADER..];
        let mut payload = rest.split_off(..first.length)?;
        if first.flags & PADDED != 0 {
            let padding = usize::from(*payload.split_off_first()?);
            payload = &payload[..payload.len().checked_sub(padding)?];
        }
        let priority = if first.flags & PRIORITY == 0 {
            0
        } else {
            PRIORITY_LENGTH
        };
        let priority = payload.split_off(..priority)?.to_vec();
        let mut fields = payload.to_vec();
        while !rest.is_empty() {
            let header = Header::read(rest)?;
            // Fields of another stream in the midst of these.
            if header.stream != first.stream {
                return None;
            }
            fields.extend_from_slice(rest.get(FRAME_HEADER..FRAME_HEADER + header.length)?);
            rest = &rest[FRAME_HEADER + header.length..];
        }
        Some(Self {
            flags: first.flags & !(PADDED | END_HEADERS),
            stream: first.stream,
            priority,
            fields,
        })
    }

    /// In as few frames as it takes, without padding.
    fn write(&self, out: &mut Vec<u8>) {
        let (mut kind, mut flags) = (HEADERS, self.flags);
        let payload = [&self.priority[..], &self.fields].concat();
        // A block without a field is a frame too.
        let pieces = payload.len().div_ceil(MAX_PAYLOAD).max(1);
        for piece in 0..pieces {
            let end = payload.len().min((piece + 1) * MAX_PAYLOAD);
            let part = &payload[piece * MAX_PAYLOAD..end];
            let last = if piece + 1 == pieces { END_HEADERS } else { 0 };
            Header {
                length: part.len(),
                kind,
                flags: flags | last,
                stream: self.stream,
            }
            .write(out);
            out.extend_from_slice(part);
            (kind, flags) = (CONTINUATION, 0);
        }
    }
}

/// A whole connection's bytes as h2 sees them when they arrive in pieces of this size.
#[cfg(any(test, feature = "testing"))]
pub(in crate::grpc) fn rewritten(bytes: &[u8], piece: usize) -> Vec<u8> {
    let (mut rewriter, mut out) = (Rewriter::new(), Vec::new());
    for part in bytes.chunks(piece.max(1)) {
        rewriter.push(part, &mut out);
    }
    rewriter.finish(&mut out);
    out
}

#[cfg(test)]
mod tests;
