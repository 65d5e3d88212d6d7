//! `clearpod console <sandbox>`: the end of the guest's console, also after its end.

use std::{io::Write, process::ExitCode};

use super::client;
use crate::config::Config;

pub(super) async fn run(config: &Config, sandbox: &str, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut client = client::connect(config).await?;
    let (_, info) = client::status(&mut client, sandbox).await.map_err(client::told)?;
    writeln!(out, "{}", info.console.trim_end())?;
    Ok(ExitCode::SUCCESS)
}
