//! Which pages of a queue's part of the bounce region are free. First fit: small requests stay in the first pages, so few are
//! ever touched.

use std::ops::Range;

/// Pages by number.
#[derive(Debug)]
pub(super) struct Arena {
    pages: usize,
    /// In order, none empty, no two side by side.
    free: Vec<Range<usize>>,
    /// Pages from this one on cost nothing: they were not taken since they were last given back.
    touched: usize,
}

impl Arena {
    pub(super) fn new(pages: usize) -> Self {
        Self {
            pages,
            free: Vec::from_iter((pages > 0).then_some(0..pages)),
            touched: 0,
        }
    }

    /// Takes so many pages in one row; `None` if there is no such row.
    pub(super) fn take(&mut self, pages: usize) -> Option<Range<usize>> {
        let place = self.free.iter().position(|range| range.len() >= pages)?;
        let range = self.free.get_mut(place)?;
        let taken = range.start..range.start + pages;
        range.start = taken.end;
        if range.start == range.end {
            self.free.remove(place);
        }
        self.touched = self.touched.max(taken.end);
        Some(taken)
    }

    /// Returns what [`Self::take`] gave.
    pub(super) fn put(&mut self, mut range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let mut place = self.free.partition_point(|other| other.start < range.start);
        if let Some(after) = self.free.get(place).filter(|after| after.start == range.end) {
            range.end = after.end;
            self.free.remove(place);
        }
        if let Some(before) = place.checked_sub(1).and_then(|before| self.free.get(before))
            && before.end == range.start
        {
            place -= 1;
            range.start = before.start;
            self.free.remove(place);
        }
        self.free.insert(place, range);
    }

    /// The free pages that may have been touched; the caller gives them back to the host.
    pub(super) fn rest(&mut self) -> Vec<Range<usize>> {
        let touched = self.touched;
        let idle = self.free.iter().map(|range| range.start..range.end.min(touched));
        let idle = idle.filter(|range| !range.is_empty()).collect();
        let last = self.free.last().filter(|range| range.end == self.pages);
        self.touched = touched.min(last.map_or(self.pages, |range| range.start));
        idle
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_row_that_is_long_enough_is_taken() {
        let mut arena = Arena::new(8);
        let rows = [2, 1, 4].map(|pages| arena.take(pages).unwrap());
        assert_eq!(rows, [0..2, 2..3, 3..7]);
        assert_eq!(arena.take(2), None);
        arena.put(0..2);
        assert_eq!(arena.take(1), Some(0..1));
        assert_eq!(arena.take(2), None);
        arena.put(2..3);
        assert_eq!(arena.take(2), Some(1..3));
    }

    #[test]
    fn only_what_was_touched_is_given_back() {
        let mut arena = Arena::new(100);
        assert_eq!(arena.rest(), []);
        let rows = [3, 3, 3].map(|pages| arena.take(pages).unwrap());
        arena.put(rows[0].clone());
        arena.put(rows[2].clone());
        assert_eq!(arena.rest(), [0..3, 6..9]);
        arena.put(rows[1].clone());
        assert_eq!(arena.rest(), Vec::from_iter(Some(0..6)));
        assert_eq!(arena.rest(), []);
    }

    proptest! {
        #[test]
        fn rows_never_overlap_and_all_of_it_comes_back(
            steps in prop::collection::vec((any::<bool>(), 1_usize..20, any::<prop::sample::Index>()), 0..300)
        ) {
            const PAGES: usize = 64;
            let mut arena = Arena::new(PAGES);
            let mut taken: Vec<Range<usize>> = Vec::new();
            for (take, pages, which) in steps {
                if take {
                    let mut owned = [false; PAGES];
                    taken.iter().cloned().flatten().for_each(|page| owned[page] = true);
                    let fits = owned.split(|owned| *owned).any(|row| row.len() >= pages);
                    let row = arena.take(pages);
                    prop_assert_eq!(row.is_some(), fits);
                    let Some(row) = row else { continue };
                    prop_assert!(row.len() == pages && row.end <= PAGES);
                    prop_assert!(row.clone().all(|page| !owned[page]));
                    taken.push(row);
                } else if !taken.is_empty() {
                    let row = taken.swap_remove(which.index(taken.len()));
                    arena.put(row);
                }
                for idle in arena.rest() {
                    prop_assert!(taken.iter().all(|row| row.end <= idle.start || idle.end <= row.start));
                }
            }
            taken.into_iter().for_each(|row| arena.put(row));
            prop_assert_eq!(arena.take(PAGES), Some(0..PAGES));
        }
    }
}
