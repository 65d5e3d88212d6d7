//! The repository's own promises: documents name files that exist, crates depend on what they may. Needs nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Words in backquotes that look like paths below a top-level folder.
fn named_paths(text: &str) -> Vec<&str> {
    let folders = ["proto/", "cri-server/", "vmm/", "agent/", "deploy/", "e2e/"];
    let quoted = text.split('`').skip(1).step_by(2);
    let paths =
        quoted.filter(|word| folders.iter().any(|folder| word.starts_with(folder)) && !word.contains(' '));
    paths.collect()
}

#[test]
fn documents_name_only_what_exists() -> Result<()> {
    if !root().join("Cargo.toml").exists() {
        // On the emulated node there is no checkout; the same test runs beside the sources.
        return Ok(());
    }
    for document in ["README.md", "ARCHITECTURE.md", "docs/crictl.md"] {
        let text = fs_err::read_to_string(root().join(document))?;
        let paths = named_paths(&text);
        ensure!(
            !paths.is_empty(),
            "{document} names no path: the test reads it wrongly"
        );
        for path in paths {
            ensure!(
                root().join(path).exists(),
                "{document} names {path}, which does not exist"
            );
        }
    }
    Ok(())
}

#[test]
fn crates_depend_only_on_what_they_may() -> Result<()> {
    if !root().join("Cargo.toml").exists() {
        return Ok(());
    }
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .context("cargo metadata")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let names: Vec<&str> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    let mut ours = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().context("name")?;
        let dependencies = package["dependencies"].as_array().context("dependencies")?;
        let of_ours = dependencies
            .iter()
            .filter_map(|dependency| dependency["name"].as_str());
        let mut of_ours: Vec<&str> = of_ours
            .filter(|other| names.contains(other) && *other != name)
            .collect();
        of_ours.dedup();
        ours.insert(name, of_ours);
    }
    let wanted = BTreeMap::from([
        ("agent", vec!["proto"]),
        ("cri-server", vec!["proto"]),
        ("e2e", vec!["proto"]),
        ("proto", vec![]),
        ("vmm", vec!["proto"]),
    ]);
    ensure!(ours == wanted, "{ours:?}");
    Ok(())
}

/// What stands between each `before` and the quotation mark after it.
fn quoted_after<'t>(text: &'t str, before: &'t str) -> impl Iterator<Item = String> + 't {
    let named = text.split(before).skip(1);
    named.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
}

fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

#[test]
fn the_daemon_is_killed_at_every_point_that_it_has() -> Result<()> {
    if !root().join("Cargo.toml").exists() {
        return Ok(());
    }
    let mut points = BTreeSet::new();
    for source in sources(&root().join("cri-server/src"))? {
        let text = fs_err::read_to_string(source)?;
        points.extend(quoted_after(&text, "failpoint::reached(\""));
    }
    ensure!(
        !points.is_empty(),
        "no source names a point: the test reads them wrongly"
    );
    for test in ["cri-server/tests/crash/main.rs", "e2e/tests/crash.rs"] {
        let text = fs_err::read_to_string(root().join(test))?;
        // Its lists stand before the first test.
        let (lists, _) = text.split_once("#[tokio::test").context("a test")?;
        let lists = lists.split_once("const START").context("a list")?.1;
        let killed_at: BTreeSet<String> = lists.split('"').skip(1).step_by(2).map(str::to_owned).collect();
        ensure!(
            killed_at == points,
            "{test} kills at {killed_at:?}, and there are {points:?}"
        );
    }
    Ok(())
}
