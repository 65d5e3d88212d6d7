//! Runs containers with the real agent, without a VM: every case speaks gRPC and the stdio protocol to it.
//!
//! As root on a host, in namespaces of its own, with the layer in an EROFS image on a loop device; or as /init of a guest
//! (`agent/tests/run-in-guest`), with the layer on a virtio disk and real cgroups. A test binary without the usual harness, because
//! it is its own init stage, as the agent is.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::wildcard_imports,
    reason = "a test without the usual harness, which clippy does not recognise as one; its words are the protocol's"
)]

mod cases;
mod client;
mod fixture;

use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let first = args.first().map(String::as_str);
    match first {
        Some(agent::STAGE_ARGUMENT) => agent::stage_main(),
        Some("--make-layer") => {
            fixture::make_layer(std::path::Path::new(&args[1])).expect("make the layer");
            ExitCode::SUCCESS
        }
        Some(inside @ (INSIDE | INSIDE_WITH_USER_NAMESPACE)) => fixture::run_on_host(
            args.get(1).map_or("", String::as_str),
            inside == INSIDE_WITH_USER_NAMESPACE,
        ),
        Some("--list") => ExitCode::SUCCESS,
        _ if std::process::id() == 1 => fixture::run_in_guest(),
        _ => isolate(
            args.iter()
                .find(|arg| !arg.starts_with('-'))
                .map_or("", String::as_str),
        ),
    }
}

/// Arguments of this binary in namespaces of its own: the cases of a pod without and with a user namespace.
const INSIDE: &str = "--inside";
const INSIDE_WITH_USER_NAMESPACE: &str = "--inside-with-user-namespace";

/// Starts this binary again as PID 1 of namespaces of its own, once for each kind of pod.
fn isolate(filter: &str) -> ExitCode {
    if let Some(missing) = fixture::missing_on_host() {
        let required = std::env::var("CLEARPOD_REQUIRE").unwrap_or_default();
        let fail = required.split(',').any(|need| need == "root");
        println!(
            "{} agent container tests: {missing}",
            if fail { "FAILED" } else { "SKIPPED" }
        );
        return if fail {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        };
    }
    let kinds = [INSIDE, INSIDE_WITH_USER_NAMESPACE];
    let passed: Vec<bool> = kinds.map(|inside| run_inside(inside, filter)).to_vec();
    if passed.iter().all(|passed| *passed) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run_inside(inside: &str, filter: &str) -> bool {
    let this = std::env::current_exe().expect("path of this binary");
    let status = Command::new("unshare")
        .args([
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .arg(this)
        .args([inside, filter])
        .status()
        .expect("run unshare");
    status.success()
}
