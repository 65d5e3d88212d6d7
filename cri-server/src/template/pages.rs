//! Which pages guests that go on from one template write before they are ready: as good as always the same. Whoever has copies of them
//! beforehand is not stopped for each of them.

use std::sync::OnceLock;

use proto::machine::PageRun;

/// More pages than that are copied for nobody beforehand: 8 MiB.
const MOST: u64 = 2048;

/// Those of one template; unknown until one of its forks has told.
#[derive(Debug, Default)]
pub(crate) struct Pages(OnceLock<Vec<PageRun>>);

impl Pages {
    /// None while they are unknown.
    pub(crate) fn runs(&self) -> &[PageRun] {
        self.0.get().map_or(&[], Vec::as_slice)
    }

    pub(crate) fn are_unknown(&self) -> bool {
        self.0.get().is_none()
    }

    /// What a fork has written by the time it is ready, before anything of its pod runs in it. The first word counts, and a guest that
    /// writes far more than it needs is no measure for others.
    pub(crate) fn learn(&self, runs: Vec<PageRun>) {
        let pages = runs.iter().fold(0_u64, |sum, run| sum.saturating_add(run.count));
        let runs = if pages <= MOST { runs } else { Vec::new() };
        self.0.get_or_init(|| runs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, count: u64) -> PageRun {
        PageRun { first, count }
    }

    #[test]
    fn the_first_word_counts() {
        let pages = Pages::default();
        assert!(pages.are_unknown() && pages.runs().is_empty());
        pages.learn(vec![run(5, MOST - 1), run(0, 1)]);
        pages.learn(vec![run(7, 1)]);
        assert!(!pages.are_unknown());
        assert_eq!(pages.runs(), [run(5, MOST - 1), run(0, 1)]);
    }

    #[test]
    fn a_guest_that_writes_too_much_is_no_measure_for_others() {
        for runs in [
            vec![run(0, MOST), run(9000, 1)],
            vec![run(0, u64::MAX), run(0, 2)],
        ] {
            let pages = Pages::default();
            pages.learn(runs);
            assert!(!pages.are_unknown() && pages.runs().is_empty());
        }
    }
}
