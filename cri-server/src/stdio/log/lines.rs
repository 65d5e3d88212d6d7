//! Output bytes to CRI log lines and back, and how far the lines have come. Pure: no clock, no file.
//!
//! A line of the log is `<timestamp> <stdout|stderr> <P|F> <text>\n`: F for a line that the process ended with a newline (or
//! that its end cut off), P for a piece of a longer one. Output counts both streams together, lines keep them apart, and what
//! has no newline yet waits here. So "how far" is a [`Progress`]: everything before `offset` is in the log, and of what
//! follows the first `logged` bytes of each stream are, too.

use proto::stdio::Stream;

use super::timestamp::Timestamp;

/// Longest text of one line, as containerd cuts it.
pub(super) const MAX_LINE: usize = 16 * 1024;
/// A line that waits for its end holds up the acknowledgement of everything after it. Half of the agent's window: beyond it
/// the line is written in pieces.
const MAX_BEHIND: u64 = proto::stdio::WINDOW as u64 / 2;

/// How much of a process's output is in its log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Everything before this offset is.
    pub(super) offset: u64,
    /// So many bytes of stdout and of stderr at or after `offset` are as well.
    pub(super) logged: [u64; 2],
}

/// Makes lines of output.
#[derive(Debug)]
pub(super) struct Lines {
    /// Of the next byte.
    offset: u64,
    streams: [State; 2],
}

#[derive(Debug, Default)]
struct State {
    /// Bytes seen since this value was made.
    received: u64,
    /// Bytes that come again although they are in the log.
    skip: u64,
    /// The beginning of a line.
    pending: Vec<u8>,
    /// Where `pending` begins; of no meaning while that is empty.
    start: Start,
}

#[derive(Debug, Default, Clone, Copy)]
struct Start {
    offset: u64,
    /// `received` of the other stream at that moment.
    other_received: u64,
}

pub(super) fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

impl Lines {
    /// Goes on at `progress.offset`.
    pub(super) fn resume(progress: Progress) -> Self {
        let mut streams = [State::default(), State::default()];
        for (state, logged) in streams.iter_mut().zip(progress.logged) {
            state.skip = logged;
        }
        Self {
            offset: progress.offset,
            streams,
        }
    }

    /// Takes the next bytes and adds the lines that they end to `out`.
    pub(super) fn push(&mut self, stream: Stream, bytes: &[u8], now: &Timestamp, out: &mut Vec<u8>) {
        let [stdout, stderr] = &mut self.streams;
        let (state, other) = match stream {
            Stream::Stdout => (stdout, &*stderr),
            Stream::Stderr => (stderr, &*stdout),
        };
        let end = self.offset + bytes.len() as u64;
        state.received += bytes.len() as u64;
        let skipped = usize::try_from(state.skip).unwrap_or(usize::MAX).min(bytes.len());
        state.skip -= skipped as u64;

        for segment in bytes
            .get(skipped..)
            .unwrap_or_default()
            .split_inclusive(|byte| *byte == b'\n')
        {
            let (mut text, ended) = match segment.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (segment, false),
            };
            while state.pending.len() + text.len() > MAX_LINE {
                let (piece, rest) = text.split_at(MAX_LINE - state.pending.len());
                write_line(out, now, stream, Tag::Piece, &[&state.pending, piece]);
                state.pending.clear();
                text = rest;
            }
            if ended {
                write_line(out, now, stream, Tag::Full, &[&state.pending, text]);
                state.pending.clear();
            } else if !text.is_empty() {
                if state.pending.is_empty() {
                    // An unended segment is the last one: its text reaches to the end of `bytes`.
                    state.start = Start {
                        offset: end - text.len() as u64,
                        other_received: other.received,
                    };
                }
                state.pending.extend_from_slice(text);
            }
        }
        self.offset = end;
        while self.offset - self.progress().offset > MAX_BEHIND {
            self.flush_oldest(now, out);
        }
    }

    /// The stream has ended: what waits becomes a full line, as containerd does it.
    pub(super) fn end(&mut self, stream: Stream, now: &Timestamp, out: &mut Vec<u8>) {
        let [stdout, stderr] = &mut self.streams;
        let state = match stream {
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        };
        if !state.pending.is_empty() {
            write_line(out, now, stream, Tag::Full, &[&state.pending]);
            state.pending.clear();
        }
    }

    fn flush_oldest(&mut self, now: &Timestamp, out: &mut Vec<u8>) {
        let [stdout, stderr] = &mut self.streams;
        let oldest = [(Stream::Stdout, stdout), (Stream::Stderr, stderr)]
            .into_iter()
            .filter(|(_, state)| !state.pending.is_empty())
            .min_by_key(|(_, state)| state.start.offset);
        if let Some((stream, state)) = oldest {
            write_line(out, now, stream, Tag::Piece, &[&state.pending]);
            state.pending.clear();
        }
    }

    /// How far the log is once everything that was put into `out` is in it.
    pub(super) fn progress(&self) -> Progress {
        let [stdout, stderr] = &self.streams;
        let waits = |state: &State| !state.pending.is_empty();
        // The other stream's bytes that were logged since the older pending line began.
        let (offset, since) = match (waits(stdout), waits(stderr)) {
            (false, false) => (self.offset, [0, 0]),
            (true, other_waits) if !other_waits || stdout.start.offset < stderr.start.offset => (
                stdout.start.offset,
                [0, stderr.logged() - stdout.start.other_received],
            ),
            _ => (
                stderr.start.offset,
                [stdout.logged() - stderr.start.other_received, 0],
            ),
        };
        let [stdout_since, stderr_since] = since;
        Progress {
            offset,
            logged: [stdout_since + stdout.skip, stderr_since + stderr.skip],
        }
    }
}

impl State {
    fn logged(&self) -> u64 {
        self.received - self.pending.len() as u64
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    Full,
    Piece,
}

fn write_line(out: &mut Vec<u8>, now: &Timestamp, stream: Stream, tag: Tag, parts: &[&[u8]]) {
    out.extend_from_slice(now.as_str().as_bytes());
    out.extend_from_slice(match stream {
        Stream::Stdout => b" stdout ",
        Stream::Stderr => b" stderr ",
    });
    out.extend_from_slice(match tag {
        Tag::Full => b"F ",
        Tag::Piece => b"P ",
    });
    for part in parts {
        out.extend_from_slice(part);
    }
    out.push(b'\n');
}

/// How many bytes of which stream one line of the log (without its newline) stands for; `None`: it is no such line.
///
/// The last line of a stream that did not end with a newline counts one byte too many. Nothing of its stream follows that
/// could be skipped wrongly.
pub(super) fn count(line: &[u8]) -> Option<(Stream, u64)> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let (_timestamp, stream, tag, text) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let newline = match tag {
        b"F" => 1,
        b"P" => 0,
        _ => return None,
    };
    Some((stream, text.len() as u64 + newline))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn log_of(pushes: &[(Stream, &[u8])], end: bool) -> (String, Progress) {
        let mut lines = Lines::resume(Progress::default());
        let (now, mut out) = (Timestamp::after_epoch(Duration::ZERO), Vec::new());
        for (stream, bytes) in pushes {
            lines.push(*stream, bytes, &now, &mut out);
        }
        if end {
            lines.end(Stream::Stdout, &now, &mut out);
            lines.end(Stream::Stderr, &now, &mut out);
        }
        let text = String::from_utf8(out)
            .unwrap()
            .replace("1970-01-01T00:00:00.000000000Z ", "");
        (text, lines.progress())
    }

    #[test]
    fn lines_are_put_together_per_stream() {
        let (log, progress) = log_of(
            &[
                (Stream::Stdout, b"one\ntw"),
                (Stream::Stderr, b"error\n"),
                (Stream::Stdout, b"o\r\n\n"),
            ],
            false,
        );
        assert_eq!(log, "stdout F one\nstderr F error\nstdout F two\r\nstdout F \n");
        assert_eq!(
            progress,
            Progress {
                offset: 16,
                logged: [0, 0]
            }
        );
    }

    #[test]
    fn what_waits_holds_the_offset_back_and_the_other_stream_is_counted() {
        let (log, progress) = log_of(
            &[
                (Stream::Stdout, b"one\ntw"),
                (Stream::Stderr, b"error\nx"),
                (Stream::Stderr, b"\n"),
            ],
            false,
        );
        assert_eq!(log, "stdout F one\nstderr F error\nstderr F x\n");
        assert_eq!(
            progress,
            Progress {
                offset: 4,
                logged: [0, 8]
            }
        );
    }

    #[test]
    fn a_long_line_comes_in_pieces_of_16_kib_and_an_exact_one_in_one() {
        let exact = [b"x".repeat(MAX_LINE), b"\n".to_vec()].concat();
        let (log, _) = log_of(&[(Stream::Stdout, &exact)], false);
        assert_eq!(log, format!("stdout F {}\n", "x".repeat(MAX_LINE)));
        let longer = [b"x".repeat(2 * MAX_LINE + 1), b"\n".to_vec()].concat();
        let (log, _) = log_of(&[(Stream::Stderr, &longer)], false);
        let piece = "x".repeat(MAX_LINE);
        assert_eq!(log, format!("stderr P {piece}\nstderr P {piece}\nstderr F x\n"));
    }

    #[test]
    fn the_end_completes_a_line_and_makes_no_empty_one() {
        let (log, progress) = log_of(&[(Stream::Stdout, b"a\nlast"), (Stream::Stderr, b"b\n")], true);
        assert_eq!(log, "stdout F a\nstderr F b\nstdout F last\n");
        assert_eq!(progress.offset, 8);
    }

    #[test]
    fn a_line_that_waits_too_long_is_written_in_pieces() {
        let flood = b"y\n".repeat(MAX_BEHIND as usize / 2 + 1);
        let (log, progress) = log_of(
            &[
                (Stream::Stdout, b"prompt> "),
                (Stream::Stderr, &flood),
                (Stream::Stdout, b"\n"),
            ],
            false,
        );
        assert!(log.contains("\nstdout P prompt> \n"));
        assert!(log.ends_with("\nstdout F \n"));
        assert_eq!(progress.logged, [0, 0]);
    }

    #[test]
    fn a_line_is_counted_as_what_it_was_made_of() {
        assert_eq!(count(b"t stdout F a b  c"), Some((Stream::Stdout, 7)));
        assert_eq!(count(b"t stderr P abc"), Some((Stream::Stderr, 3)));
        assert_eq!(count(b"t stderr F "), Some((Stream::Stderr, 1)));
        for other in [&b"t stdout F"[..], b"", b"t stdin F x", b"t stdout X x"] {
            assert_eq!(count(other), None);
        }
    }
}
