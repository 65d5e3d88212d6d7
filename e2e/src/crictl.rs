//! The real crictl, as an operator runs it.

use std::{path::Path, process::Stdio};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

/// Runs crictl against the socket; its standard output without the last newline.
pub(crate) async fn run(program: &Path, socket: &Path, args: &[&str]) -> Result<String> {
    let endpoint = format!("unix://{}", socket.display());
    let output = Command::new(program)
        .args([
            "--runtime-endpoint",
            &endpoint,
            "--image-endpoint",
            &endpoint,
            "--timeout",
            "120s",
        ])
        .args(args)
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
