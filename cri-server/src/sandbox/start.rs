//! The story of one start, in order. What is acquired is noted in `reached` *before* it is made, so that the caller can give
//! it back whatever happens; across a crash the record does the same, since it holds all of [`Acquired::ALL`] from the
//! beginning and every name derives from the sandbox's id.
//!
//! ```text
//! directory, cgroup ─▶ namespace and tap ─┬─▶ VMM, kernel, agent ready ─┬─▶ configure the guest
//!                      scratch disk ──────┘   CNI plugins ──────────────┘
//! ```
//!
//! A guest that goes on from a template is ready when its agent answers; its kernel booted long ago. It is told at once what makes it
//! another guest than the others, and finds its devices while the plugins run.

use std::net::IpAddr;

use proto::{
    agent::v1 as agent,
    cri::v1 as cri,
    machine::{Description, Timeline},
};
use tokio_util::sync::CancellationToken;

use super::{
    awake::{Awake, boot, describe, go_on, not_started},
    error::{RequestError, chain},
    live::{Live, NET, SCRATCH},
    node::{Node, random_bytes},
    plan::SandboxPlan,
    start_host,
    state::Acquired,
    timings::{Stopwatch, Timings},
};
use crate::{
    clock::{monotonic_ns, now_ns},
    config::host_resolver,
    failpoint,
    host::Kind,
    id_map::IdMap,
    machine::{ControlClient, ControlError, Process},
    network::{Attachment, Dns, INTERFACE, NetworkStatus, Prepared},
    template::{Fork, Outcome},
};

/// As other runtimes give: 64 MiB of /dev/shm.
pub(super) const SHM_BYTES: u64 = 64 * 1024 * 1024;

const ATTACH: &str = "attach the pod's network";

/// A sandbox that is ready.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) live: Live,
    /// `None`: the host's network.
    pub(super) attachment: Option<Attachment>,
    pub(super) timings: Timings,
}

/// Makes all of `plan`, with a guest that goes on from `fork` or boots.
pub(super) async fn start(
    node: &Node,
    plan: &SandboxPlan,
    pod: &cri::PodSandboxConfig,
    fork: Option<&Fork>,
    watch: Stopwatch,
    reached: &mut Vec<Acquired>,
) -> Result<Started, RequestError> {
    match plan.kind {
        Kind::Machine => start_machine(node, plan, pod, fork, watch, reached).await,
        Kind::Host(host) => start_host::start(node, plan, host, pod, watch, reached).await,
    }
}

async fn start_machine(
    node: &Node,
    plan: &SandboxPlan,
    pod: &cri::PodSandboxConfig,
    fork: Option<&Fork>,
    mut watch: Stopwatch,
    reached: &mut Vec<Acquired>,
) -> Result<Started, RequestError> {
    check_network(node)?;
    make_directory(plan, reached).await?;
    make_cgroup(plan, reached).await?;
    failpoint::reached("start.directory").await;

    reached.extend([Acquired::Scratch, Acquired::Network]);
    let began = monotonic_ns();
    let (prepared, scratch) = tokio::join!(node.network.prepare(&plan.id), async {
        let made = node.scratch.make_disk(&plan.scratch).await;
        (made, monotonic_ns())
    });
    watch.phase_since("netns", began);
    watch.phase("scratch", began, scratch.1);
    scratch.0.map_err(RequestError::failed("make the scratch disk"))?;
    let prepared = prepared.map_err(RequestError::failed("make the pod's network namespace"))?;
    failpoint::reached("start.prepared").await;

    reached.push(Acquired::Machine);
    let launched_ns = monotonic_ns();
    let (process, awake, attachment) = boot_and_attach(node, plan, prepared, fork, &mut watch).await?;
    let mut live = Live::new(plan, process);
    failpoint::reached("start.booted").await;

    let began = monotonic_ns();
    let (found_ns, known) = awake
        .woken
        .map(|woken| (woken.found_ns, woken.description))
        .unzip();
    let timeline = match configure(plan, pod, &attachment, known, &mut live).await {
        Ok(timeline) => timeline,
        Err(error) => return Err(not_started(node, plan, fork, &live.process, error).await),
    };
    watch.machine(launched_ns, &timeline, awake.ready_ns, fork.is_some());
    if let Some(found_ns) = found_ns {
        watch.phase("devices", awake.ready_ns, found_ns);
    }
    watch.phase_since("configure", began);
    failpoint::reached("start.configured").await;
    if live.process.try_exited().is_some() {
        let error = RequestError::failed("keep its machine")("it ended before it was handed over");
        return Err(not_started(node, plan, fork, &live.process, error).await);
    }
    if let Some(fork) = fork {
        node.templates.tell(fork, Outcome::Answers);
        learn_pages(plan, fork).await;
    }
    Ok(Started {
        live,
        attachment: Some(attachment),
        timings: watch.finish(),
    })
}

/// The first guest that goes on from a template shows which pages the others will write. Nothing of its pod has run in it yet, so that no
/// pod has a say in what others get.
async fn learn_pages(plan: &SandboxPlan, fork: &Fork) {
    if !fork.pages().are_unknown() {
        return;
    }
    match ControlClient::new(&plan.layout).copied_pages().await {
        Ok(runs) => fork.pages().learn(runs),
        Err(error) => {
            tracing::debug!(
                sandbox = plan.id,
                error = chain(&error),
                "it is not known what forks write"
            );
            // Another fork would be refused as well; after anything else it is asked.
            if matches!(error, ControlError::Refused { .. }) {
                fork.pages().learn(Vec::new());
            }
        }
    }
}

/// Tells a guest that is awake which pod it is; when what was in its VMM's life. The VMM is asked for what is not `known`.
async fn configure(
    plan: &SandboxPlan,
    pod: &cri::PodSandboxConfig,
    attachment: &Attachment,
    known: Option<Description>,
    live: &mut Live,
) -> Result<Timeline, RequestError> {
    let description = match known {
        Some(known) => known,
        None => describe(&plan.layout).await?,
    };
    live.place(description.devices);
    let request = configuration(plan, pod, attachment, live)?;
    let configured = live.guest.configure_sandbox(request).await;
    configured.map_err(RequestError::guest(format!("configure sandbox {}", plan.id)))?;
    Ok(description.timeline)
}

/// Whether pods can be attached now.
pub(super) fn check_network(node: &Node) -> Result<(), RequestError> {
    match node.network.status() {
        NetworkStatus::Ready => Ok(()),
        NetworkStatus::NotReady { message, .. } => Err(RequestError::failed(ATTACH)(message)),
    }
}

pub(super) async fn make_directory(
    plan: &SandboxPlan,
    reached: &mut Vec<Acquired>,
) -> Result<(), RequestError> {
    reached.push(Acquired::Directory);
    let layout = plan.layout.clone();
    tokio::task::spawn_blocking(move || layout.create())
        .await
        .map_err(RequestError::failed("make the machine's directory"))?
        .map_err(RequestError::failed("make the machine's directory"))
}

pub(super) async fn make_cgroup(plan: &SandboxPlan, reached: &mut Vec<Acquired>) -> Result<(), RequestError> {
    let Some(cgroup) = plan.cgroup.clone() else {
        return Ok(());
    };
    reached.push(Acquired::Cgroup);
    tokio::task::spawn_blocking(move || cgroup.cgroup.create(&cgroup.root, &cgroup.limits))
        .await
        .map_err(RequestError::failed("make the machine's cgroup"))?
        .map_err(RequestError::failed("make the machine's cgroup"))
}

/// The Machine boots while the plugins run. A plugin that fails ends the wait for the guest; both sides come to an end
/// before this returns, so that nothing is made behind the undo's back.
async fn boot_and_attach(
    node: &Node,
    plan: &SandboxPlan,
    prepared: Prepared,
    fork: Option<&Fork>,
    watch: &mut Stopwatch,
) -> Result<(Process, Awake, Attachment), RequestError> {
    let hopeless = CancellationToken::new();
    let launched_ns = monotonic_ns();
    let attach = async {
        let attached = node.network.attach(&plan.network).await;
        match attached {
            Ok(_) => failpoint::reached("start.attached").await,
            Err(_) => hopeless.cancel(),
        }
        (attached, monotonic_ns())
    };
    let booted = async {
        match fork {
            None => boot(node, plan, prepared, &hopeless).await,
            Some(fork) => go_on(node, plan, prepared, fork, &hopeless).await,
        }
    };
    let (booted, (attached, attached_ns)) = tokio::join!(booted, attach);
    watch.phase("cni", launched_ns, attached_ns);
    match booted {
        // The tap goes with its VMM, and then there is nothing to attach: what ended first is the cause.
        Err(error) => Err(error),
        Ok(None) => {
            let attached = attached.map_err(RequestError::failed(ATTACH));
            let why = "it was ended although its network is there";
            Err(attached
                .err()
                .unwrap_or_else(|| RequestError::failed("boot the machine")(why)))
        }
        Ok(Some((process, awake))) => match attached.map_err(RequestError::failed(ATTACH)) {
            Ok(attachment) => Ok((process, awake, attachment)),
            Err(error) => Err(not_started(node, plan, fork, &process, error).await),
        },
    }
}

fn configuration(
    plan: &SandboxPlan,
    pod: &cri::PodSandboxConfig,
    attachment: &Attachment,
    live: &Live,
) -> Result<agent::ConfigureSandboxRequest, RequestError> {
    let text = |address: Option<IpAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    let interface = || INTERFACE.to_owned();
    Ok(agent::ConfigureSandboxRequest {
        sandbox_id: plan.id.clone(),
        hostname: plan.hostname.clone(),
        dns: Some(resolver(plan, attachment)),
        interfaces: vec![agent::Interface {
            name: interface(),
            pci_address: live.device(NET)?.to_owned(),
            mac: attachment.mac.clone(),
            mtu: attachment.mtu,
            addresses: attachment.addresses.clone(),
        }],
        routes: attachment
            .routes
            .iter()
            .map(|route| agent::Route {
                destination: route.destination.clone(),
                gateway: text(route.gateway),
                interface: interface(),
                metric: route.metric,
                table: route.table,
                scope: route.scope.into(),
                source: text(route.source),
                mtu: route.mtu,
            })
            .collect(),
        neighbors: attachment
            .neighbors
            .iter()
            .map(|neighbor| agent::Neighbor {
                address: neighbor.address.to_string(),
                mac: neighbor.mac.clone(),
                interface: interface(),
            })
            .collect(),
        rules: attachment
            .rules
            .iter()
            .map(|rule| agent::Rule {
                priority: rule.priority,
                source: rule.source.clone(),
                destination: rule.destination.clone(),
                table: rule.table,
            })
            .collect(),
        sysctls: pod.linux.clone().unwrap_or_default().sysctls,
        user_namespace: plan.id_map.map(IdMap::for_agent),
        shm_size_bytes: SHM_BYTES,
        realtime_ns: u64::try_from(now_ns()).unwrap_or_default(),
        entropy: random_bytes::<64>()?.to_vec(),
        scratch: Some(agent::Disk {
            pci_address: live.device(SCRATCH)?.to_owned(),
            filesystem: "ext4".to_owned(),
            ..agent::Disk::default()
        }),
        machine_id: plan.id.clone(),
        // The agent adds the pod's own addresses.
        hosts: Vec::new(),
    })
}

/// The pod's own, else what the plugins say, else the host's.
pub(super) fn resolver(plan: &SandboxPlan, attachment: &Attachment) -> agent::DnsConfig {
    let chosen = match &plan.dns {
        Some(dns) if *dns != Dns::default() => dns.clone(),
        _ if !attachment.dns.servers.is_empty() => attachment.dns.clone(),
        _ => {
            let text = fs_err::read_to_string("/etc/resolv.conf").unwrap_or_default();
            let (servers, searches, options) = host_resolver(&text);
            Dns {
                servers,
                searches,
                options,
            }
        }
    };
    agent::DnsConfig {
        servers: chosen.servers,
        searches: chosen.searches,
        options: chosen.options,
    }
}
