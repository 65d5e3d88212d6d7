//! `clearpod serve`: until SIGTERM or SIGINT.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use crate::{
    app::{App, Drivers},
    config::Config,
};

pub(super) async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let drivers = Drivers::real(&config);
    let app = tokio::task::spawn_blocking(move || App::build(config, drivers)).await??;
    app.serve(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}
