//! `clearpod console <sandbox>`: the end of the guest's console, also after its end.

use std::{io::Write, process::ExitCode};

use anyhow::Context as _;

use super::client;
use crate::config::Config;

pub(super) async fn run(config: &Config, sandbox: &str, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut client = client::connect(config).await?;
    let status = client::status(&mut client, sandbox).await?;
    let text: String = status
        .info
        .get("console")
        .map(|json| serde_json::from_str(json))
        .transpose()
        .context("read the daemon's answer")?
        .unwrap_or_default();
    writeln!(out, "{}", text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}
