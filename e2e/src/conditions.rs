//! Under which conditions the figures were taken.

use std::{env, process::Command};

use crate::Node;
use anyhow::Result;
use proto::cri::v1::VersionRequest;
use serde_json::{Value, json};

/// The load of the host; to be asked first: later it is our own.
///
/// # Errors
/// Of /proc.
pub fn load() -> Result<String> {
    Ok(fs_err::read_to_string("/proc/loadavg")?.trim().to_owned())
}

/// The host and what runs on it.
///
/// # Errors
/// When the daemon does not answer, or of /proc.
pub async fn describe(node: &Node, load: &str, guest_kernel: &str) -> Result<Value> {
    let cpuinfo = fs_err::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let version = node
        .cri()
        .runtime
        .version(VersionRequest::default())
        .await?
        .into_inner();
    Ok(json!({
        "backend": env::var("CLEARPOD_BACKEND").unwrap_or_default(),
        "commit": env::var("CLEARPOD_COMMIT").unwrap_or_default(),
        "date": said("date", &["--iso-8601=seconds"]),
        "cpu": model.map(|(_, model)| model),
        "cores": std::thread::available_parallelism()?.get(),
        "memory_total_kib": crate::process::field_kib(&fs_err::read_to_string("/proc/meminfo")?, "MemTotal"),
        "kernel": fs_err::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "load_average_before": load,
        "load_average_of_the_host": env::var("CLEARPOD_HOST_LOAD").unwrap_or_default(),
        "clearpod": version.runtime_version,
        "guest_kernel": guest_kernel,
        "qemu": said("qemu-system-x86_64", &["--version"]).lines().next(),
    }))
}

/// What a program prints; empty when there is none.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_default()
}
