//! `clearpod-agent`: boots the guest; with the argument `container-init` it is a container's stage instead.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(agent::STAGE_ARGUMENT) {
        return agent::stage_main();
    }
    agent::boot::run()
}
