//! The command line: `serve` runs the daemon, `check` tries the host out, `pods`, `templates` and `console` ask a running daemon over CRI,
//! `gc` cleans up where none runs. Printing goes to the writer that the caller gives.

mod check;
mod client;
mod console;
mod gc;
mod pods;
mod serve;
mod speed;
mod templates;

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::config::Config;

/// Kubernetes pods as microVMs: a CRI server.
#[derive(Debug, Parser)]
#[command(name = "clearpod", version)]
pub struct Arguments {
    /// The configuration; without it /etc/clearpod/config.toml is read if it exists
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Log as JSON
    #[arg(long, global = true)]
    pub log_json: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon
    Serve,
    /// Say what works on this host and what does not, with the remedies
    Check {
        /// Check this part only
        #[arg(value_enum)]
        part: Option<check::Part>,
        /// Seconds that the guest may take to start
        #[arg(long, default_value_t = 60)]
        deadline: u64,
    },
    /// List the sandboxes of the running daemon
    Pods {
        /// Show how long each phase of the start took
        #[arg(long)]
        timing: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the guests that pods of the running daemon go on from
    Templates {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what a sandbox's guest wrote to its console
    Console {
        /// Id of the sandbox, or the beginning of it
        sandbox: String,
    },
    /// Remove what belongs to no recorded sandbox; only while no daemon runs
    Gc,
}

/// Runs one command.
///
/// # Errors
/// With the chain of causes.
pub async fn run(arguments: Arguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let config = Config::load(arguments.config.as_deref())?;
    match arguments.command {
        Command::Serve => serve::run(config).await,
        Command::Check { part, deadline } => check::run(&config, part, deadline, out).await,
        Command::Pods { timing, json } => pods::run(&config, timing, json, out).await,
        Command::Templates { json } => templates::run(&config, json, out).await,
        Command::Console { sandbox } => console::run(&config, &sandbox, out).await,
        Command::Gc => gc::run(config).await,
    }
}
