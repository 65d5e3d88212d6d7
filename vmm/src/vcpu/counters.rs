//! How often the guest left KVM for us, by kind: the price of a boot that does not depend on the clock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Kinds of exits, and of accesses that nobody answered.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ExitKind {
    PortRead,
    PortWrite,
    MemoryRead,
    MemoryWrite,
    UnclaimedPort,
    UnclaimedMemory,
    Interrupted,
    Other,
}

const NAMES: [(ExitKind, &str); 8] = [
    (ExitKind::PortRead, "port_read"),
    (ExitKind::PortWrite, "port_write"),
    (ExitKind::MemoryRead, "memory_read"),
    (ExitKind::MemoryWrite, "memory_write"),
    (ExitKind::UnclaimedPort, "unclaimed_port"),
    (ExitKind::UnclaimedMemory, "unclaimed_memory"),
    (ExitKind::Interrupted, "interrupted"),
    (ExitKind::Other, "other"),
];

/// One counter per kind.
#[derive(Debug, Default)]
pub(crate) struct ExitCounters([AtomicU64; NAMES.len()]);

impl ExitCounters {
    pub(crate) fn count(&self, kind: ExitKind) {
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Unclaimed accesses are also counted as reads and writes.
    pub(crate) fn read(&self) -> BTreeMap<String, u64> {
        let value = |kind: ExitKind| self.0[kind as usize].load(Ordering::Relaxed);
        NAMES
            .iter()
            .map(|(kind, name)| ((*name).to_owned(), value(*kind)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_counted_under_its_own_name() {
        let counters = ExitCounters::default();
        for (times, (kind, _)) in NAMES.iter().enumerate() {
            (0..times).for_each(|_| counters.count(*kind));
        }
        let read = counters.read();
        for (times, (_, name)) in NAMES.iter().enumerate() {
            assert_eq!(read[*name], times as u64, "{name}");
        }
    }
}
