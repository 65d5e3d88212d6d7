//! Which blocks of the region are plugged, and what a request of the driver does to them. No I/O: who asks says how memory
//! is given back.

use std::io;
use std::ops::Range;

/// What the guest plugs and unplugs at a time, and what the host gives and takes well: a huge page.
pub(super) const BLOCK: u64 = 2 << 20;

/// A request of the driver (5.15.6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Plug(Span),
    Unplug(Span),
    UnplugAll,
    State(Span),
}

/// Blocks from a guest-physical address on, as the driver names them: nothing is checked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) address: u64,
    pub(super) count: u16,
}

/// Its answer (5.15.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Ack,
    /// More than the host wants to be plugged.
    Nack,
    /// The host cannot now.
    Busy,
    /// The driver's mistake.
    Error,
    /// To `State`.
    State(Plugged),
}

/// How much of a span is plugged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plugged {
    All,
    None,
    Some,
}

/// The region's blocks.
#[derive(Debug)]
pub(super) struct Blocks {
    start: u64,
    plugged: Vec<bool>,
    plugged_count: u64,
    /// Blocks that the host wants to be plugged.
    requested: u64,
}

impl Blocks {
    /// The region of whole blocks that is guest memory; nothing is plugged.
    pub(super) fn new(region: &Range<u64>) -> Self {
        let count = usize::try_from((region.end - region.start) / BLOCK).unwrap_or(0);
        Self {
            start: region.start,
            plugged: vec![false; count],
            plugged_count: 0,
            requested: 0,
        }
    }

    /// Likewise, with `plugged` as it was; `None` if that is no region of this size, or more was requested than there is.
    pub(super) fn restored(region: &Range<u64>, plugged: Vec<bool>, requested: u64) -> Option<Self> {
        let fresh = Self::new(region);
        let fits = plugged.len() == fresh.plugged.len() && requested <= fresh.size();
        fits.then(|| Self {
            plugged_count: plugged.iter().filter(|plugged| **plugged).count() as u64,
            plugged,
            requested: requested / BLOCK,
            ..fresh
        })
    }

    /// Which blocks are plugged, in order.
    pub(super) fn states(&self) -> &[bool] {
        &self.plugged
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Bytes that can be plugged.
    pub(super) fn size(&self) -> u64 {
        self.plugged.len() as u64 * BLOCK
    }

    /// Bytes that are plugged.
    pub(super) fn plugged(&self) -> u64 {
        self.plugged_count * BLOCK
    }

    /// Bytes that the host wants to be plugged.
    pub(super) fn requested(&self) -> u64 {
        self.requested * BLOCK
    }

    /// The host changes its mind; `bytes` is a multiple of [`BLOCK`] within the region.
    pub(super) fn request(&mut self, bytes: u64) {
        self.requested = bytes / BLOCK;
    }

    /// Does what the driver asks. `discard` takes pages (address, bytes) back for the host.
    pub(super) fn answer(
        &mut self,
        request: Request,
        discard: impl FnOnce(u64, u64) -> io::Result<()>,
    ) -> Answer {
        match request {
            Request::Plug(span) => self.plug(span),
            Request::Unplug(span) => match self.within(span) {
                Some(range) if self.state(range.clone()) == Plugged::All => self.unplug(range, discard),
                _ => Answer::Error,
            },
            Request::UnplugAll => self.unplug(0..self.plugged.len(), discard),
            Request::State(span) => match self.within(span) {
                Some(range) => Answer::State(self.state(range)),
                None => Answer::Error,
            },
        }
    }

    fn plug(&mut self, span: Span) -> Answer {
        let Some(range) = self.within(span) else {
            return Answer::Error;
        };
        if self.state(range.clone()) != Plugged::None {
            return Answer::Error;
        }
        let after = self.plugged_count + range.len() as u64;
        if after > self.requested {
            return Answer::Nack;
        }
        self.plugged.get_mut(range).unwrap_or_default().fill(true);
        self.plugged_count = after;
        Answer::Ack
    }

    fn unplug(&mut self, range: Range<usize>, discard: impl FnOnce(u64, u64) -> io::Result<()>) -> Answer {
        let bytes = range.len() as u64 * BLOCK;
        if let Err(error) = discard(self.start + range.start as u64 * BLOCK, bytes) {
            tracing::warn!(%error, "mem: the host does not take unplugged memory back");
            return Answer::Busy;
        }
        let blocks = self.plugged.get_mut(range).unwrap_or_default();
        self.plugged_count -= blocks.iter().filter(|plugged| **plugged).count() as u64;
        blocks.fill(false);
        Answer::Ack
    }

    fn state(&self, range: Range<usize>) -> Plugged {
        let blocks = self.plugged.get(range).unwrap_or_default();
        match (blocks.contains(&true), blocks.contains(&false)) {
            (true, false) => Plugged::All,
            (true, true) => Plugged::Some,
            (false, _) => Plugged::None,
        }
    }

    /// The span as indices, if it is one or more whole blocks of the region.
    fn within(&self, span: Span) -> Option<Range<usize>> {
        let offset = span.address.checked_sub(self.start)?;
        if span.count == 0 || !offset.is_multiple_of(BLOCK) {
            return None;
        }
        let first = usize::try_from(offset / BLOCK).ok()?;
        let end = first.checked_add(usize::from(span.count))?;
        (end <= self.plugged.len()).then_some(first..end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: u64 = 4 << 30;
    const BLOCKS: u64 = 64;

    fn blocks(requested: u64) -> Blocks {
        let mut blocks = Blocks::new(&(START..START + BLOCKS * BLOCK));
        blocks.request(requested * BLOCK);
        blocks
    }

    fn span(first: u64, count: u16) -> Span {
        Span {
            address: START + first * BLOCK,
            count,
        }
    }

    fn ask(blocks: &mut Blocks, request: Request) -> Answer {
        blocks.answer(request, |_, _| Ok(()))
    }

    #[test]
    fn no_more_is_plugged_than_was_requested() {
        let mut blocks = blocks(4);
        assert_eq!(ask(&mut blocks, Request::Plug(span(0, 5))), Answer::Nack);
        assert_eq!(ask(&mut blocks, Request::Plug(span(10, 3))), Answer::Ack);
        assert_eq!(ask(&mut blocks, Request::Plug(span(0, 2))), Answer::Nack);
        assert_eq!(ask(&mut blocks, Request::Plug(span(63, 1))), Answer::Ack);
        assert_eq!((blocks.plugged(), blocks.requested()), (4 * BLOCK, 4 * BLOCK));
        blocks.request(0);
        assert_eq!(blocks.plugged(), 4 * BLOCK, "it is the guest who unplugs");
    }

    #[test]
    fn a_block_is_plugged_once_and_unplugged_once() {
        let mut blocks = blocks(8);
        assert_eq!(ask(&mut blocks, Request::Plug(span(2, 2))), Answer::Ack);
        assert_eq!(ask(&mut blocks, Request::Plug(span(3, 2))), Answer::Error);
        assert_eq!(ask(&mut blocks, Request::Unplug(span(1, 2))), Answer::Error);
        let state = |blocks: &mut Blocks, first, count| ask(blocks, Request::State(span(first, count)));
        assert_eq!(state(&mut blocks, 2, 2), Answer::State(Plugged::All));
        assert_eq!(state(&mut blocks, 1, 2), Answer::State(Plugged::Some));
        assert_eq!(state(&mut blocks, 4, 60), Answer::State(Plugged::None));
        assert_eq!(ask(&mut blocks, Request::Unplug(span(2, 1))), Answer::Ack);
        assert_eq!(ask(&mut blocks, Request::Unplug(span(2, 1))), Answer::Error);
        assert_eq!(blocks.plugged(), BLOCK);
    }

    #[test]
    fn restored_blocks_are_those_that_were_saved() {
        let mut blocks = blocks(8);
        assert_eq!(ask(&mut blocks, Request::Plug(span(2, 3))), Answer::Ack);
        let region = START..START + BLOCKS * BLOCK;
        let restored = Blocks::restored(&region, blocks.states().to_vec(), blocks.requested()).unwrap();
        assert_eq!(restored.states(), blocks.states());
        assert_eq!((restored.plugged(), restored.requested()), (3 * BLOCK, 8 * BLOCK));
        assert!(Blocks::restored(&region, vec![false; 63], 0).is_none());
        assert!(Blocks::restored(&region, vec![false; 64], 65 * BLOCK).is_none());
    }

    #[test]
    fn spans_that_are_no_blocks_of_the_region_are_the_drivers_mistake() {
        let mut blocks = blocks(BLOCKS);
        let strange = [
            span(0, 0),
            span(63, 2),
            span(64, 1),
            span(0, u16::MAX),
            Span {
                address: START + 1,
                count: 1,
            },
            Span {
                address: START - BLOCK,
                count: 2,
            },
            Span { address: 0, count: 1 },
            Span {
                address: u64::MAX - BLOCK + 1,
                count: u16::MAX,
            },
        ];
        for span in strange {
            for request in [Request::Plug(span), Request::Unplug(span), Request::State(span)] {
                assert_eq!(ask(&mut blocks, request), Answer::Error, "{request:?}");
            }
        }
    }

    #[test]
    fn what_the_host_cannot_take_back_stays_plugged() {
        let mut blocks = blocks(4);
        ask(&mut blocks, Request::Plug(span(1, 2)));
        let failing = |_, _| Err(io::ErrorKind::OutOfMemory.into());
        assert_eq!(blocks.answer(Request::UnplugAll, failing), Answer::Busy);
        assert_eq!(blocks.plugged(), 2 * BLOCK);
        let mut discarded = None;
        let recording = |address, bytes| {
            discarded = Some((address, bytes));
            Ok(())
        };
        assert_eq!(blocks.answer(Request::Unplug(span(1, 2)), recording), Answer::Ack);
        assert_eq!(discarded, Some((START + BLOCK, 2 * BLOCK)));
    }

    proptest! {
        #[test]
        fn the_count_is_that_of_the_blocks(requests in prop::collection::vec((0_u8..4, 0_u64..70, 0_u16..9, 0_u64..65), 0..80)) {
            let mut blocks = blocks(32);
            for (kind, first, count, requested) in requests {
                let before = blocks.plugged();
                blocks.request(requested * BLOCK);
                let request = match kind {
                    0 => Request::Plug(span(first, count)),
                    1 => Request::Unplug(span(first, count)),
                    2 if first == 0 => Request::UnplugAll,
                    _ => Request::State(span(first, count)),
                };
                let answer = ask(&mut blocks, request);
                let count = blocks.plugged.iter().filter(|plugged| **plugged).count() as u64;
                prop_assert_eq!(blocks.plugged(), count * BLOCK);
                if blocks.plugged() > before {
                    prop_assert!(blocks.plugged() <= blocks.requested());
                }
                if answer != Answer::Ack {
                    prop_assert_eq!(blocks.plugged(), before);
                }
            }
        }
    }
}
