//! What happened to sandboxes and containers, for whoever wants to hear of it: the difference between two views of a
//! sandbox, so that no change is told in two places or forgotten in one.
//!
//! Telling never waits: a listener that falls behind by more than [`BACKLOG`] loses the oldest and is told so.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::broadcast;

use super::{SandboxState, view::SandboxView};
use crate::container::state::ContainerState;

/// Events that a listener may be behind: kubelet's own channel has 1000.
const BACKLOG: usize = 1024;

/// All sandboxes' events.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    sender: broadcast::Sender<Arc<Event>>,
}

/// One change.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// Of a container, or of the sandbox itself.
    pub(crate) id: String,
    pub(crate) kind: EventKind,
    /// Nanoseconds since the epoch.
    pub(crate) at: i64,
    /// The sandbox after the change.
    pub(crate) sandbox: Arc<SandboxView>,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventKind {
    Created,
    Started,
    Stopped,
    Deleted,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            sender: broadcast::Sender::new(BACKLOG),
        }
    }
}

impl Events {
    /// What happens from now on.
    pub(crate) fn listen(&self) -> broadcast::Receiver<Arc<Event>> {
        self.sender.subscribe()
    }

    /// Tells how `after` differs from `before`.
    pub(super) fn tell_changes(&self, before: &SandboxView, after: &Arc<SandboxView>, at: i64) {
        if self.sender.receiver_count() == 0 {
            return;
        }
        for (id, kind) in changes(before, after) {
            self.tell(id, kind, after, at);
        }
    }

    /// The sandbox is no more: that is in no view.
    pub(super) fn tell_deleted(&self, sandbox: &Arc<SandboxView>, at: i64) {
        self.tell(sandbox.id.clone(), EventKind::Deleted, sandbox, at);
    }

    fn tell(&self, id: String, kind: EventKind, sandbox: &Arc<SandboxView>, at: i64) {
        let sandbox = Arc::clone(sandbox);
        // Nobody may listen.
        drop(self.sender.send(Arc::new(Event {
            id,
            kind,
            at,
            sandbox,
        })));
    }
}

/// In an order that could have been: a sandbox starts before its containers and stops after them.
fn changes(before: &SandboxView, after: &SandboxView) -> Vec<(String, EventKind)> {
    let mut changes = Vec::new();
    let mut add = |id: &str, kinds: &[EventKind]| {
        changes.extend(kinds.iter().map(|kind| (id.to_owned(), *kind)));
    };
    let (was, is) = (&before.state, &after.state);
    if matches!(was, SandboxState::Starting { .. }) && is.is_ready() {
        add(&after.id, &[EventKind::Created, EventKind::Started]);
    }
    let mut old: BTreeMap<&str, &ContainerState> = before
        .containers
        .iter()
        .map(|container| (container.id.as_str(), &container.state))
        .collect();
    for container in &after.containers {
        let was = old.remove(container.id.as_str());
        add(&container.id, life(was, &container.state));
    }
    for id in old.into_keys() {
        add(id, &[EventKind::Deleted]);
    }
    if was.is_ready() && !is.is_ready() {
        add(&after.id, &[EventKind::Stopped]);
    }
    changes
}

/// What a container went through from one state (`None`: it was not shown) to another.
fn life(was: Option<&ContainerState>, is: &ContainerState) -> &'static [EventKind] {
    use ContainerState::{Created, Creating, Exited, Running};
    use EventKind::{Started, Stopped};
    let ran = is.started_at() != 0;
    match (was, is) {
        (_, Creating) | (Some(Exited(_)), _) => &[],
        (None, Created) => &[EventKind::Created],
        (None, Running { .. }) => &[EventKind::Created, Started],
        (None, Exited(_)) if ran => &[EventKind::Created, Started, Stopped],
        (None, Exited(_)) => &[EventKind::Created, Stopped],
        (Some(_), Created) => &[],
        (Some(Running { .. }), Running { .. }) => &[],
        (Some(Creating | Created), Running { .. }) => &[Started],
        (Some(Creating | Created), Exited(_)) if ran => &[Started, Stopped],
        (Some(Creating | Created | Running { .. }), Exited(_)) => &[Stopped],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::state::Exited;

    fn exited(started_at: i64) -> ContainerState {
        ContainerState::Exited(Exited {
            started_at,
            ..Exited::never_started(9, 1, String::new())
        })
    }

    #[test]
    fn a_life_is_told_whole_also_when_parts_of_it_were_not_seen() {
        use EventKind::{Started, Stopped};
        let running = ContainerState::Running { started_at: 5 };
        let created = ContainerState::Created;
        assert_eq!(life(None, &created), [EventKind::Created]);
        assert_eq!(life(Some(&created), &running), [Started]);
        assert_eq!(life(Some(&running), &exited(5)), [Stopped]);
        assert_eq!(life(Some(&created), &exited(5)), [Started, Stopped]);
        assert_eq!(life(Some(&created), &exited(0)), [Stopped]);
        assert_eq!(life(None, &exited(5)), [EventKind::Created, Started, Stopped]);
    }

    #[test]
    fn nothing_is_told_twice() {
        for state in [
            ContainerState::Created,
            ContainerState::Running { started_at: 5 },
            exited(5),
        ] {
            assert_eq!(life(Some(&state), &state), []);
        }
    }
}
