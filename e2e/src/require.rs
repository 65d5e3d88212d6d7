//! What a node test needs, and what happens when it is missing.
#![expect(clippy::print_stderr, reason = "a skipped test says so in the test's output")]

use std::{any::type_name, env, path::PathBuf};

use anyhow::Result;

/// Directory of the programs and files under test; absent when this is no node test run.
pub(crate) fn bundle() -> Option<PathBuf> {
    env::var_os("CLEARPOD_BUNDLE").map(PathBuf::from)
}

/// Whether Machines run on an emulated node, which is thrown away.
#[must_use]
pub fn is_emulated() -> bool {
    env::var("CLEARPOD_BACKEND").is_ok_and(|backend| backend == "emulated")
}

/// Runs a test, if it can run here; one that cannot says so.
///
/// # Errors
/// The test's.
///
/// # Panics
/// When what is missing is required (`CLEARPOD_REQUIRE`).
pub async fn on_a_node<T: AsyncFnOnce() -> Result<()>>(test: T) -> Result<()> {
    // A closure is called after the test that it is in.
    let mut names = type_name::<T>().rsplit("::");
    let name = names.find(|name| !name.starts_with('{')).unwrap_or_default();
    if skip(name) {
        return Ok(());
    }
    Box::pin(test()).await
}

/// True when the test cannot run here and need not; says so. Fails when `CLEARPOD_REQUIRE` names what is missing.
fn skip(test: &str) -> bool {
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
