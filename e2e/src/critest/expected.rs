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
    /// Only runs of this variant are meant, and for them it replaces what is expected of all.
    variant: Option<String>,
    specs: Vec<String>,
}

/// Reads the list as it is for a variant of the run; `None` is the run with nothing special.
///
/// # Errors
/// It is no such list, names a spec twice, knows no such variant, or expects something else than a pass without a reason.
pub fn read(text: &str, variant: Option<&str>) -> Result<Expected> {
    let file: File = toml::from_str(text).context("parse the list of expectations")?;
    let (special, all): (Vec<_>, Vec<_>) = file.expect.into_iter().partition(|group| group.variant.is_some());
    let mut expected = by_name(all)?;
    let of_variant: Vec<_> = special
        .into_iter()
        .filter(|group| group.variant.as_deref() == variant)
        .collect();
    ensure!(
        variant.is_none() || !of_variant.is_empty(),
        "nothing is expected of the variant {variant:?}"
    );
    expected.extend(by_name(of_variant)?);
    Ok(expected)
}

fn by_name(groups: Vec<Group>) -> Result<Expected> {
    let mut expected = Expected::new();
    for group in groups {
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
