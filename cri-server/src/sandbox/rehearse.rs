//! What every fork begins with is done once before a template is written, and then the guest is left alone until it has given its free
//! memory back: what it touches, sets up and clears away for that is in the template, and no fork has to do it again.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{awake::let_go_on, error::RequestError, node::Node};
use crate::{
    guest::{self, GuestClient},
    machine::{ControlClient, ControlError, Layout},
};

const LOOK: Duration = Duration::from_millis(250);
/// Linux reports free pages two seconds after some were freed, a part of them, and again two seconds later
/// (`PAGE_REPORTING_DELAY`): when nothing comes for so long, nothing more will.
const QUIET: Duration = Duration::from_millis(3500);

/// The first calls of a guest that goes on, without a device. None of them leaves it with anything of its own: the identity that a
/// fork gets is what it is told in its own turn.
pub(super) async fn rehearse(node: &Node, layout: &Layout) -> Result<(), RequestError> {
    let reached = guest::goes_on(layout, node.config.deadlines.fork()).await;
    reached.map_err(RequestError::failed("reach the guest"))?;
    let client = GuestClient::new(layout);
    let known = client.info().await;
    known.map_err(RequestError::guest("ask the guest for its facts"))?;
    let_go_on(&client, Vec::new()).await
}

/// Returns when the guest reports no more free memory, after `most` at the latest. A guest without a balloon has nothing to report.
pub(super) async fn rest(control: &ControlClient, most: Duration) -> Result<(), ControlError> {
    let mut watch = Watch::since(Instant::now());
    loop {
        let balloon = control.stats().await?.balloon;
        let reported = balloon.map(|balloon| balloon.reported_bytes);
        if watch.is_over(reported, Instant::now(), most) {
            return Ok(());
        }
        sleep(LOOK).await;
    }
}

/// Of a counter, until it stands still.
#[derive(Debug)]
struct Watch {
    began: Instant,
    last: Option<u64>,
    since: Instant,
}

impl Watch {
    fn since(now: Instant) -> Self {
        Self {
            began: now,
            last: None,
            since: now,
        }
    }

    fn is_over(&mut self, seen: Option<u64>, now: Instant, most: Duration) -> bool {
        if seen != self.last {
            (self.last, self.since) = (seen, now);
        }
        seen.is_none() || now - self.since >= QUIET || now - self.began >= most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(30);

    /// How long a counter is looked at, every half second, that changes in the first `changes` of them.
    fn watched(changes: u64, most: Duration) -> Duration {
        let began = Instant::now();
        let mut watch = Watch::since(began);
        let step = |look: u64| Duration::from_millis(500 * look);
        let over = (0..).find(|look| watch.is_over(Some((*look).min(changes)), began + step(*look), most));
        step(over.unwrap())
    }

    #[test]
    fn a_guest_is_left_alone_until_it_reports_nothing_more() {
        assert_eq!(watched(0, MOST), QUIET);
        assert_eq!(watched(9, MOST), Duration::from_millis(4500) + QUIET);
        assert_eq!(watched(u64::MAX, MOST), MOST, "and not for ever");
        assert_eq!(watched(9, Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn a_guest_without_a_balloon_is_not_waited_for() {
        let now = Instant::now();
        assert!(Watch::since(now).is_over(None, now, MOST));
    }
}
