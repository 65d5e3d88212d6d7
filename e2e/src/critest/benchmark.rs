//! What `critest -benchmark` measured: its files, one a benchmark, as cri-tools' `pkg/benchmark` writes them.

use std::{collections::BTreeMap, io::Write, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::Figures;

/// Milliseconds of every operation, by the benchmark's name.
#[derive(Debug, Default)]
pub struct Benchmarks(BTreeMap<String, Figures>);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Benchmark {
    operations_names: Vec<String>,
    datapoints: Vec<Datapoint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Datapoint {
    operations_durations_ns: Vec<u64>,
}

/// All files of a directory that critest wrote them to.
///
/// # Errors
/// When there are none, or one is not as critest writes them.
pub fn read_benchmarks(directory: &Path) -> Result<Benchmarks> {
    let mut benchmarks = BTreeMap::new();
    for entry in fs_err::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = name.trim_end_matches("_benchmark_data").to_owned();
        let figures = read(&fs_err::read_to_string(&path)?).with_context(|| path.display().to_string())?;
        benchmarks.insert(name, figures);
    }
    ensure!(!benchmarks.is_empty(), "nothing in {}", directory.display());
    Ok(Benchmarks(benchmarks))
}

fn read(text: &str) -> Result<Figures> {
    let benchmark: Benchmark = serde_json::from_str(text)?;
    let mut figures = Figures::default();
    for point in &benchmark.datapoints {
        let (names, durations) = (&benchmark.operations_names, &point.operations_durations_ns);
        ensure!(names.len() == durations.len(), "{names:?} took {durations:?}");
        for (name, ns) in names.iter().zip(durations) {
            figures.add(name, *ns as f64 / 1e6);
        }
    }
    Ok(figures)
}

impl Benchmarks {
    /// A line an operation: its median, and how it compares with another run's.
    ///
    /// # Errors
    /// Of `out`.
    pub fn write(&self, beside: Option<&Self>, out: &mut dyn Write) -> std::io::Result<()> {
        for (name, figures) in &self.0 {
            for series in figures.names() {
                let median = figures.median(series).unwrap_or(f64::NAN);
                write!(out, "  {name} {series}: {median:.1} ms")?;
                let other = beside.and_then(|beside| beside.0.get(name)?.median(series));
                match other {
                    Some(other) => writeln!(out, " against {other:.1} ms, ratio {:.2}", median / other)?,
                    None => writeln!(out)?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn benchmarks(ns: u64) -> Benchmarks {
        let text = format!(
            r#"{{"operationsNames": ["CreatePod", "StopPod"], "numParallel": 2, "datapoints": [
                {{"sampleIndex": 0, "startTime": 1, "endTime": 9, "operationsDurationsNs": [{ns}, 5000000], "metaInfo": null}},
                {{"sampleIndex": 1, "startTime": 1, "endTime": 9, "operationsDurationsNs": [{ns}, 7000000], "metaInfo": null}}]}}"#
        );
        Benchmarks(BTreeMap::from([("pod".to_owned(), read(&text).unwrap())]))
    }

    #[test]
    fn medians_stand_beside_another_runs() {
        let mut out = Vec::new();
        let (here, there) = (benchmarks(3_000_000), benchmarks(2_000_000));
        here.write(Some(&there), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "  pod CreatePod: 3.0 ms against 2.0 ms, ratio 1.50\n  pod StopPod: 5.0 ms against 5.0 ms, ratio 1.00\n"
        );
    }

    #[test]
    fn a_point_without_one_of_the_operations_is_an_error() {
        let text = r#"{"operationsNames": ["CreatePod"], "datapoints": [{"operationsDurationsNs": []}]}"#;
        assert!(read(text).is_err());
        let empty = tempfile::tempdir().unwrap();
        assert!(read_benchmarks(empty.path()).is_err());
    }
}
