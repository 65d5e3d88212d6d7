//! `clearpod gc`: removes what no recorded sandbox owns. A daemon does the same at its start, and holds the lock.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::{
    app::{App, Drivers},
    config::Config,
};

pub(super) async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let drivers = Drivers::real(&config);
    let app = tokio::task::spawn_blocking(move || App::build(config, drivers))
        .await?
        .context("a running daemon collects by itself when it starts")?;
    app.collect_garbage().await?;
    Ok(ExitCode::SUCCESS)
}
