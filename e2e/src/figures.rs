//! Named series of samples, and what is said of them.

use std::io::Write;

use serde_json::{Map, Value, json};

/// Samples by name, in the order in which names came up.
#[derive(Debug, Default)]
pub struct Figures(Vec<(String, Vec<f64>)>);

impl Figures {
    /// One more sample of a series.
    pub fn add(&mut self, name: &str, sample: f64) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, samples)) => samples.push(sample),
            None => self.0.push((name.to_owned(), vec![sample])),
        }
    }

    /// All series, in the order in which they came up.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// Of a series that has samples.
    #[must_use]
    pub fn median(&self, name: &str) -> Option<f64> {
        let (_, samples) = self.0.iter().find(|(known, _)| known == name)?;
        Some(percentile(samples, 50))
    }

    /// Of a series, in the order in which they were taken.
    #[must_use]
    pub fn samples(&self, name: &str) -> &[f64] {
        let series = self.0.iter().find(|(known, _)| known == name);
        series.map_or(&[], |(_, samples)| samples)
    }

    /// All series with their percentiles.
    #[must_use]
    pub fn json(&self) -> Value {
        let one = |samples: &Vec<f64>| json!({"p50": percentile(samples, 50), "p90": percentile(samples, 90), "p99": percentile(samples, 99), "samples": samples});
        let all: Map<_, _> = self
            .0
            .iter()
            .map(|(name, samples)| (name.clone(), one(samples)))
            .collect();
        Value::Object(all)
    }

    /// One line a series.
    ///
    /// # Errors
    /// Of `out`.
    pub fn write(&self, title: &str, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(
            out,
            "{title:<34} {:>10} {:>10} {:>10} {:>4}",
            "p50", "p90", "p99", "n"
        )?;
        for (name, samples) in &self.0 {
            let [p50, p90, p99] = [50, 90, 99].map(|percent| percentile(samples, percent));
            let count = samples.len();
            writeln!(out, "  {name:<32} {p50:>10.2} {p90:>10.2} {p99:>10.2} {count:>4}")?;
        }
        Ok(())
    }
}

/// The smallest sample that so many percent of the samples are no greater than.
fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (samples.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}
