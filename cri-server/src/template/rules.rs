//! Which shapes have a template, and what is to be made next. Pure: times come from outside.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::key::Shape;

/// Before a template that could not be made is tried again: doubled with each failure from the first to the last.
const FIRST_RETRY: Duration = Duration::from_secs(30);
const LAST_RETRY: Duration = Duration::from_secs(30 * 60);
/// A template that spoils twice in this time is not made at once for the second time.
const SPOILS_AGAIN: Duration = Duration::from_secs(60 * 60);
/// A template that nobody asked for in this time makes room for another shape's. Making one costs a boot, so pods of many
/// shapes in turn must not make one each.
const IDLE: Duration = Duration::from_secs(10 * 60);
/// Pods of a shape that boot cold before it is worth a template.
const WORTH_ONE: u32 = 2;
/// Shapes without a template that are remembered. Pods choose them, so there is a bound.
const REMEMBERED: usize = 64;

/// What there is for one shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Status<T> {
    /// It is to be made.
    Wanted,
    Making,
    Ready(T),
    /// It could not be made, or could not be gone on from.
    Failed {
        why: String,
        again: Instant,
    },
}

/// The shapes that have a template, or are to have one.
#[derive(Debug)]
pub(super) struct Book<T> {
    most: usize,
    entries: BTreeMap<Shape, Entry<T>>,
    /// How often others were asked for.
    asked: BTreeMap<Shape, u32>,
}

#[derive(Debug)]
struct Entry<T> {
    status: Status<T>,
    /// It never makes room for another.
    pinned: bool,
    last_asked: Instant,
    /// In a row.
    failures: u32,
    /// When it last was of no use any more.
    spoilt: Option<Instant>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Make(Shape),
    /// Nothing before then.
    Wait(Option<Instant>),
}

impl<T> Book<T> {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            entries: BTreeMap::new(),
            asked: BTreeMap::new(),
        }
    }

    /// The shape that is always to have one.
    pub(super) fn pin(&mut self, shape: Shape, now: Instant) {
        self.enter(shape, now, true);
    }

    /// A pod of that shape starts: its template, if there is one.
    pub(super) fn ask(&mut self, shape: Shape, now: Instant) -> Option<&T> {
        if !self.entries.contains_key(&shape) {
            self.ask_for_unknown(shape, now);
        }
        let entry = self.entries.get_mut(&shape)?;
        entry.last_asked = now;
        match &entry.status {
            Status::Ready(template) => Some(template),
            Status::Wanted | Status::Making | Status::Failed { .. } => None,
        }
    }

    fn ask_for_unknown(&mut self, shape: Shape, now: Instant) {
        if self.asked.len() >= REMEMBERED && !self.asked.contains_key(&shape) {
            self.asked.clear();
        }
        let times = self.asked.entry(shape).or_default();
        *times = times.saturating_add(1);
        if *times < WORTH_ONE || !self.make_room(now) {
            return;
        }
        self.asked.remove(&shape);
        self.enter(shape, now, false);
    }

    /// Whether there is room for another entry now.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.entries.len() < self.most {
            return true;
        }
        let idle = self.entries.iter().filter(|(_, entry)| {
            let is_idle = now.saturating_duration_since(entry.last_asked) >= IDLE;
            is_idle && !entry.pinned && !matches!(entry.status, Status::Making)
        });
        let longest = idle.min_by_key(|(_, entry)| entry.last_asked);
        let Some(shape) = longest.map(|(shape, _)| *shape) else {
            return false;
        };
        self.entries.remove(&shape).is_some()
    }

    fn enter(&mut self, shape: Shape, now: Instant, pinned: bool) {
        self.entries.entry(shape).or_insert(Entry {
            status: Status::Wanted,
            pinned,
            last_asked: now,
            failures: 0,
            spoilt: None,
        });
    }

    /// One that an earlier daemon has made; `false`: there is no room for it.
    pub(super) fn adopt(&mut self, shape: Shape, template: T, now: Instant) -> bool {
        let fits = self.entries.contains_key(&shape) || self.entries.len() < self.most;
        if fits {
            self.enter(shape, now, false);
            self.set(shape, Status::Ready(template));
        }
        fits
    }

    /// Guests are made of something else now: no template is any good.
    pub(super) fn renew(&mut self) {
        for entry in self.entries.values_mut() {
            entry.status = Status::Wanted;
            entry.failures = 0;
        }
    }

    /// What to make: the shape of pods without limits first.
    pub(super) fn next(&self, now: Instant) -> Next {
        let due = |entry: &Entry<T>| match &entry.status {
            Status::Wanted => true,
            Status::Failed { again, .. } => *again <= now,
            Status::Making | Status::Ready(_) => false,
        };
        let wanted = self.entries.iter().filter(|(_, entry)| due(entry));
        if let Some((shape, _)) = wanted.min_by_key(|(_, entry)| !entry.pinned) {
            return Next::Make(*shape);
        }
        let retries = self.entries.values().filter_map(|entry| match &entry.status {
            Status::Failed { again, .. } => Some(*again),
            Status::Wanted | Status::Making | Status::Ready(_) => None,
        });
        Next::Wait(retries.min())
    }

    pub(super) fn making(&mut self, shape: Shape) {
        self.set(shape, Status::Making);
    }

    pub(super) fn made(&mut self, shape: Shape, template: T) {
        self.set(shape, Status::Ready(template));
        if let Some(entry) = self.entries.get_mut(&shape) {
            entry.failures = 0;
        }
    }

    /// It was ready, and nobody can go on from it any more.
    pub(super) fn spoilt(&mut self, shape: Shape, why: String, now: Instant) {
        let before = self
            .entries
            .get_mut(&shape)
            .map(|entry| entry.spoilt.replace(now));
        match before.flatten() {
            Some(before) if now.saturating_duration_since(before) < SPOILS_AGAIN => {
                self.failed(shape, why, now);
            }
            _ => self.set(shape, Status::Wanted),
        }
    }

    /// It could not be made, or is of no use once more.
    pub(super) fn failed(&mut self, shape: Shape, why: String, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&shape) {
            let doubled = FIRST_RETRY.saturating_mul(1 << entry.failures.min(16));
            entry.failures = entry.failures.saturating_add(1);
            let again = now + doubled.min(LAST_RETRY);
            entry.status = Status::Failed { why, again };
        }
    }

    fn set(&mut self, shape: Shape, status: Status<T>) {
        if let Some(entry) = self.entries.get_mut(&shape) {
            entry.status = status;
        }
    }

    pub(super) fn ready(&self) -> impl Iterator<Item = (&Shape, &T)> {
        self.entries().filter_map(|(shape, status)| match status {
            Status::Ready(template) => Some((shape, template)),
            Status::Wanted | Status::Making | Status::Failed { .. } => None,
        })
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&Shape, &Status<T>)> {
        self.entries.iter().map(|(shape, entry)| (shape, &entry.status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(memory_mib: u64) -> Shape {
        Shape {
            memory_mib,
            memory_hotplug_mib: 0,
            vcpus: 1,
            vcpus_possible: 1,
        }
    }

    fn book() -> (Book<&'static str>, Instant) {
        let (mut book, now) = (Book::new(2), Instant::now());
        book.pin(shape(512), now);
        (book, now)
    }

    #[test]
    fn the_pinned_shape_is_made_at_once_and_then_there() {
        let (mut book, now) = book();
        assert_eq!(book.ask(shape(512), now), None);
        assert_eq!(book.next(now), Next::Make(shape(512)));
        book.making(shape(512));
        assert_eq!(book.next(now), Next::Wait(None));
        assert_eq!(book.ask(shape(512), now), None);
        book.made(shape(512), "t");
        assert_eq!(book.ask(shape(512), now), Some(&"t"));
        assert_eq!(book.next(now), Next::Wait(None));
    }

    #[test]
    fn another_shape_gets_one_when_it_comes_again_and_there_is_room() {
        let (mut book, now) = book();
        book.made(shape(512), "t");
        assert_eq!(book.ask(shape(1), now), None);
        assert_eq!(book.next(now), Next::Wait(None), "it may have been the only one");
        book.ask(shape(1), now);
        assert_eq!(book.next(now), Next::Make(shape(1)));
        book.made(shape(1), "u");
        assert_eq!(book.ask(shape(1), now), Some(&"u"));
        for _ in 0..5 {
            book.ask(shape(2), now + IDLE / 2);
        }
        assert_eq!(book.next(now + IDLE / 2), Next::Wait(None), "there is no room");
        assert_eq!(book.ask(shape(2), now + IDLE), None);
        assert_eq!(book.next(now + IDLE), Next::Make(shape(2)));
        assert_eq!(book.ask(shape(1), now + IDLE), None, "it made room");
        assert!(book.ask(shape(512), now + 3 * IDLE).is_some(), "it never does");
        assert_eq!(book.entries().count(), 2);
    }

    #[test]
    fn the_most_idle_one_makes_room() {
        let now = Instant::now();
        let mut book = Book::new(3);
        book.pin(shape(512), now);
        for (memory, after) in [(1, 0), (2, 1)] {
            let at = now + Duration::from_secs(after);
            book.ask(shape(memory), at);
            book.ask(shape(memory), at);
            book.made(shape(memory), "t");
        }
        let later = now + 2 * IDLE;
        book.ask(shape(3), later);
        book.ask(shape(3), later);
        let shapes: Vec<u64> = book.entries().map(|(shape, _)| shape.memory_mib).collect();
        assert_eq!(shapes, [2, 3, 512]);
    }

    #[test]
    fn what_failed_is_tried_again_later_and_later() {
        let (mut book, mut now) = book();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            book.failed(shape(512), "full".to_owned(), now);
            assert_eq!(book.ask(shape(512), now), None);
            let Next::Wait(Some(again)) = book.next(now) else {
                panic!("{:?}", book.next(now));
            };
            pauses.push((again - now).as_secs());
            now = again;
            assert_eq!(book.next(now), Next::Make(shape(512)));
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 960, 1800, 1800]);
        book.made(shape(512), "t");
        book.failed(shape(512), "refused".to_owned(), now);
        assert_eq!(book.next(now), Next::Wait(Some(now + FIRST_RETRY)));
    }

    #[test]
    fn what_is_spoilt_is_made_at_once_and_not_again_and_again() {
        let (mut book, now) = book();
        book.made(shape(512), "t");
        book.spoilt(shape(512), "touched".to_owned(), now);
        assert_eq!(book.ask(shape(512), now), None);
        assert_eq!(book.next(now), Next::Make(shape(512)));
        book.made(shape(512), "u");
        let soon = now + SPOILS_AGAIN / 2;
        book.spoilt(shape(512), "touched".to_owned(), soon);
        assert_eq!(book.next(soon), Next::Wait(Some(soon + FIRST_RETRY)));
        book.made(shape(512), "v");
        let later = soon + SPOILS_AGAIN;
        book.spoilt(shape(512), "touched".to_owned(), later);
        assert_eq!(book.next(later), Next::Make(shape(512)));
    }

    #[test]
    fn a_new_kernel_makes_all_of_them_old_and_wanted() {
        let (mut book, now) = book();
        book.made(shape(512), "t");
        assert!(book.adopt(shape(1), "u", now));
        assert!(!book.adopt(shape(2), "v", now), "there is no room");
        assert_eq!(book.ready().count(), 2);
        book.renew();
        assert_eq!(book.ready().count(), 0);
        assert_eq!(book.next(now), Next::Make(shape(512)), "the pinned one first");
        assert_eq!(book.ask(shape(1), now), None);
    }

    #[test]
    fn pods_of_endless_shapes_take_no_room() {
        let (mut book, now) = book();
        for memory in 1000..2000 {
            book.ask(shape(memory), now);
        }
        assert!(book.asked.len() <= REMEMBERED);
        assert_eq!(book.entries().count(), 1);
    }
}
