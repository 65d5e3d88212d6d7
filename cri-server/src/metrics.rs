//! Counters of the daemon: calls per RPC, failures, time. Shown in verbose Status.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde::Serialize;

/// Everything counted since the daemon's start.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    calls: Mutex<BTreeMap<&'static str, Calls>>,
}

/// The calls of one RPC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Calls {
    pub(crate) count: u64,
    pub(crate) failed: u64,
    pub(crate) total_us: u64,
    pub(crate) longest_us: u64,
}

impl Metrics {
    pub(crate) fn call(&self, rpc: &'static str, took: Duration, failed: bool) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = calls.entry(rpc).or_default();
        calls.count += 1;
        calls.failed += u64::from(failed);
        calls.total_us = calls.total_us.saturating_add(took);
        calls.longest_us = calls.longest_us.max(took);
    }

    pub(crate) fn calls(&self) -> BTreeMap<&'static str, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_rpc() {
        let metrics = Metrics::default();
        metrics.call("Version", Duration::from_micros(3), false);
        metrics.call("Version", Duration::from_micros(5), true);
        let expected = Calls {
            count: 2,
            failed: 1,
            total_us: 8,
            longest_us: 5,
        };
        assert_eq!(metrics.calls(), BTreeMap::from([("Version", expected)]));
    }
}
