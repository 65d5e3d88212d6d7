//! How long each phase of a sandbox's start took, on the monotonic clock, for verbose status and `clearpod pods --timing`.

use proto::machine::Timeline;
use serde::{Deserialize, Serialize};

use crate::clock::monotonic_ns;

/// Phases in the order in which they ended. Some ran side by side, so they do not add up to the total.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Timings {
    pub(crate) phases: Vec<Phase>,
    /// Its guest went on from a template and did not boot.
    #[serde(default)]
    pub(crate) forked: bool,
}

/// One phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Phase {
    pub(crate) name: String,
    /// Microseconds after the request.
    pub(crate) start_us: u64,
    pub(crate) duration_us: u64,
}

/// Measures the phases of one start.
#[derive(Debug, Clone)]
pub(super) struct Stopwatch {
    origin_ns: u64,
    timings: Timings,
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self {
            origin_ns: monotonic_ns(),
            timings: Timings::default(),
        }
    }

    /// A phase from `start_ns` to `end_ns`, monotonic.
    pub(super) fn phase(&mut self, name: &str, start_ns: u64, end_ns: u64) {
        self.timings.phases.push(Phase {
            name: name.to_owned(),
            start_us: start_ns.saturating_sub(self.origin_ns) / 1000,
            duration_us: end_ns.saturating_sub(start_ns) / 1000,
        });
    }

    /// A phase that ends now.
    pub(super) fn phase_since(&mut self, name: &str, start_ns: u64) {
        self.phase(name, start_ns, monotonic_ns());
    }

    /// The VMM's own account of the time between the start of its process and `ready_ns`.
    pub(super) fn machine(&mut self, launched_ns: u64, timeline: &Timeline, ready_ns: u64, forked: bool) {
        self.timings.forked = forked;
        let process = timeline.process_started_ns;
        self.phase("vmm-spawn", launched_ns, process);
        if let Some(kernel) = timeline.kernel_entered_ns {
            self.phase("vmm-setup", process, kernel);
            let guest = if forked { "guest-fork" } else { "guest-boot" };
            self.phase(guest, kernel, ready_ns);
        }
        self.phase("machine", launched_ns, ready_ns);
    }

    pub(super) fn finish(mut self) -> Timings {
        self.phase_since("total", self.origin_ns);
        self.timings
    }
}
