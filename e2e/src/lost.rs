//! Guests that the emulated processor loses by a triple fault that none of them caused (`deploy/node/README.md`, "What is known to be
//! wrong"): no fault of what is tested, and rare enough that it does not happen twice.
#![expect(
    clippy::print_stderr,
    reason = "a test that runs once more says so in its output"
)]

use std::{
    env,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::Result;

/// What the daemon says of a guest that ended so.
const SAID: &str = "KVM could not run the guest";

/// Since the beginning of the test.
static LOST: AtomicBool = AtomicBool::new(false);

/// Looks for lost guests in the log of a daemon that has ended.
pub(crate) fn look(daemon_log: &str) {
    if daemon_log.contains(SAID) {
        LOST.store(true, Ordering::Relaxed);
    }
}

/// Runs a test. One that fails on an emulated node while that loses a guest runs once more, aloud; anything else that fails has failed.
///
/// # Errors
/// The test's.
pub async fn on_a_node(test: impl AsyncFn() -> Result<()>) -> Result<()> {
    LOST.store(false, Ordering::Relaxed);
    let result = Box::pin(test()).await;
    let is_emulated = env::var("CLEARPOD_BACKEND").is_ok_and(|backend| backend == "emulated");
    match result {
        Err(error) if is_emulated && LOST.load(Ordering::Relaxed) => {
            eprintln!("ONCE MORE: the emulated processor lost a guest, and so it failed: {error:#}");
            Box::pin(test()).await
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use anyhow::bail;

    use super::*;

    #[tokio::test]
    async fn a_failure_that_is_not_the_processors_stays_one() {
        let runs = AtomicUsize::new(0);
        let result = on_a_node(async || {
            runs.fetch_add(1, Ordering::Relaxed);
            look("the machine has ended: the guest's kernel panicked");
            bail!("no answer")
        });
        assert!(result.await.is_err());
        assert_eq!(runs.into_inner(), 1);
    }
}
