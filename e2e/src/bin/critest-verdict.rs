//! Judges a run of critest: says what is not as expected, compares times with another report and benchmarks with another
//! directory's, and ends with "N passed, N failed, N skipped" as critest itself would count.
//!
//! The exit status is 1 when anything was unexpected, 2 when it could not judge.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use e2e::critest::{Report, judge, read_benchmarks, read_expected, read_report, seconds_beside};

#[derive(Parser)]
struct Arguments {
    /// Ginkgo's report of the run, as JSON.
    report: PathBuf,
    /// What each spec is expected to do.
    #[arg(long, value_name = "LIST")]
    expected: Option<PathBuf>,
    /// What of the list is expected of this variant alone.
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// The report of another run, for a comparison of times.
    #[arg(long, value_name = "REPORT")]
    beside: Option<PathBuf>,
    /// What the benchmarks of this run measured.
    #[arg(long, value_name = "DIRECTORY")]
    benchmarks: Option<PathBuf>,
    /// The same of another run.
    #[arg(long, value_name = "DIRECTORY", requires = "benchmarks")]
    benchmarks_beside: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Arguments::parse(), &mut io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            drop(writeln!(io::stderr(), "critest-verdict: {error:#}"));
            ExitCode::from(2)
        }
    }
}

fn run(arguments: Arguments, out: &mut impl Write) -> Result<bool> {
    let report = load(&arguments.report)?;
    let variant = arguments.variant.as_deref();
    let expected = arguments
        .expected
        .map(|path| read_expected(&fs_err::read_to_string(&path)?, variant).with_context(|| display(&path)))
        .transpose()?;
    let verdict = judge(&report, expected.as_ref());
    for known in &verdict.known {
        writeln!(out, "  as expected: {known}")?;
    }
    for surprise in &verdict.surprises {
        writeln!(out, "  UNEXPECTED: {surprise}")?;
    }
    writeln!(out, "critest took {:.1} s", report.seconds)?;
    if let Some(path) = arguments.beside {
        compare(&report, &load(&path)?, out)?;
    }
    if let Some(directory) = arguments.benchmarks {
        let beside = arguments.benchmarks_beside.as_deref().map(read_benchmarks);
        read_benchmarks(&directory)?.write(beside.transpose()?.as_ref(), out)?;
    }
    let (passed, failed, skipped) = (verdict.passed, verdict.failed, verdict.skipped);
    writeln!(out, "{passed} passed, {failed} failed, {skipped} skipped")?;
    Ok(verdict.surprises.is_empty())
}

fn compare(report: &Report, other: &Report, out: &mut impl Write) -> io::Result<()> {
    let (here, there, count) = seconds_beside(report, other);
    let ratio = here / there;
    writeln!(
        out,
        "the {count} specs that passed in both: {here:.1} s against {there:.1} s, ratio {ratio:.2}"
    )
}

fn load(path: &Path) -> Result<Report> {
    read_report(&fs_err::read_to_string(path)?).with_context(|| display(path))
}

fn display(path: &Path) -> String {
    path.display().to_string()
}
