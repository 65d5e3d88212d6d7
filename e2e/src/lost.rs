//! Guests that the emulated processor loses by a triple fault that none of them caused (`deploy/node/README.md`, "What is known to be
//! wrong"): no fault of what is tested.

use std::{
    any::type_name,
    env,
    io::{Write as _, stderr},
    sync::atomic::{AtomicUsize, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{Node, require::skip};

/// What the daemon says of a guest that ended so.
const SAID: &str = "KVM could not run the guest";

/// On a slow host one of twelve was lost, and a test has up to a dozen.
const TRIES: usize = 4;
const SEEN_WITHIN: Duration = Duration::from_secs(3);

/// Of daemons that have ended.
static LOST: AtomicUsize = AtomicUsize::new(0);

/// Whether Machines run on an emulated node, which is thrown away.
#[must_use]
pub fn is_emulated() -> bool {
    env::var("CLEARPOD_BACKEND").is_ok_and(|backend| backend == "emulated")
}

/// How many a daemon tells of in its log.
pub(crate) fn count(daemon_log: &str) -> usize {
    daemon_log.matches(SAID).count()
}

/// A daemon has ended, or its log ends, that has lost so many.
pub(crate) fn add(guests: usize) {
    LOST.fetch_add(guests, Ordering::Relaxed);
}

/// Runs a test, if it can run here; one that cannot says so. One that fails on an emulated node while that loses a guest runs once more, aloud,
/// four times at most; anything else that fails has failed.
///
/// # Errors
/// The test's.
///
/// # Panics
/// When what is missing is required (`CLEARPOD_REQUIRE`).
pub async fn on_a_node<T: AsyncFn() -> Result<()>>(test: T) -> Result<()> {
    // A closure is called after the test that it is in.
    let mut names = type_name::<T>().rsplit("::");
    let name = names.find(|name| !name.starts_with('{')).unwrap_or_default();
    if skip(name) {
        return Ok(());
    }
    in_spite_of_losses(test).await
}

/// Does something that a guest may not survive on an emulated node, up to so many times, aloud: again only when that has lost a guest meanwhile.
///
/// # Errors
/// Of the last attempt; they count from 1.
pub async fn again_when_lost<T>(
    node: &Node,
    tries: usize,
    mut work: impl AsyncFnMut(usize) -> Result<T>,
) -> Result<T> {
    let mut attempt = 1;
    loop {
        let before = node.lost_guests();
        match work(attempt).await {
            Err(error) if attempt < tries && await_more(before, || node.lost_guests()) => {
                tell(&error);
                attempt += 1;
            }
            result => return result,
        }
    }
}

/// Whether there are more than `before` within so long as a daemon takes to see a VMM's end; on an emulated node only.
pub(crate) fn await_more(before: usize, now: impl Fn() -> usize) -> bool {
    let until = Instant::now() + SEEN_WITHIN;
    while is_emulated() && now() <= before && Instant::now() < until {
        sleep(Duration::from_millis(100));
    }
    now() > before
}

/// Past the test harness, which shows what a test prints only when it fails in the end.
fn tell(error: &anyhow::Error) {
    let line = format!("ONCE MORE: the emulated processor lost a guest, and so it failed: {error:#}\n");
    // Nobody reads it then.
    drop(stderr().write_all(line.as_bytes()));
}

async fn in_spite_of_losses(test: impl AsyncFn() -> Result<()>) -> Result<()> {
    let mut left = TRIES;
    loop {
        let before = LOST.load(Ordering::Relaxed);
        let result = Box::pin(test()).await;
        left -= 1;
        match result {
            Err(error) if left > 0 && is_emulated() && LOST.load(Ordering::Relaxed) > before => tell(&error),
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[tokio::test]
    async fn a_failure_that_is_not_the_processors_stays_one() {
        let runs = AtomicUsize::new(0);
        let result = in_spite_of_losses(async || {
            runs.fetch_add(1, Ordering::Relaxed);
            add(count("the machine has ended: the guest's kernel panicked"));
            bail!("no answer")
        });
        assert!(result.await.is_err());
        assert_eq!(runs.into_inner(), 1);
    }
}
