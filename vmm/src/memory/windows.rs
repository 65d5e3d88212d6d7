//! Which guest-physical ranges of a window are taken: first fit, aligned. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

/// A window of addresses from which aligned ranges are taken and given back.
#[derive(Debug)]
pub(crate) struct AddressWindow {
    window: Range<u64>,
    /// start -> end
    taken: BTreeMap<u64, u64>,
}

impl AddressWindow {
    pub(crate) fn new(window: Range<u64>) -> Self {
        Self {
            window,
            taken: BTreeMap::new(),
        }
    }

    /// The lowest free range of `size` bytes at a multiple of `align` (a power of two).
    pub(crate) fn take(&mut self, size: u64, align: u64) -> Option<u64> {
        let mut candidate = self.window.start.checked_next_multiple_of(align)?;
        for (&start, &end) in &self.taken {
            if candidate.checked_add(size)? <= start {
                break;
            }
            candidate = end.checked_next_multiple_of(align)?.max(candidate);
        }
        let end = candidate.checked_add(size)?;
        if size == 0 || end > self.window.end {
            return None;
        }
        self.taken.insert(candidate, end);
        Some(candidate)
    }

    /// Gives back what `take` returned.
    pub(crate) fn give_back(&mut self, start: u64) {
        self.taken.remove(&start);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_that_was_given_back_is_taken_again() {
        let mut window = AddressWindow::new(0x1000..0x10_000);
        let first = window.take(0x3000, 0x1000);
        assert_eq!(first, Some(0x1000));
        assert_eq!(window.take(0x1000, 0x1000), Some(0x4000));
        window.give_back(0x1000);
        assert_eq!(window.take(0x2000, 0x2000), Some(0x2000));
        assert_eq!(window.take(0x1000, 0x1000), Some(0x1000));
    }

    #[test]
    fn nothing_is_taken_beyond_the_window() {
        let mut window = AddressWindow::new(0..0x4000);
        assert_eq!(window.take(0x5000, 0x1000), None);
        assert_eq!(window.take(u64::MAX, 0x1000), None);
        assert_eq!(window.take(0, 0x1000), None);
        assert_eq!(window.take(0x4000, 0x1000), Some(0));
        assert_eq!(window.take(1, 1), None);
    }

    proptest! {
        #[test]
        fn taken_ranges_never_overlap(requests in prop::collection::vec((1_u64..9, 0_u32..3, any::<bool>()), 1..60)) {
            let mut window = AddressWindow::new(0x1000..0x40_000);
            let mut held: Vec<Range<u64>> = Vec::new();
            for (pages, align, release) in requests {
                if release && !held.is_empty() {
                    let range = held.remove(0);
                    window.give_back(range.start);
                } else if let Some(start) = window.take(pages * 0x1000, 0x1000 << align) {
                    let range = start..start + pages * 0x1000;
                    prop_assert!(start.is_multiple_of(0x1000 << align));
                    prop_assert!(range.end <= 0x40_000);
                    prop_assert!(held.iter().all(|other| other.end <= range.start || range.end <= other.start));
                    held.push(range);
                }
            }
        }
    }
}
