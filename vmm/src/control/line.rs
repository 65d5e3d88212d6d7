//! Cuts what a client sends into lines, each with the descriptors that arrived with its bytes. Pure.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// A request is a few hundred bytes.
pub(super) const LINE_LIMIT: usize = 64 << 10;
/// What one line may bring; the kernel's own limit for one message is 253.
pub(super) const DESCRIPTOR_LIMIT: usize = 16;

/// Why a client's stream cannot be read any further.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LineError {
    #[error("a line is longer than {LINE_LIMIT} bytes")]
    TooLong,
    #[error("a line came with more than {DESCRIPTOR_LIMIT} descriptors")]
    TooManyDescriptors,
}

/// A line without its end, and its descriptors.
pub(super) type Line<D> = (Vec<u8>, Vec<D>);

/// The part of the stream that is no complete line yet.
#[derive(Debug)]
pub(super) struct LineBuffer<D = OwnedFd> {
    bytes: Vec<u8>,
    descriptors: Vec<D>,
}

impl<D> LineBuffer<D> {
    pub(super) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            descriptors: Vec::new(),
        }
    }

    /// Takes one piece of the stream, which begins a line or goes on with one, and the descriptors that came with it:
    /// they belong to that line. (`sys::receive` ends a piece where a line ends, so that it can say so.)
    pub(super) fn push(&mut self, piece: &[u8], descriptors: Vec<D>) -> Result<VecDeque<Line<D>>, LineError> {
        self.descriptors.extend(descriptors);
        if self.descriptors.len() > DESCRIPTOR_LIMIT {
            return Err(LineError::TooManyDescriptors);
        }
        let mut lines = VecDeque::new();
        let mut rest = piece;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.append(&rest[..end])?;
            lines.push_back((
                std::mem::take(&mut self.bytes),
                std::mem::take(&mut self.descriptors),
            ));
            rest = &rest[end + 1..];
        }
        self.append(rest)?;
        Ok(lines)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), LineError> {
        if self.bytes.len() + bytes.len() > LINE_LIMIT {
            return Err(LineError::TooLong);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

/// Entry point of the fuzz target: one line buffer, fed in pieces whose sizes are in the input.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn feed(input: &[u8]) {
    let mut buffer: LineBuffer<u8> = LineBuffer::new();
    let mut rest = input;
    while let Some((size, tail)) = rest.split_first() {
        let (piece, tail) = tail.split_at(usize::from(*size).min(tail.len()));
        let Ok(lines) = buffer.push(piece, vec![0; usize::from(size % 3)]) else {
            return;
        };
        for (line, _) in lines {
            drop(serde_json::from_slice::<proto::machine::Request>(&line));
        }
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn descriptors_belong_to_the_line_they_came_with() {
        let mut buffer = LineBuffer::new();
        assert_eq!(
            buffer.push(b"one\n", vec![]),
            Ok([(b"one".to_vec(), vec![])].into())
        );
        assert_eq!(buffer.push(b"tw", vec![7]), Ok(VecDeque::new()));
        assert_eq!(
            buffer.push(b"o\nthree\n", vec![]),
            Ok([(b"two".to_vec(), vec![7]), (b"three".to_vec(), vec![])].into())
        );
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut buffer: LineBuffer<u8> = LineBuffer::new();
        assert_eq!(buffer.push(&vec![b'x'; LINE_LIMIT], vec![]), Ok(VecDeque::new()));
        assert_eq!(buffer.push(b"x", vec![]), Err(LineError::TooLong));
    }

    #[test]
    fn descriptors_without_end_are_refused() {
        let mut buffer = LineBuffer::new();
        assert_eq!(buffer.push(b"x", vec![0; DESCRIPTOR_LIMIT]), Ok(VecDeque::new()));
        assert_eq!(buffer.push(b"y", vec![0]), Err(LineError::TooManyDescriptors));
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_they_are_cut(text in "[a-c\n]{0,80}", cuts in prop::collection::vec(1_usize..9, 0..40)) {
            let mut buffer: LineBuffer<u8> = LineBuffer::new();
            let (mut rest, mut got, mut cuts) = (text.as_bytes(), Vec::new(), cuts.into_iter());
            while !rest.is_empty() {
                let (piece, later) = rest.split_at(cuts.next().unwrap_or(9).min(rest.len()));
                got.extend(buffer.push(piece, vec![]).unwrap().into_iter().map(|(line, _)| line));
                rest = later;
            }
            let mut expected: Vec<Vec<u8>> = text.split('\n').map(|line| line.as_bytes().to_vec()).collect();
            expected.pop();
            prop_assert_eq!(got, expected);
        }
    }
}
