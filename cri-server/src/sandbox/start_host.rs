//! The story of a start on the host, in order. As in `start`, what is acquired is noted in `reached` before it is made.
//!
//! ```text
//! directory, cgroup ─▶ namespace, CNI plugins (unless the host's network) ─▶ shim ready ─▶ configure it
//! ```
//!
//! Nothing runs side by side here: the shim is a process of ours that starts in milliseconds, and it enters a namespace that is
//! complete. A pod with the host's network needs none of CNI: the plugins' own pods are of that kind and come before it works.

use std::path::PathBuf;

use proto::{
    agent::v1 as agent,
    cri::v1 as cri,
    host::{HOST_CONFIG_VERSION, HostCgroup, HostConfig},
    stdio::READY_PORT,
};
use tokio_util::sync::CancellationToken;

use super::{
    awake::until_ready,
    error::RequestError,
    live::Live,
    node::Node,
    plan::SandboxPlan,
    start::{SHM_BYTES, Started, check_network, make_cgroup, make_directory, resolver},
    state::Acquired,
    timings::Stopwatch,
};
use crate::{
    clock::monotonic_ns,
    failpoint,
    guest::ReadyListener,
    host::HostPlan,
    machine::{Process, ShimSpec},
    network::{Attachment, Dns, INTERFACE},
};

/// The shim's own cgroup below the pod's: cgroup v2 wants processes in the leaves.
const SHIM_CGROUP: &str = "shim";

/// Makes all of `plan`.
pub(super) async fn start(
    node: &Node,
    plan: &SandboxPlan,
    host: HostPlan,
    pod: &cri::PodSandboxConfig,
    mut watch: Stopwatch,
    reached: &mut Vec<Acquired>,
) -> Result<Started, RequestError> {
    if !host.host_network {
        check_network(node)?;
    }
    let runtime = node.config.host_pods.find_runtime().ok_or_else(|| {
        let runtime = node.config.host_pods.runtime.display();
        RequestError::failed("find the OCI runtime of host pods")(format!(
            "host_pods.runtime: there is no {runtime}"
        ))
    })?;
    make_directory(plan, reached).await?;
    make_cgroup(plan, reached).await?;
    failpoint::reached("start.directory").await;

    let began = monotonic_ns();
    let network = if host.host_network {
        None
    } else {
        Some(attach(node, plan, reached).await?)
    };
    watch.phase_since("cni", began);
    failpoint::reached("start.prepared").await;

    let began = monotonic_ns();
    reached.extend([Acquired::Scratch, Acquired::Machine]);
    let namespace = network.as_ref().map(|(namespace, _)| namespace.clone());
    let process = launch(node, plan, shim_config(plan, host, runtime, namespace)).await?;
    watch.phase_since("shim", began);
    let live = Live::new(plan, process);
    failpoint::reached("start.booted").await;

    let began = monotonic_ns();
    let attachment = network.map(|(_, attachment)| attachment);
    live.guest
        .configure_sandbox(configuration(plan, pod, attachment.as_ref()))
        .await
        .map_err(RequestError::guest(format!("configure sandbox {}", plan.id)))?;
    watch.phase_since("configure", began);
    failpoint::reached("start.configured").await;
    Ok(Started {
        live,
        attachment,
        timings: watch.finish(),
    })
}

async fn attach(
    node: &Node,
    plan: &SandboxPlan,
    reached: &mut Vec<Acquired>,
) -> Result<(PathBuf, Attachment), RequestError> {
    reached.push(Acquired::Network);
    let namespace = node
        .network
        .prepare_plain(&plan.id)
        .await
        .map_err(RequestError::failed("make the pod's network namespace"))?;
    let attachment = node
        .network
        .attach_plain(&plan.network)
        .await
        .map_err(RequestError::failed("attach the pod's network"))?;
    Ok((namespace, attachment))
}

fn shim_config(plan: &SandboxPlan, host: HostPlan, runtime: PathBuf, network: Option<PathBuf>) -> HostConfig {
    HostConfig {
        version: HOST_CONFIG_VERSION,
        id: plan.id.clone(),
        runtime,
        scratch: plan.scratch.clone(),
        ready: plan.layout.vsock_port(READY_PORT),
        network,
        host_ipc: host.host_ipc,
        cgroup: plan.cgroup.as_ref().map(|plan| HostCgroup {
            root: plan.root.clone(),
            directory: plan.cgroup.directory().to_owned(),
        }),
    }
}

/// Starts the shim and waits until it is ready.
async fn launch(node: &Node, plan: &SandboxPlan, config: HostConfig) -> Result<Process, RequestError> {
    fs_err::tokio::create_dir_all(&plan.scratch)
        .await
        .map_err(RequestError::failed("make the directory of writable layers"))?;
    let cgroup = config
        .cgroup
        .as_ref()
        .map(|cgroup| cgroup.directory.join(SHIM_CGROUP));
    if let Some(cgroup) = &cgroup {
        fs_err::tokio::create_dir_all(cgroup)
            .await
            .map_err(RequestError::failed("make the shim's cgroup"))?;
    }
    let listener = ReadyListener::bind(&plan.layout).map_err(RequestError::failed("listen for the shim"))?;
    let spec = ShimSpec {
        layout: plan.layout.clone(),
        config,
        cgroup,
    };
    let process = node
        .launcher
        .launch_shim(spec)
        .await
        .map_err(RequestError::failed("start the shim"))?;
    failpoint::reached("start.launched").await;
    let hopeless = CancellationToken::new();
    let ready = listener.wait(node.config.deadlines.boot());
    let ready = until_ready(node, plan, ready, process, &hopeless).await?;
    ready
        .map(|(process, _)| process)
        .ok_or_else(|| RequestError::failed("start the shim")("it was given up"))
}

/// Without what is the host's: clock, entropy, interfaces and routes. The pod's addresses are for its /etc/hosts.
fn configuration(
    plan: &SandboxPlan,
    pod: &cri::PodSandboxConfig,
    attachment: Option<&Attachment>,
) -> agent::ConfigureSandboxRequest {
    let wished = plan.dns.as_ref().is_some_and(|dns| *dns != Dns::default());
    let dns = match attachment {
        Some(attachment) => Some(resolver(plan, attachment)),
        None if wished => Some(resolver(plan, &Attachment::default())),
        // The shim then copies the host's file, whose servers on loopback are good here.
        None => None,
    };
    let interface = |attachment: &Attachment| agent::Interface {
        name: INTERFACE.to_owned(),
        addresses: attachment.addresses.clone(),
        ..agent::Interface::default()
    };
    agent::ConfigureSandboxRequest {
        sandbox_id: plan.id.clone(),
        hostname: plan.hostname.clone(),
        dns,
        interfaces: attachment.map(interface).into_iter().collect(),
        sysctls: pod.linux.clone().unwrap_or_default().sysctls,
        shm_size_bytes: SHM_BYTES,
        machine_id: plan.id.clone(),
        ..agent::ConfigureSandboxRequest::default()
    }
}
