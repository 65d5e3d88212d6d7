//! From the kernel's hand-over to "ready", in order. The order is the architecture: each step needs those before it.

pub(crate) mod console;
mod listen;
mod mounts;
mod root;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use prost::Message as _;
use proto::agent::v1::{ErrorCode, Ready};
use proto::port_forward::PORT_FORWARD_PORT;
use proto::stdio::{AGENT_PORT, READY_PORT, STDIO_PORT};
use tokio::runtime;

use crate::clock;
use crate::error::{Context as _, Failure};
use crate::network;
use crate::pod::Settings;
use crate::server::AgentHandle;
use crate::shutdown;
use crate::sys;

/// Version of the protocol that [`Ready`] announces.
const PROTOCOL_VERSION: u32 = crate::service::info::PROTOCOL_VERSION;

/// The agent's main function. PID 1 must not end: what goes wrong is reported on the console, and the Machine restarted,
/// which the VMM takes for its end.
pub fn run() -> ExitCode {
    let main_entered_ns = clock::boottime_ns();
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            // Without a runtime not even a restart can be waited for; the kernel panics, and the Machine ends by that.
            console::report(&error);
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(live(main_entered_ns));
    ExitCode::FAILURE
}

/// Does not return: the Machine ends first.
async fn live(main_entered_ns: u64) {
    match boot(main_entered_ns).await {
        Ok(agent) => {
            agent.shutdown_requested().await;
            agent.power_off().await;
        }
        Err(failure) => {
            console::report(&failure);
            shutdown::end_machine().await;
        }
    }
}

/// # Errors
/// The step that failed.
async fn boot(main_entered_ns: u64) -> Result<AgentHandle, Failure> {
    let agent = prepare()?;
    let reaping = agent.clone();
    agent.spawn(async move {
        if let Err(error) = reaping.reap().await {
            tracing::error!(%error, "children are not waited for any more");
        }
    });
    let serving = agent.clone();
    listen::serve(&agent, AGENT_PORT, move |stream| serving.serve_rpc(stream))?;
    let serving = agent.clone();
    listen::serve(&agent, STDIO_PORT, move |stream| serving.serve_stdio(stream))?;
    let serving = agent.clone();
    listen::serve(&agent, PORT_FORWARD_PORT, move |stream| {
        serving.serve_port_forward(stream);
    })?;
    root::make_read_only()?;
    agent.spawn(tell_ready(main_entered_ns));
    Ok(agent)
}

/// The part that needs no host: file systems, log, loopback interface, and the agent in them. Tests in a guest begin here.
///
/// # Errors
/// The step that failed.
pub fn prepare() -> Result<AgentHandle, Failure> {
    // ps shows the kernel's name for it otherwise: that of the file in the initramfs.
    rustix::thread::set_name(c"clearpod-agent")
        .context(ErrorCode::System, || "set the process's name".to_owned())?;
    root::leave_initial_rootfs()?;
    mounts::mount_all()?;
    console::open()?;
    let settings = Settings::guest();
    network::loopback_up()?;
    AgentHandle::new(settings)
}

/// How often, and how long after one another, the host is told: a daemon that is being replaced listens again soon. It
/// finds the guest by itself if it comes later.
const TELL_TIMES: u32 = 60;
const TELL_PAUSE: Duration = Duration::from_millis(500);

/// One message to the host, which waits for it.
async fn tell_ready(main_entered_ns: u64) {
    let ready = Ready {
        protocol_version: PROTOCOL_VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        main_entered_ns,
        ready_ns: clock::boottime_ns(),
    };
    let message = ready.encode_length_delimited_to_vec();
    for _ in 0..TELL_TIMES {
        // Blocks for as long as the VMM takes to answer, which it does at once.
        let told = sys::vsock::connect_to_host(READY_PORT).and_then(|mut host| host.write_all(&message));
        match told {
            Ok(()) => return,
            Err(error) => tracing::warn!(port = READY_PORT, %error, "the host does not listen yet"),
        }
        tokio::time::sleep(TELL_PAUSE).await;
    }
}
