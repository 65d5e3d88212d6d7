//! `clearpod`: the daemon and its command line. Arguments, logs, configuration; everything else is in the library.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use cri_server::cli::{self, Arguments};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_logging(arguments.log_json);
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("clearpod")
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            let outcome = runtime.block_on(cli::run(arguments, &mut io::stdout().lock()));
            // Whatever blocks a thread still must not keep the process: recovery finishes it.
            runtime.shutdown_background();
            outcome
        });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            // Nowhere is left to tell of a closed standard error.
            drop(writeln!(io::stderr(), "clearpod: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// To standard error, where systemd and shells expect them; `CLEARPOD_LOG` filters ("debug", "cri_server::network=trace").
fn start_logging(json: bool) {
    let filter = EnvFilter::try_from_env("CLEARPOD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    if json {
        builder.json().init();
    } else {
        builder.init();
    }
}
