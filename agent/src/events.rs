//! Who watches the pod, and what they are told: a snapshot first, then every change in order.
//!
//! A watcher that does not keep up is dropped instead of holding up the rest: it connects again and gets a snapshot.

use std::sync::Mutex;

use proto::agent::v1::watch_event::Event;
use proto::agent::v1::{Snapshot, WatchEvent};
use tokio::sync::mpsc;

use crate::lock::lock;

/// Events that a watcher may be behind.
const BACKLOG: usize = 256;
/// More watchers than a daemon has; the oldest one goes.
const MAX_WATCHERS: usize = 8;

/// The watchers.
#[derive(Debug, Default)]
pub(crate) struct Events {
    watchers: Mutex<Vec<mpsc::Sender<WatchEvent>>>,
}

impl Events {
    /// A new watcher. `snapshot` is taken while no event can pass, so that none is missed between it and the first.
    pub(crate) fn watch(&self, snapshot: impl FnOnce() -> Snapshot) -> mpsc::Receiver<WatchEvent> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let mut watchers = lock(&self.watchers);
        watchers.retain(|watcher| !watcher.is_closed());
        if watchers.len() >= MAX_WATCHERS {
            watchers.remove(0);
        }
        if deliver(&sender, Event::Snapshot(snapshot())) {
            watchers.push(sender);
        }
        receiver
    }

    /// Tells all watchers.
    pub(crate) fn publish(&self, event: &Event) {
        let mut watchers = lock(&self.watchers);
        watchers.retain(|watcher| deliver(watcher, event.clone()));
    }
}

/// False when the watcher is gone or too slow.
fn deliver(watcher: &mpsc::Sender<WatchEvent>, event: Event) -> bool {
    watcher.try_send(WatchEvent { event: Some(event) }).is_ok()
}

#[cfg(test)]
mod tests {
    use proto::agent::v1::ContainerOom;

    use super::*;

    fn oom() -> Event {
        Event::Oom(ContainerOom {
            container_id: "c".to_owned(),
        })
    }

    #[tokio::test]
    async fn a_snapshot_comes_first_and_then_the_changes() {
        let events = Events::default();
        events.publish(&oom());
        let mut watcher = events.watch(Snapshot::default);
        events.publish(&oom());
        let first = watcher.recv().await.unwrap().event.unwrap();
        assert_eq!(first, Event::Snapshot(Snapshot::default()));
        assert_eq!(watcher.recv().await.unwrap().event.unwrap(), oom());
    }

    #[tokio::test]
    async fn a_slow_watcher_is_dropped_and_the_others_are_not() {
        let events = Events::default();
        let mut slow = events.watch(Snapshot::default);
        for _ in 0..BACKLOG {
            events.publish(&oom());
        }
        let mut fresh = events.watch(Snapshot::default);
        events.publish(&oom());
        fresh.recv().await.unwrap();
        assert_eq!(fresh.recv().await.unwrap().event.unwrap(), oom());
        let mut got = 0;
        while slow.recv().await.is_some() {
            got += 1;
        }
        assert_eq!(got, BACKLOG, "then the stream ends");
    }
}
