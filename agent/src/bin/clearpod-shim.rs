//! `clearpod-shim`: runs the containers of one host pod through an OCI runtime; with the argument `container-init` it holds
//! the pod's PID namespace instead.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(agent::STAGE_ARGUMENT) {
        return agent::stage_main();
    }
    agent::host::run()
}
