//! The repository's own promises: documents name files that exist, crates depend on what they may. Needs nothing.

use std::{
    collections::BTreeMap,
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
