//! Every time-out of the node tests by its name. They are long: an emulated node is slow, and they only end a test that fails.

use std::{future::Future, path::Path, time::Duration};

use tokio::time::{Instant, sleep};

/// For a server to answer after its start.
pub const SERVER: Duration = Duration::from_secs(60);
/// For one CRI call.
pub const CALL: Duration = Duration::from_secs(180);
/// For a container to write or to end when nothing holds it up.
pub const CONTAINER: Duration = Duration::from_secs(60);
/// What the issue promises after the death of a VMM, with the time that an emulated node's own clients take.
pub const MACHINE_DEATH: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);

/// Asks until the answer is `Some`, or fails after `limit` naming `what`.
///
/// # Errors
/// When time is over.
pub async fn until<T, F: Future<Output = Option<T>>>(
    limit: Duration,
    what: &str,
    mut ask: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        anyhow::ensure!(Instant::now() < deadline, "{what}: not within {limit:?}");
        sleep(PAUSE).await;
    }
}

/// Until a daemon with fail points, whose log this is, stays at `point`.
///
/// # Errors
/// When time is over.
pub async fn held_at(limit: Duration, point: &str, daemon_log: &Path) -> anyhow::Result<()> {
    let said = format!("a fail point holds this task point=\"{point}\"");
    let is_held = async || {
        fs_err::read_to_string(daemon_log)
            .ok()?
            .contains(&said)
            .then_some(())
    };
    until(limit, point, is_held).await
}
