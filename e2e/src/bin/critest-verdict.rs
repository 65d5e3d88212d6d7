//! critest-verdict REPORT [--expected LIST [--variant NAME]] [--beside REPORT] [--benchmarks DIR [--benchmarks-beside DIR]]
//!
//! Judges a run of critest: says what is not as LIST expects it, compares times with the other report, and benchmarks with the
//! other directory's; ends with "N passed, N failed, N skipped"
//! as critest itself would count. The exit status is 1 when anything was unexpected, 2 when it could not judge.

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use e2e::critest::{Report, judge, read_benchmarks, read_expected, read_report, seconds_beside};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            drop(writeln!(io::stderr(), "critest-verdict: {error:#}"));
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool> {
    let (mut report, mut expected, mut variant, mut beside) = (None, None, None, None);
    let (mut benchmarks, mut benchmarks_beside) = (None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--expected" => expected = Some(arguments.next().context("--expected needs a file")?),
            "--variant" => variant = Some(arguments.next().context("--variant needs a name")?),
            "--beside" => beside = Some(arguments.next().context("--beside needs a file")?),
            "--benchmarks" => benchmarks = Some(arguments.next().context("--benchmarks needs a directory")?),
            "--benchmarks-beside" => {
                benchmarks_beside = Some(
                    arguments
                        .next()
                        .context("--benchmarks-beside needs a directory")?,
                );
            }
            _ if report.is_none() => report = Some(argument),
            _ => bail!("{argument}: one report at a time"),
        }
    }
    let report = load(&report.context("usage: critest-verdict REPORT [--expected LIST] [--beside REPORT]")?)?;
    let expected = expected
        .map(|path| read_expected(&fs_err::read_to_string(&path)?, variant.as_deref()).context(path))
        .transpose()?;
    let verdict = judge(&report, expected.as_ref());
    let mut out = io::stdout().lock();
    for known in &verdict.known {
        writeln!(out, "  as expected: {known}")?;
    }
    for surprise in &verdict.surprises {
        writeln!(out, "  UNEXPECTED: {surprise}")?;
    }
    writeln!(out, "critest took {:.1} s", report.seconds)?;
    if let Some(path) = beside {
        let (here, there, count) = seconds_beside(&report, &load(&path)?);
        let ratio = here / there;
        writeln!(
            out,
            "the {count} specs that passed in both: {here:.1} s against {there:.1} s, ratio {ratio:.2}"
        )?;
    }
    if let Some(directory) = benchmarks {
        let beside = benchmarks_beside.map(|other| read_benchmarks(Path::new(&other)));
        read_benchmarks(Path::new(&directory))?.write(beside.transpose()?.as_ref(), &mut out)?;
    }
    let (passed, failed, skipped) = (verdict.passed, verdict.failed, verdict.skipped);
    writeln!(out, "{passed} passed, {failed} failed, {skipped} skipped")?;
    Ok(verdict.surprises.is_empty())
}

fn load(path: &str) -> Result<Report> {
    read_report(&fs_err::read_to_string(path)?).with_context(|| path.to_owned())
}
