//! What a node test needs, and what happens when it is missing.
#![expect(clippy::print_stderr, reason = "a skipped test says so in the test's output")]

use std::{env, path::PathBuf};

/// Directory of the programs and files under test; absent when this is no node test run.
pub(crate) fn bundle() -> Option<PathBuf> {
    env::var_os("CLEARPOD_BUNDLE").map(PathBuf::from)
}

/// True when the test cannot run here and need not; says so. Fails when `CLEARPOD_REQUIRE` names what is missing.
///
/// # Panics
/// When what is missing is required.
#[must_use]
pub(crate) fn skip(test: &str) -> bool {
    let missing = if !nix::unistd::geteuid().is_root() {
        "root"
    } else if bundle().is_none() {
        "kvm"
    } else {
        return false;
    };
    let required = env::var("CLEARPOD_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|one| one == missing),
        "{test}: {missing} is required and missing"
    );
    eprintln!("SKIPPED: {test} needs {missing} (e2e/run provides it)");
    true
}
