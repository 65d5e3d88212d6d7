//! From the start of the process to "ready", in order, and to its end.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use proto::agent::v1::{ErrorCode, Ready};
use proto::host::{HOST_CONFIG_VERSION, HostConfig, port_socket};
use proto::port_forward::PORT_FORWARD_PORT;
use proto::stdio::{AGENT_PORT, STDIO_PORT};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime;

use crate::boot::console;
use crate::clock;
use crate::error::{Context as _, Failure};
use crate::host::pod::HostPod;
use crate::host::service::Service;
use crate::network;
use crate::port_forward;
use crate::server;
use crate::service::info::PROTOCOL_VERSION;
use crate::shutdown::Shutdown;
use crate::stdio::connection;
use crate::sys;

/// After an accept that failed for lack of something: time for it to become free.
const PAUSE: Duration = Duration::from_millis(50);
/// From the Shutdown call's answer to the end, so that the answer reaches the daemon.
const ANSWER_FIRST: Duration = Duration::from_millis(20);

/// The shim's main function.
pub fn run() -> ExitCode {
    let main_entered_ns = clock::boottime_ns();
    let lived = prepare().and_then(|config| {
        runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context(ErrorCode::System, || "make the runtime".to_owned())?
            .block_on(live(config, main_entered_ns))
    });
    match lived {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            console::report(&failure);
            ExitCode::FAILURE
        }
    }
}

/// What needs a process with one thread: its log, its configuration, its namespaces.
///
/// # Errors
/// The step that failed.
fn prepare() -> Result<HostConfig, Failure> {
    rustix::thread::set_name(c"clearpod-shim").context(ErrorCode::System, || "set the name".to_owned())?;
    let log =
        rustix::io::dup(rustix::stdio::stderr()).context(ErrorCode::System, || "open the log".to_owned())?;
    console::open_file(File::from(log), "clearpod-shim")?;
    let config = configuration()?;
    enter_namespaces(&config)?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context(ErrorCode::System, || "become a subreaper".to_owned())?;
    Ok(config)
}

fn configuration() -> Result<HostConfig, Failure> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(flag), Some(path)) = (arguments.next(), arguments.next()) else {
        return Err(Failure::invalid("usage: clearpod-shim --config FILE"));
    };
    if flag != "--config" {
        return Err(Failure::invalid(format!("{flag:?} is not --config")));
    }
    let path = PathBuf::from(path);
    let bytes = fs::read(&path).context(ErrorCode::System, || format!("read {}", path.display()))?;
    let config: HostConfig = serde_json::from_slice(&bytes)
        .map_err(|error| Failure::invalid(format!("{}: {error}", path.display())))?;
    if config.version != HOST_CONFIG_VERSION {
        return Err(Failure::invalid(format!(
            "version: {} is unknown",
            config.version
        )));
    }
    Ok(config)
}

/// The pod's own namespaces become the shim's, and so those of all that it starts.
fn enter_namespaces(config: &HostConfig) -> Result<(), Failure> {
    let mut own = UnshareFlags::empty();
    if let Some(network) = &config.network {
        let what = || format!("enter the network namespace {}", network.display());
        let namespace = File::open(network).context(ErrorCode::Network, what)?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .context(ErrorCode::Network, what)?;
        network::loopback_up()?;
        // A host name is the network's: a pod in the host's network has the host's name.
        own |= UnshareFlags::NEWUTS;
    }
    if !config.host_ipc {
        own |= UnshareFlags::NEWIPC;
    }
    sys::mount::unshare(own).context(ErrorCode::System, || {
        format!("leave the host's namespaces {own:?}")
    })
}

/// Until the Shutdown call.
async fn live(config: HostConfig, main_entered_ns: u64) -> Result<(), Failure> {
    let ready_socket = config.ready.clone();
    let pod = Arc::new(HostPod::new(config)?);
    let shutdown = Shutdown::default();
    let reaping = pod.clone();
    pod.tasks.spawn(async move {
        if let Err(error) = reaping.reaper.run().await {
            tracing::error!(%error, "children are not waited for any more");
        }
    });
    let service = server::service(Service::new(pod.clone(), shutdown.clone()));
    let tasks = pod.tasks.clone();
    listen(&pod, AGENT_PORT, move |stream| {
        server::serve_rpc(&tasks, service.clone(), stream);
    })?;
    let serving = pod.clone();
    listen(&pod, STDIO_PORT, move |stream| {
        let pod = serving.clone();
        serving.tasks.spawn(async move {
            if let Err(error) = connection::serve(stream, &pod.containers).await {
                tracing::debug!(%error, "stdio connection ended");
            }
        });
    })?;
    let tasks = pod.tasks.clone();
    // The shim is in the pod's network, be it the host's.
    listen(&pod, PORT_FORWARD_PORT, move |stream| {
        tasks.spawn(async move {
            if let Err(error) = port_forward::serve(stream).await {
                tracing::debug!(%error, "forwarded connection ended");
            }
        });
    })?;
    tell_ready(&ready_socket, main_entered_ns).context(ErrorCode::System, || {
        format!("tell {} that the pod is ready", ready_socket.display())
    })?;
    shutdown.requested().await;
    tokio::time::sleep(ANSWER_FIRST).await;
    pod.end().await;
    Ok(())
}

/// Hands every connection on the socket that stands for `port` to `serve`.
fn listen(pod: &HostPod, port: u32, serve: impl Fn(UnixStream) + Send + 'static) -> Result<(), Failure> {
    let path = port_socket(port);
    let listener = UnixListener::bind(&path).context(ErrorCode::System, || format!("listen on {path}"))?;
    pod.tasks.spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => serve(stream),
                Err(error) => {
                    tracing::warn!(port, %error, "accept failed");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
    Ok(())
}

/// Once, and before it the daemon listens: unlike a guest, the shim is not ready before it was started.
fn tell_ready(socket: &Path, main_entered_ns: u64) -> io::Result<()> {
    let ready = Ready {
        protocol_version: PROTOCOL_VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        main_entered_ns,
        ready_ns: clock::boottime_ns(),
    };
    let mut daemon = std::os::unix::net::UnixStream::connect(socket)?;
    daemon.write_all(&ready.encode_length_delimited_to_vec())
}
