//! Who may start a Machine now: so many at once, in the order of asking, and only while the host has the memory for it.
//!
//! A Machine's memory becomes the host's as its guest touches it, so that pods can be promised more than there is, as with containers:
//! kubelet adds up their requests, and evicts. What it does not prevent is a start on a host that has nothing left, for which the host's
//! kernel would kill the VMM of some other pod.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::RequestError;
use crate::{config::Config, machine::capacity};

/// That a guest takes from the host until its first container runs, if it boots: one that goes on from a template takes less, and
/// may have to boot (`memory` of `clearpod_cold` in `e2e/benches/README.md`).
const START_MIB: u64 = 64;

/// The starts of a node.
#[derive(Debug)]
pub(crate) struct Turns {
    at_once: Arc<Semaphore>,
    under_way: Arc<AtomicU64>,
    /// That no start takes from the host, MiB.
    reserve_mib: u64,
}

/// The right to start a Machine; it is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _permit: OwnedSemaphorePermit,
    under_way: Arc<AtomicU64>,
}

impl Turns {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            at_once: Arc::new(Semaphore::new(config.starts_at_once())),
            under_way: Arc::default(),
            reserve_mib: config.machine.memory_reserve_mib,
        }
    }

    pub(crate) async fn take(&self) -> Result<Turn, RequestError> {
        let permit = Arc::clone(&self.at_once).acquire_owned().await;
        let turn = Turn {
            // It is never closed.
            _permit: permit.map_err(RequestError::failed("wait for the machine's turn to start"))?,
            under_way: Arc::clone(&self.under_way),
        };
        let others = self.under_way.fetch_add(1, Ordering::Relaxed);
        // Where it cannot be told, nobody is refused for it.
        if let Some(available_mib) = capacity::available_mib() {
            check(available_mib, others, self.reserve_mib)?;
        }
        Ok(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether one more can start beside `others`, of whose memory some is taken already.
fn check(available_mib: u64, others: u64, reserve_mib: u64) -> Result<(), RequestError> {
    let needed_mib = START_MIB.saturating_mul(others.saturating_add(1));
    if available_mib >= needed_mib.saturating_add(reserve_mib) {
        return Ok(());
    }
    Err(RequestError::TooMany {
        what: format!(
            "start a machine: the host has {available_mib} MiB of memory available; this start and {others} under way take up to \
             {needed_mib} MiB, and {reserve_mib} are kept free (machine.memory_reserve_mib)"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_under_way_count_as_if_they_had_taken_nothing_yet() {
        for (available, others, fits) in [
            (127, 0, false),
            (128, 0, true),
            (191, 1, false),
            (192, 1, true),
            (u64::MAX - 1, u64::MAX, false),
        ] {
            assert_eq!(check(available, others, 64).is_ok(), fits, "{available} {others}");
        }
        let refusal = check(100, 2, 64).unwrap_err().to_string();
        assert!(
            refusal.contains("100 MiB") && refusal.contains("machine.memory_reserve_mib"),
            "{refusal}"
        );
    }

    #[tokio::test]
    async fn a_refused_start_leaves_its_place_to_the_next() {
        let mut config = Config::default();
        config.machine.starts_at_once = Some(1);
        config.machine.memory_reserve_mib = u64::MAX;
        let mut turns = Turns::new(&config);
        for _ in 0..3 {
            let refused = turns.take().await.unwrap_err();
            assert!(matches!(refused, RequestError::TooMany { .. }), "{refused:?}");
        }
        assert_eq!(turns.under_way.load(Ordering::Relaxed), 0);
        turns.reserve_mib = 0;
        let turn = turns.take().await.unwrap();
        assert_eq!(turns.under_way.load(Ordering::Relaxed), 1);
        drop(turn);
        turns.take().await.unwrap();
    }
}
