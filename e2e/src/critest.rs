//! What critest's report says, held against what is expected of each of its specs.
//!
//! The report is ginkgo's JSON. A spec that was not selected and one that skipped itself have the same state there; only the
//! second one has a message. A run that was cut short looks like one with less selected, so the number of specs that ginkgo
//! meant to run is compared as well.

mod benchmark;
mod expected;
mod report;

use std::collections::BTreeMap;

pub use benchmark::{Benchmarks, read_benchmarks};
pub use expected::{Expectation, Expected, read as read_expected};
pub use report::{Report, Spec, read as read_report};
use serde::Deserialize;

/// How a spec ended, or should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Pass,
    Fail,
    Skip,
}

/// A run, judged.
#[derive(Debug, Default)]
pub struct Verdict {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
    /// A line for each thing that is not as expected: unexpected passes too.
    pub surprises: Vec<String>,
    /// A line for each spec that failed or skipped as expected, with the reason.
    pub known: Vec<String>,
}

/// Judges a report; without expectations each failure is a surprise and each skip is fine.
#[must_use]
pub fn judge(report: &Report, expected: Option<&Expected>) -> Verdict {
    let mut verdict = Verdict {
        surprises: report.troubles.clone(),
        ..Verdict::default()
    };
    for spec in &report.specs {
        *match spec.outcome {
            Outcome::Pass => &mut verdict.passed,
            Outcome::Fail => &mut verdict.failed,
            Outcome::Skip => &mut verdict.skipped,
        } += 1;
        match expected.map(|expected| expected.get(&spec.name)) {
            None if spec.outcome == Outcome::Fail => verdict.surprises.push(spec.line()),
            None => {}
            Some(None) => verdict
                .surprises
                .push(format!("{} (nothing is expected of it)", spec.line())),
            Some(Some(expectation)) => verdict.compare(spec, expectation),
        }
    }
    let unknown = expected
        .into_iter()
        .flat_map(BTreeMap::keys)
        .filter(|name| !report.names.contains(*name));
    verdict
        .surprises
        .extend(unknown.map(|name| format!("expected, and no spec of this critest: {name}")));
    verdict
}

/// How long the specs that passed in both took, in this report and in the other; and how many they are.
#[must_use]
pub fn seconds_beside(report: &Report, other: &Report) -> (f64, f64, usize) {
    let passed = |report: &Report| -> BTreeMap<String, f64> {
        let passed = report.specs.iter().filter(|spec| spec.outcome == Outcome::Pass);
        passed.map(|spec| (spec.name.clone(), spec.seconds)).collect()
    };
    let (here, there) = (passed(report), passed(other));
    let both = here
        .iter()
        .filter_map(|(name, seconds)| Some((seconds, there.get(name)?)));
    both.fold((0.0, 0.0, 0), |(a, b, count), (here, there)| {
        (a + here, b + there, count + 1)
    })
}

impl Verdict {
    fn compare(&mut self, spec: &Spec, expectation: &Expectation) {
        let reason = &expectation.reason;
        let told = expectation
            .or_skips
            .as_deref()
            .filter(|told| spec.message.contains(told));
        if let (Outcome::Skip, Some(told)) = (spec.outcome, told) {
            self.known.push(format!("Skip: {}: {told}", spec.name));
        } else if spec.outcome != expectation.outcome {
            let expected = expectation.outcome;
            let because = if reason.is_empty() {
                String::new()
            } else {
                format!(": {reason}")
            };
            self.surprises
                .push(format!("{} (expected {expected:?}{because})", spec.line()));
        } else if spec.outcome != Outcome::Pass {
            self.known
                .push(format!("{:?}: {}: {reason}", spec.outcome, spec.name));
        }
    }
}

#[cfg(test)]
mod tests;
