//! The real crictl, as an operator runs it.

use std::{path::Path, process::Stdio};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

/// crictl, to be run against the socket.
pub(crate) fn command(program: &Path, socket: &Path, args: &[&str]) -> Command {
    let endpoint = format!("unix://{}", socket.display());
    let mut command = Command::new(program);
    command
        .args([
            "--runtime-endpoint",
            &endpoint,
            "--image-endpoint",
            &endpoint,
            "--timeout",
            "120s",
        ])
        .args(args);
    command
}

/// Runs it; its standard output without the last newline.
pub(crate) async fn run(program: &Path, socket: &Path, args: &[&str]) -> Result<String> {
    let output = command(program, socket, args)
        .stdin(Stdio::null())
        .output()
        .await
        .context("run crictl")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "crictl {}: {}: {complaint}",
        args.join(" "),
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}
