//! What a guest sends as a process's output.

use proto::stdio::MAX_FRAME;

use super::output::{Ends, Frames, OutputEvent};

/// Any bytes, in pieces of any size, are output or an error; what comes out is never more than went in.
///
/// # Panics
/// When it is.
pub fn output_frames(bytes: &[u8], piece: usize, terminal: bool) {
    let (mut frames, mut ends) = (Frames::new(), Ends::new(terminal));
    let (mut data, mut stream_ends) = (0, 0);
    for piece in bytes.chunks(piece.max(1)) {
        frames.buffer().extend_from_slice(piece);
        loop {
            match frames.take(&mut ends) {
                Ok(Some(OutputEvent::Data { bytes, .. })) => {
                    assert!((1..=MAX_FRAME).contains(&bytes.len()));
                    data += bytes.len();
                }
                Ok(Some(OutputEvent::StreamEnd(_))) => stream_ends += 1,
                Ok(Some(OutputEvent::End) | None) => break,
                Err(_) => return,
            }
        }
    }
    assert!(data <= bytes.len(), "{data} bytes of output in {}", bytes.len());
    assert!(stream_ends <= 2, "a stream ends once");
}
