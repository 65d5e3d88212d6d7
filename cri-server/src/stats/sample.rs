//! Rates of processor use: between a measurement and an earlier one of the same container or sandbox.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use crate::sandbox::SandboxView;

/// Two measurements closer than this tell no rate; the last one holds.
const WINDOW_NS: u64 = 1_000_000_000;
const SECOND_NS: u128 = 1_000_000_000;

/// The last measurements, by id.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    by_id: Mutex<BTreeMap<String, Sample>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    usage_ns: u64,
    /// CLOCK_MONOTONIC of the host.
    at_ns: u64,
    nano_cores: Option<u64>,
}

impl Samples {
    /// Billionths of a processor, at most those of `processors`; `None` until there were two measurements.
    pub(super) fn nano_cores(&self, id: &str, usage_ns: u64, at_ns: u64, processors: u32) -> Option<u64> {
        let mut samples = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        let sample = next(samples.get(id).copied(), usage_ns, at_ns, processors);
        samples.insert(id.to_owned(), sample);
        sample.nano_cores
    }

    /// Forgets what is no more.
    pub(super) fn keep(&self, views: &[Arc<SandboxView>]) {
        let known: BTreeSet<&str> = views
            .iter()
            .flat_map(|view| {
                let containers = view.containers.iter().map(|container| container.id.as_str());
                containers.chain([view.id.as_str()])
            })
            .collect();
        let mut samples = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        samples.retain(|id, _| known.contains(id.as_str()));
    }
}

fn next(before: Option<Sample>, usage_ns: u64, at_ns: u64, processors: u32) -> Sample {
    let first = Sample {
        usage_ns,
        at_ns,
        nano_cores: None,
    };
    let Some(before) = before else { return first };
    let elapsed = at_ns.saturating_sub(before.at_ns);
    if elapsed < WINDOW_NS {
        return before;
    }
    // A counter that went back was begun anew, or is a lie.
    let Some(used) = usage_ns.checked_sub(before.usage_ns) else {
        return first;
    };
    let most = u128::from(processors) * SECOND_NS;
    let nano_cores = (u128::from(used) * SECOND_NS / u128::from(elapsed)).min(most);
    Sample {
        nano_cores: u64::try_from(nano_cores).ok(),
        ..first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn a_rate_needs_two_measurements_that_are_apart() {
        let samples = Samples::default();
        assert_eq!(samples.nano_cores("c", 0, 10 * S, 2), None);
        assert_eq!(samples.nano_cores("c", S / 2, 10 * S + S / 2, 2), None);
        assert_eq!(samples.nano_cores("c", S, 12 * S, 2), Some(S / 2));
        assert_eq!(
            samples.nano_cores("c", 9 * S, 12 * S + 1, 2),
            Some(S / 2),
            "too early"
        );
        assert_eq!(samples.nano_cores("other", S, 12 * S, 2), None);
    }

    #[test]
    fn what_a_guest_claims_is_at_most_all_of_its_processors() {
        let samples = Samples::default();
        samples.nano_cores("c", 0, 0, 2);
        assert_eq!(samples.nano_cores("c", u64::MAX, S, 2), Some(2 * S));
        assert_eq!(samples.nano_cores("c", 0, 3 * S, 2), None, "it went back");
        assert_eq!(samples.nano_cores("c", S, 4 * S, 2), Some(S));
    }

    #[test]
    fn what_is_no_more_is_forgotten() {
        let samples = Samples::default();
        samples.nano_cores("c", 0, 0, 1);
        samples.keep(&[]);
        assert_eq!(samples.nano_cores("c", S, 5 * S, 1), None);
    }
}
