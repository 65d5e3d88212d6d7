//! `clearpod-vmm --config <file>`: runs one Machine and ends with an exit code that says how it ended
//! (`proto::machine::ExitReason`). Set `CLEARPOD_VMM_LOG` to error, warn, info, debug or trace for more or less on stderr.

use std::path::PathBuf;
use std::process::ExitCode;

use proto::machine::ExitReason;
use tracing::Level;
use vmm::log::StderrLog;

fn main() -> ExitCode {
    let level = std::env::var("CLEARPOD_VMM_LOG")
        .ok()
        .and_then(|level| level.parse().ok());
    // Fails only when there is a subscriber already, and nobody was here before.
    drop(tracing::subscriber::set_global_default(StderrLog::new(
        level.unwrap_or(Level::WARN),
    )));
    let Some(config) = config_argument(std::env::args_os().skip(1).map(PathBuf::from).collect()) else {
        tracing::error!("usage: clearpod-vmm --config <file>");
        return exit_code(ExitReason::BadConfig);
    };
    let ending = vmm::run(&config);
    if !ending.detail.is_empty() {
        tracing::error!("{}", ending.detail);
    }
    exit_code(ending.reason)
}

fn config_argument(arguments: Vec<PathBuf>) -> Option<PathBuf> {
    match <[PathBuf; 2]>::try_from(arguments) {
        Ok([flag, path]) if flag.as_os_str() == "--config" => Some(path),
        _ => None,
    }
}

fn exit_code(reason: ExitReason) -> ExitCode {
    ExitCode::from(u8::try_from(reason.code()).unwrap_or(u8::MAX))
}
