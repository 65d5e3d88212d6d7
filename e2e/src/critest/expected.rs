//! The list of what is expected of each spec (`e2e/critest-expected.toml`).

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::Outcome;

/// By the spec's name.
pub type Expected = BTreeMap<String, Expectation>;

/// Of one spec.
#[derive(Debug, Clone)]
pub struct Expectation {
    pub outcome: Outcome,
    /// Why it does not pass; empty when it does.
    pub reason: String,
    /// On hosts that lack something it skips itself and says this: as good as what is expected.
    pub or_skips: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    expect: Vec<Group>,
}

/// Specs that end alike for the same reason.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    outcome: Outcome,
    #[serde(default)]
    reason: String,
    or_skips: Option<String>,
    specs: Vec<String>,
}

/// Reads the list.
///
/// # Errors
/// It is no such list, names a spec twice, or expects something else than a pass without a reason.
pub fn read(text: &str) -> Result<Expected> {
    let file: File = toml::from_str(text).context("parse the list of expectations")?;
    let mut expected = Expected::new();
    for group in file.expect {
        let (outcome, reason) = (group.outcome, &group.reason);
        ensure!(
            (outcome == Outcome::Pass) == reason.is_empty(),
            "a reason is for specs that do not pass, and they need one: {outcome:?}, {reason:?}"
        );
        for name in group.specs {
            let expectation = Expectation {
                outcome,
                reason: reason.clone(),
                or_skips: group.or_skips.clone(),
            };
            ensure!(
                expected.insert(name.clone(), expectation).is_none(),
                "listed twice: {name}"
            );
        }
    }
    Ok(expected)
}
