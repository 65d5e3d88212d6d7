//! Ginkgo's JSON report, as far as we read it.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::Outcome;

/// A run of the suite.
#[derive(Debug, Default)]
pub struct Report {
    /// Those that ran, or skipped themselves.
    pub specs: Vec<Spec>,
    /// All that there are, selected or not.
    pub names: BTreeSet<String>,
    /// What went wrong outside of specs.
    pub troubles: Vec<String>,
    /// Of the whole suite.
    pub seconds: f64,
}

/// One spec.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its texts from the outside to the inside, without critest's "[k8s.io]".
    pub name: String,
    pub outcome: Outcome,
    /// Why it failed or skipped itself.
    pub message: String,
    pub seconds: f64,
}

/// Bytes of a failure's message that a person is shown.
const SHOWN: usize = 600;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    pre_run_stats: Stats,
    #[serde(default)]
    special_suite_failure_reasons: Option<Vec<String>>,
    run_time: u64,
    spec_reports: Vec<Node>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Stats {
    specs_that_will_run: usize,
}

/// A spec, or something that runs before or after all of them.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    run_time: u64,
    #[serde(default)]
    failure: Failure,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Failure {
    message: String,
}

impl Spec {
    /// For a person.
    #[must_use]
    pub fn line(&self) -> String {
        let words: Vec<_> = self.message.split_whitespace().collect();
        let mut message = words.join(" ");
        message.truncate(message.floor_char_boundary(SHOWN));
        let colon = if message.is_empty() { "" } else { ": " };
        format!("{:?}: {}{colon}{message}", self.outcome, self.name)
    }
}

/// Reads a report of one suite.
///
/// # Errors
/// It is no such report.
pub fn read(text: &str) -> Result<Report> {
    let suites: Vec<Suite> = serde_json::from_str(text).context("parse ginkgo's JSON report")?;
    ensure!(
        suites.len() == 1,
        "a report of {} suites instead of one",
        suites.len()
    );
    let mut report = Report::default();
    for suite in suites {
        report.seconds = seconds(suite.run_time);
        for reason in suite.special_suite_failure_reasons.unwrap_or_default() {
            report.troubles.push(format!("the suite: {reason}"));
        }
        suite.spec_reports.into_iter().for_each(|node| report.add(node));
        let (meant, ran) = (suite.pre_run_stats.specs_that_will_run, report.specs.len());
        if meant != ran || ran == 0 {
            report
                .troubles
                .push(format!("{ran} specs ran of {meant} that were selected"));
        }
    }
    Ok(report)
}

impl Report {
    fn add(&mut self, node: Node) {
        let outcome = match node.state.as_str() {
            "passed" => Outcome::Pass,
            "skipped" | "pending" => Outcome::Skip,
            _ => Outcome::Fail,
        };
        let name = name(&node);
        if node.leaf_node_type != "It" {
            if outcome == Outcome::Fail {
                self.troubles.push(format!(
                    "{} {}: {}",
                    node.leaf_node_type, node.state, node.failure.message
                ));
            }
            return;
        }
        self.names.insert(name.clone());
        if outcome == Outcome::Skip && node.failure.message.is_empty() {
            return;
        }
        self.specs.push(Spec {
            name,
            outcome,
            message: node.failure.message,
            seconds: seconds(node.run_time),
        });
    }
}

fn texts(node: &Node) -> impl Iterator<Item = &String> {
    let containers = node.container_hierarchy_texts.iter().flatten();
    containers.chain([&node.leaf_node_text])
}

fn name(node: &Node) -> String {
    let texts: Vec<_> = texts(node)
        .map(|text| text.trim_start_matches("[k8s.io] "))
        .collect();
    texts.join(" / ")
}

fn seconds(nanoseconds: u64) -> f64 {
    std::time::Duration::from_nanos(nanoseconds).as_secs_f64()
}
