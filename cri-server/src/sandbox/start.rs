//! The story of one start, in order. What is acquired is noted in `reached` *before* it is made, so that the caller can give
//! it back whatever happens; across a crash the record does the same, since it holds all of [`Acquired::ALL`] from the
//! beginning and every name derives from the sandbox's id.
//!
//! ```text
//! directory, cgroup ─▶ namespace and tap ─┬─▶ VMM, kernel, agent ready ─┬─▶ configure the guest
//!                      scratch disk ──────┘   CNI plugins ──────────────┘
//! ```

use std::{net::IpAddr, os::fd::OwnedFd};

use proto::{
    agent::v1 as agent,
    cri::v1 as cri,
    machine::{CONFIG_VERSION, Console, Device, ExitReason, FileSource, MachineConfig, Vcpus, Vsock},
};
use tokio_util::sync::CancellationToken;

use super::{
    error::{RequestError, chain},
    live::{BALLOON, Live, NET, SCRATCH},
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
    guest::ReadyListener,
    host::Kind,
    id_map::IdMap,
    machine::{ControlClient, LaunchSpec, Layout, MachineExit, Process},
    network::{Attachment, Dns, INTERFACE, NetworkStatus, Prepared},
};

/// As other runtimes give: 64 MiB of /dev/shm.
pub(super) const SHM_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of the VMM's log and of the console that a failed boot's message quotes.
const QUOTE: usize = 1024;

/// A sandbox that is ready.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) live: Live,
    /// `None`: the host's network.
    pub(super) attachment: Option<Attachment>,
    pub(super) timings: Timings,
}

/// Makes all of `plan`.
pub(super) async fn start(
    node: &Node,
    plan: &SandboxPlan,
    pod: &cri::PodSandboxConfig,
    reached: &mut Vec<Acquired>,
) -> Result<Started, RequestError> {
    match plan.kind {
        Kind::Machine => start_machine(node, plan, pod, reached).await,
        Kind::Host(host) => start_host::start(node, plan, host, pod, reached).await,
    }
}

async fn start_machine(
    node: &Node,
    plan: &SandboxPlan,
    pod: &cri::PodSandboxConfig,
    reached: &mut Vec<Acquired>,
) -> Result<Started, RequestError> {
    let mut watch = Stopwatch::start();
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
    let (process, ready_ns, attachment) = boot_and_attach(node, plan, prepared, &mut watch).await?;
    let mut live = Live::new(plan, process);
    failpoint::reached("start.booted").await;

    let began = monotonic_ns();
    let description = ControlClient::new(&plan.layout)
        .describe()
        .await
        .map_err(RequestError::failed("ask the VMM for its devices"))?;
    watch.machine(launched_ns, &description.timeline, ready_ns);
    live.place(description.devices);
    let request = configuration(plan, pod, &attachment, &live)?;
    live.guest
        .configure_sandbox(request)
        .await
        .map_err(RequestError::guest(format!("configure sandbox {}", plan.id)))?;
    watch.phase_since("configure", began);
    failpoint::reached("start.configured").await;
    Ok(Started {
        live,
        attachment: Some(attachment),
        timings: watch.finish(),
    })
}

/// Whether pods can be attached now.
pub(super) fn check_network(node: &Node) -> Result<(), RequestError> {
    match node.network.status() {
        NetworkStatus::Ready => Ok(()),
        NetworkStatus::NotReady { message, .. } => {
            Err(RequestError::failed("attach the pod's network")(message))
        }
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
    watch: &mut Stopwatch,
) -> Result<(Process, u64, Attachment), RequestError> {
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
    let (booted, (attached, attached_ns)) = tokio::join!(boot(node, plan, prepared, &hopeless), attach);
    watch.phase("cni", launched_ns, attached_ns);
    match booted {
        // The tap goes with its VMM, and then there is nothing to attach: what ended first is the cause.
        Err(error) => Err(error),
        Ok(booted) => {
            let attachment = attached.map_err(RequestError::failed("attach the pod's network"))?;
            let (process, ready_ns) = booted.ok_or_else(|| {
                RequestError::failed("boot the machine")("it was ended although its network is there")
            })?;
            Ok((process, ready_ns, attachment))
        }
    }
}

/// Starts the VMM and waits for the agent's signal, the process's end, or the deadline. `None`: it was `hopeless`, and was ended.
async fn boot(
    node: &Node,
    plan: &SandboxPlan,
    prepared: Prepared,
    hopeless: &CancellationToken,
) -> Result<Option<(Process, u64)>, RequestError> {
    let listener = ReadyListener::bind(&plan.layout).map_err(RequestError::failed("listen for the guest"))?;
    let process = node
        .launcher
        .launch(launch_spec(node, plan, prepared)?)
        .await
        .map_err(RequestError::failed("start the VMM"))?;
    failpoint::reached("start.launched").await;
    until_ready(node, plan, listener, process, hopeless).await
}

/// The process that was started, and when it was ready. One that does not get there is killed.
pub(super) async fn until_ready(
    node: &Node,
    plan: &SandboxPlan,
    listener: ReadyListener,
    process: Process,
    hopeless: &CancellationToken,
) -> Result<Option<(Process, u64)>, RequestError> {
    let late = tokio::select! {
        ready = listener.wait(node.config.deadlines.boot()) => match ready {
            Ok(_) => return Ok(Some((process, monotonic_ns()))),
            Err(error) => Some(chain(&error)),
        },
        _ = process.exited() => None,
        () = hopeless.cancelled() => None,
    };
    // The VMM writes the console to its file at its end.
    let kill = process.kill();
    let ended = tokio::time::timeout(node.config.deadlines.shutdown(), process.exited()).await;
    if let (Err(error), _) | (Ok(()), Err(error)) = (kill, ended.map_err(std::io::Error::other)) {
        tracing::warn!(sandbox = plan.id, %error, "what failed to boot still runs");
    }
    let own_end = own_end(&process);
    let Some(why) = late.or_else(|| own_end.map(|exit| exit.to_string())) else {
        return Ok(None);
    };
    let (id, reason) = (
        &plan.id,
        format!("{why}{}", last_words(&plan.layout, QUOTE).await),
    );
    Err(
        if own_end == Some(MachineExit::Exited(ExitReason::GuestUnrunnable)) {
            let id = id.clone();
            RequestError::Unrunnable { id, reason }
        } else {
            RequestError::failed(format!("boot the machine of sandbox {id}"))(reason)
        },
    )
}

/// How a process that was killed had ended before of itself: a tap goes with its VMM, so the plugins can see that end first,
/// and it, not what they say, is the cause.
fn own_end(process: &Process) -> Option<MachineExit> {
    process
        .try_exited()
        .filter(|exit| *exit != MachineExit::Signalled(libc::SIGKILL))
}

/// The ends of the VMM's log and of the guest's console, for a message.
async fn last_words(layout: &Layout, limit: usize) -> String {
    let mut text = String::new();
    for (name, path) in [("VMM log", layout.vmm_log()), ("console", layout.console_log())] {
        let tail = tail(path, limit).await;
        if !tail.is_empty() {
            text.push_str(&format!("; {name}: {tail:?}"));
        }
    }
    text
}

/// The last `limit` bytes of a file, as text without control characters but line ends; empty when there is none.
pub(super) async fn tail(path: std::path::PathBuf, limit: usize) -> String {
    let bytes = fs_err::tokio::read(path).await.unwrap_or_default();
    let start = bytes.len().saturating_sub(limit);
    String::from_utf8_lossy(bytes.get(start..).unwrap_or_default())
        .chars()
        .filter(|character| *character == '\n' || !character.is_control())
        .collect::<String>()
        .trim()
        .to_owned()
}

/// Every file outside of the Machine's directory reaches the VMM as a descriptor, so that it needs no path there.
fn launch_spec(node: &Node, plan: &SandboxPlan, prepared: Prepared) -> Result<LaunchSpec, RequestError> {
    let defaults = &node.config.machine;
    let open = |path: &std::path::Path, write: bool| {
        fs_err::OpenOptions::new()
            .read(true)
            .write(write)
            .open(path)
            .map(|file| OwnedFd::from(file.into_parts().0))
            .map_err(RequestError::failed("open the machine's files"))
    };
    let inherited = vec![
        prepared.tap,
        open(&plan.scratch, true)?,
        open(&defaults.kernel, false)?,
        open(&defaults.initramfs, false)?,
    ];
    Ok(LaunchSpec {
        layout: plan.layout.clone(),
        config: MachineConfig {
            version: CONFIG_VERSION,
            id: plan.id.clone(),
            kernel: Some(FileSource::Fd(2)),
            initramfs: Some(FileSource::Fd(3)),
            command_line: defaults.command_line.clone(),
            snapshot: None,
            vcpus: Vcpus {
                boot: plan.vcpus,
                max: plan.vcpus_possible,
            },
            memory_mib: plan.memory_mib,
            memory_hotplug_mib: plan.memory_hotplug_mib,
            control: Layout::CONTROL.into(),
            console: Console {
                ring_bytes: defaults.console_kib * 1024,
                dump: Some(Layout::CONSOLE_LOG.into()),
            },
            vsock: Some(Vsock {
                // Each VMM muxes its own guest, so all guests may have the same number.
                guest_cid: 3,
                socket: Layout::VSOCK.into(),
            }),
            devices: devices(plan),
        },
        inherited,
        cgroup: plan
            .cgroup
            .as_ref()
            .map(|plan| plan.cgroup.directory().to_owned()),
    })
}

fn devices(plan: &SandboxPlan) -> Vec<Device> {
    // A memory device comes when the Machine first grows (`grow`): most never do.
    vec![
        Device::Net {
            id: NET.to_owned(),
            tap: FileSource::Fd(0),
            mac: first_mac(&plan.id),
        },
        Device::Block {
            id: SCRATCH.to_owned(),
            file: FileSource::Fd(1),
            read_only: false,
        },
        Device::Balloon {
            id: BALLOON.to_owned(),
        },
    ]
}

/// The guest starts before the plugins have chosen its address; this one is replaced when it is configured.
fn first_mac(id: &str) -> String {
    let digits = |at: usize| id.get(at..at + 2).unwrap_or("00");
    format!(
        "02:{}:{}:{}:{}:{}",
        digits(0),
        digits(2),
        digits(4),
        digits(6),
        digits(8)
    )
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::*;
    use crate::machine::Kill;

    #[derive(Debug)]
    struct NoKill;

    impl Kill for NoKill {
        fn kill(&self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_end_of_its_own_is_told_from_being_killed() {
        let (end, exit) = watch::channel(None);
        let process = Process::new(7, exit, Arc::new(NoKill));
        assert_eq!(own_end(&process), None);
        let panicked = Some(MachineExit::Exited(ExitReason::GuestPanic));
        end.send_replace(panicked);
        assert_eq!(own_end(&process), panicked);
        end.send_replace(Some(MachineExit::Signalled(libc::SIGKILL)));
        assert_eq!(own_end(&process), None);
    }
}
