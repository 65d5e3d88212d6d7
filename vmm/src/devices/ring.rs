//! The console ring: the last bytes that the guest wrote to its console.

use std::collections::VecDeque;

/// A ring of bytes that forgets the oldest.
#[derive(Debug)]
pub(crate) struct ConsoleRing {
    bytes: VecDeque<u8>,
    limit: usize,
    dropped: u64,
}

impl ConsoleRing {
    /// Keeps at most `limit` bytes. Memory grows with what is written, up to that.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            limit,
            dropped: 0,
        }
    }

    /// Appends; forgets the oldest bytes beyond the limit.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let skipped = bytes.len().saturating_sub(self.limit);
        let kept = &bytes[skipped..];
        let overflow = (self.bytes.len() + kept.len()).saturating_sub(self.limit);
        self.bytes.drain(..overflow);
        self.bytes.extend(kept);
        self.dropped = self.dropped.saturating_add((skipped + overflow) as u64);
    }

    /// Begins with what another ring kept, of which `dropped` bytes were forgotten.
    pub(crate) fn restore(&mut self, bytes: &[u8], dropped: u64) {
        self.dropped = self.dropped.saturating_add(dropped);
        self.push(bytes);
    }

    /// Everything that is kept, oldest first. What is not UTF-8 is replaced.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Everything that is kept, oldest first.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (older, newer) = self.bytes.as_slices();
        [older, newer].concat()
    }

    /// How many bytes were forgotten.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_oldest_bytes_go_first() {
        let mut ring = ConsoleRing::new(4);
        ring.push(b"ab");
        ring.push(b"cdef");
        assert_eq!((ring.text().as_str(), ring.dropped()), ("cdef", 2));
        ring.push(b"0123456789");
        assert_eq!((ring.text().as_str(), ring.dropped()), ("6789", 12));
    }

    #[test]
    fn a_smaller_ring_keeps_the_end_of_another() {
        let mut ring = ConsoleRing::new(4);
        ring.restore(b"abcdef", 10);
        assert_eq!((ring.text().as_str(), ring.dropped()), ("cdef", 12));
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        let mut ring = ConsoleRing::new(10);
        ring.push(b"a\xffb");
        assert_eq!(ring.text(), "a\u{fffd}b");
    }

    proptest! {
        #[test]
        fn the_ring_holds_the_end_of_all_that_was_written(
            limit in 0_usize..40,
            writes in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 0..12),
        ) {
            let mut ring = ConsoleRing::new(limit);
            writes.iter().for_each(|write| ring.push(write));
            let all = writes.concat();
            let kept = all.len().min(limit);
            prop_assert_eq!(ring.bytes(), &all[all.len() - kept..]);
            prop_assert_eq!(ring.dropped(), (all.len() - kept) as u64);
        }
    }
}
