//! From CRI's configuration of a sandbox to what is made for it: names, sizes, network. The same for the same request: after a
//! restart of the daemon the plan is made again from the stored request. Pure but for the host's size.

use std::path::PathBuf;

use proto::cri::v1 as cri;

use super::{error::RequestError, quantity};
use crate::{
    config::{CgroupDriver, Config, MAX_MEMORY_MIB},
    container::spec,
    host::{self, HostPlan, Kind},
    id_map::{self, IdMap},
    machine::{CgroupLimits, Layout, MachineCgroup, capacity},
    network::{Bandwidth, Dns, PodNetwork, PortMapping},
};

mod shape;

pub(crate) use shape::default_shape;
pub(super) use shape::{nameless, of_template};

/// The handler names that are ours beside the default one.
pub(crate) const HANDLER: &str = "clearpod";
/// Of pods that share no page of memory with others, since none of them goes on from a template.
pub(crate) const COLD_HANDLER: &str = "clearpod-cold";
/// The same for one pod.
const BOOT_ANNOTATION: &str = "clearpod.dev/boot";
const COLD: &str = "cold";

const MIB: u64 = 1024 * 1024;
/// The VMM takes multiples of it (`MachineConfig::memory_hotplug_mib`).
const HOTPLUG_UNIT_MIB: u64 = 128;
/// What the VMM and virtiofsd need beside the guest's memory, with room for their page tables and caches.
const MIN_VMM_MIB: u64 = 64;
/// unix(7) host names: what the kernel takes.
pub(super) const MAX_HOSTNAME: usize = 64;

/// A sandbox as it is to be made.
#[derive(Debug, Clone)]
pub(crate) struct SandboxPlan {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) layout: Layout,
    /// A Machine's disk, or the directory of a host pod's writable layers.
    pub(crate) scratch: PathBuf,
    pub(crate) cgroup: Option<CgroupPlan>,
    pub(crate) network: PodNetwork,
    pub(crate) memory_mib: u64,
    /// What the guest can plug beyond that.
    pub(crate) memory_hotplug_mib: u64,
    pub(crate) vcpus: u8,
    /// What the guest can bring online in all.
    pub(crate) vcpus_possible: u8,
    pub(crate) hostname: String,
    /// `None`: that of the CNI plugins, else the host's.
    pub(crate) dns: Option<Dns>,
    /// Of the user namespace that its containers are in.
    pub(crate) id_map: Option<IdMap>,
    /// It boots a kernel of its own, whatever templates there are.
    pub(crate) cold: bool,
}

/// The VMM's cgroup.
#[derive(Debug, Clone)]
pub(crate) struct CgroupPlan {
    pub(crate) root: PathBuf,
    pub(crate) cgroup: MachineCgroup,
    pub(crate) limits: CgroupLimits,
}

/// Where a security context is, for messages.
const SECURITY: &str = "config.linux.security_context";
const NAMESPACES: &str = "config.linux.security_context.namespace_options";

/// Translates a sandbox, or refuses it by field.
pub(crate) fn plan(
    id: &str,
    request: &cri::RunPodSandboxRequest,
    config: &Config,
) -> Result<SandboxPlan, RequestError> {
    plan_as(id, request, config, |security, _| {
        host::choose(SECURITY, security, &config.host_pods)
    })
}

/// The same for a sandbox that was started before: of the kind that it was started as.
pub(crate) fn plan_again(
    id: &str,
    request: &cri::RunPodSandboxRequest,
    config: &Config,
) -> Result<SandboxPlan, RequestError> {
    plan_as(id, request, config, |security, layout| {
        Ok(host::evidence(security, layout))
    })
}

fn plan_as(
    id: &str,
    request: &cri::RunPodSandboxRequest,
    config: &Config,
    kind: impl FnOnce(&cri::LinuxSandboxSecurityContext, &Layout) -> Result<Kind, RequestError>,
) -> Result<SandboxPlan, RequestError> {
    let pod = request
        .config
        .as_ref()
        .ok_or_else(|| RequestError::invalid("config", "missing"))?;
    let metadata = pod
        .metadata
        .as_ref()
        .filter(|metadata| !metadata.name.is_empty())
        .ok_or_else(|| RequestError::invalid("config.metadata.name", "missing"))?;
    let cold = is_cold(request, pod)?;
    let linux = pod.linux.clone().unwrap_or_default();
    let layout = Layout::new(&config.machines(), id).map_err(RequestError::failed("name the machine"))?;
    let kind = kind(&linux.security_context.clone().unwrap_or_default(), &layout)?;
    let id_map = refuse_unsupported(pod, &linux, &kind)?;
    let (memory_mib, vcpus) = size(&linux, config)?;
    let memory_hotplug_mib = match kind {
        Kind::Machine => hotplug(memory_mib, config),
        Kind::Host(_) => 0,
    };
    let hostname = if pod.hostname.is_empty() {
        &metadata.name
    } else {
        &pod.hostname
    };
    if hostname.len() > MAX_HOSTNAME && !pod.hostname.is_empty() {
        let reason = format!("longer than {MAX_HOSTNAME} bytes");
        return Err(RequestError::invalid("config.hostname", reason));
    }
    let dns = pod.dns_config.as_ref().map(|dns| Dns {
        servers: dns.servers.clone(),
        searches: dns.searches.clone(),
        options: dns.options.clone(),
    });
    Ok(SandboxPlan {
        id: id.to_owned(),
        layout,
        scratch: match kind {
            Kind::Machine => config.scratch().join(format!("{id}.img")),
            Kind::Host(_) => config.scratch().join(id),
        },
        kind,
        cgroup: cgroup(id, &linux, config, bound(memory_mib, memory_hotplug_mib, config))?,
        network: PodNetwork {
            sandbox_id: id.to_owned(),
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            uid: metadata.uid.clone(),
            port_mappings: port_mappings(&pod.port_mappings)?,
            bandwidth: bandwidth(pod)?,
            dns: dns.clone(),
        },
        memory_mib,
        memory_hotplug_mib,
        vcpus,
        vcpus_possible: possible(vcpus, config),
        hostname: hostname.chars().take(MAX_HOSTNAME).collect(),
        dns,
        id_map,
        cold,
    })
}

/// Whether the pod must boot a kernel of its own, by its handler or its annotation.
fn is_cold(request: &cri::RunPodSandboxRequest, pod: &cri::PodSandboxConfig) -> Result<bool, RequestError> {
    let by_handler = match request.runtime_handler.as_str() {
        "" | HANDLER => false,
        COLD_HANDLER => true,
        other => {
            let reason = format!("there is no handler {other:?}");
            return Err(RequestError::invalid("runtime_handler", reason));
        }
    };
    match pod.annotations.get(BOOT_ANNOTATION).map(String::as_str) {
        None => Ok(by_handler),
        Some(COLD) => Ok(true),
        Some(other) => {
            let field = format!("config.annotations[{BOOT_ANNOTATION}]");
            let reason = format!("{other:?} is not {COLD:?}, which is all that can be asked for");
            Err(RequestError::invalid(field, reason))
        }
    }
}

/// What is left is what can be had; the ids of the pod's user namespace.
fn refuse_unsupported(
    pod: &cri::PodSandboxConfig,
    linux: &cri::LinuxPodSandboxConfig,
    kind: &Kind,
) -> Result<Option<IdMap>, RequestError> {
    if pod.windows.is_some() {
        return Err(RequestError::unsupported("config.windows", "Windows pods"));
    }
    let security = linux.security_context.clone().unwrap_or_default();
    let namespaces = security.namespace_options.clone().unwrap_or_default();
    match kind {
        // No process is the sandbox's own: labels are each container's.
        Kind::Host(host) => return refuse_on_host(linux, &namespaces, *host).map(|()| None),
        Kind::Machine => spec::refuse_host_namespaces(NAMESPACES, &namespaces)?,
    }
    // A Machine has no process of the sandbox's own: profiles of AppArmor are each container's.
    spec::refuse_selinux(SECURITY, security.selinux_options.as_ref())?;
    id_map::of_sandbox(NAMESPACES, &namespaces)
}

fn refuse_on_host(
    linux: &cri::LinuxPodSandboxConfig,
    namespaces: &cri::NamespaceOption,
    host: HostPlan,
) -> Result<(), RequestError> {
    host::refuse_user_namespace(NAMESPACES, namespaces)?;
    host::sysctls("config.linux.sysctls", &linux.sysctls, host)
}

/// Memory in MiB and processors: the pod's limits and its overhead, else the defaults. Requests without a limit are not
/// a size: such a pod may use more.
fn size(linux: &cri::LinuxPodSandboxConfig, config: &Config) -> Result<(u64, u8), RequestError> {
    let machine = &config.machine;
    let resources = linux.resources.clone().unwrap_or_default();
    let overhead = linux.overhead.clone().unwrap_or_default();
    let bytes = |field: &str, value: i64| {
        u64::try_from(value).map_err(|_| {
            RequestError::invalid(format!("config.linux.{field}"), format!("{value} is negative"))
        })
    };
    let limit = bytes("resources.memory_limit_in_bytes", resources.memory_limit_in_bytes)?;
    let extra = bytes("overhead.memory_limit_in_bytes", overhead.memory_limit_in_bytes)?;
    let memory_mib = match (limit, extra) {
        (0, _) => machine.memory_mib,
        (limit, 0) => limit.div_ceil(MIB).saturating_add(machine.memory_overhead_mib),
        (limit, extra) => limit.saturating_add(extra).div_ceil(MIB),
    };
    let vcpus = match (resources.cpu_quota, resources.cpu_period) {
        (quota, period) if quota > 0 && period > 0 => {
            let whole = quota.unsigned_abs().div_ceil(period.unsigned_abs());
            u8::try_from(whole).unwrap_or(u8::MAX)
        }
        _ => machine.vcpus,
    };
    Ok((
        memory_mib.max(machine.memory_min_mib),
        vcpus.clamp(1, machine.vcpus_max),
    ))
}

/// The rest up to the maximum, in the guest kernel's unit of memory hot-plug. What nothing bounds is not offered unasked.
fn hotplug(memory_mib: u64, config: &Config) -> u64 {
    let machine = &config.machine;
    let max = match (machine.memory_max_mib, &machine.cgroup_root) {
        (Some(max), _) => max,
        (None, Some(root)) if MachineCgroup::limits_memory(root) => {
            capacity::memory_mib().min(MAX_MEMORY_MIB)
        }
        (None, _) => 0,
    };
    let rest = max.saturating_sub(memory_mib);
    rest - rest % HOTPLUG_UNIT_MIB
}

/// `memory.max` of a Machine that could take more memory than it was granted.
fn bound(memory_mib: u64, memory_hotplug_mib: u64, config: &Config) -> Option<u64> {
    (memory_hotplug_mib > 0).then(|| machine_bytes(memory_mib, config))
}

/// What a Machine of that size takes from the host at most, bytes: the guest's memory, and the VMM and virtiofsd.
pub(super) fn machine_bytes(memory_mib: u64, config: &Config) -> u64 {
    let overhead = config.machine.memory_overhead_mib.max(MIN_VMM_MIB);
    memory_mib.saturating_add(overhead).saturating_mul(MIB)
}

/// More processors than the host has would only wait for each other.
fn possible(vcpus: u8, config: &Config) -> u8 {
    let machine = &config.machine;
    let most = machine.vcpus_max.min(capacity::processors());
    vcpus.saturating_add(machine.vcpus_spare).min(most).max(vcpus)
}

fn cgroup(
    id: &str,
    linux: &cri::LinuxPodSandboxConfig,
    config: &Config,
    memory_max_bytes: Option<u64>,
) -> Result<Option<CgroupPlan>, RequestError> {
    let Some(root) = &config.machine.cgroup_root else {
        return Ok(None);
    };
    let parent = match (linux.cgroup_parent.as_str(), config.cgroup_driver) {
        ("", _) => config.machine.cgroup_parent.clone(),
        (parent, CgroupDriver::Cgroupfs) => parent.to_owned(),
        (slice, CgroupDriver::Systemd) => slice_path(slice)?,
    };
    let cgroup = MachineCgroup::at(root, &parent, &format!("clearpod-{id}"))
        .map_err(|error| RequestError::invalid("config.linux.cgroup_parent", error.to_string()))?;
    let resources = linux.resources.clone().unwrap_or_default();
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let quota = positive(resources.cpu_quota);
    Ok(Some(CgroupPlan {
        root: root.clone(),
        cgroup,
        limits: CgroupLimits {
            cpu_quota_us: quota,
            cpu_period_us: quota.and_then(|_| positive(resources.cpu_period)),
            cpu_weight: positive(resources.cpu_shares).map(CgroupLimits::weight_from_shares),
            // kubelet limits the pod's own cgroup, the parent of this one; this is against the guest.
            memory_max_bytes,
        },
    }))
}

/// systemd.slice(5): each dash of a slice's name is a level of the tree.
fn slice_path(slice: &str) -> Result<String, RequestError> {
    let refuse = || RequestError::invalid("config.linux.cgroup_parent", format!("{slice:?} is no slice"));
    let last = slice.rsplit('/').next().unwrap_or(slice);
    let name = last.strip_suffix(".slice").ok_or_else(refuse)?;
    if name == "-" {
        return Ok("/".to_owned());
    }
    if name.split('-').any(str::is_empty) {
        return Err(refuse());
    }
    let mut path = String::new();
    for (at, _) in name.match_indices('-').chain([(name.len(), "")]) {
        let prefix = name.get(..at).ok_or_else(refuse)?;
        path.push_str(&format!("/{prefix}.slice"));
    }
    Ok(path)
}

fn port_mappings(mappings: &[cri::PortMapping]) -> Result<Vec<PortMapping>, RequestError> {
    let port = |index: usize, name: &str, value: i32| {
        u16::try_from(value).map_err(|_| {
            RequestError::invalid(
                format!("config.port_mappings[{index}].{name}"),
                format!("{value} is no port"),
            )
        })
    };
    let mut ports = Vec::new();
    for (index, mapping) in mappings.iter().enumerate() {
        // kubelet lists every container port; only those with a host port are mapped.
        if mapping.host_port == 0 {
            continue;
        }
        ports.push(PortMapping {
            host_port: port(index, "host_port", mapping.host_port)?,
            container_port: port(index, "container_port", mapping.container_port)?,
            protocol: mapping.protocol().as_str_name().to_ascii_lowercase(),
            host_ip: mapping.host_ip.clone(),
        });
    }
    Ok(ports)
}

/// Annotations that kubelet passes on for the bandwidth plugin.
fn bandwidth(pod: &cri::PodSandboxConfig) -> Result<Option<Bandwidth>, RequestError> {
    let rate = |direction: &str| {
        let key = format!("kubernetes.io/{direction}-bandwidth");
        let Some(text) = pod.annotations.get(&key) else {
            return Ok(0);
        };
        quantity::parse(text).ok_or_else(|| {
            RequestError::invalid(
                format!("config.annotations[{key}]"),
                format!("{text:?} is no quantity"),
            )
        })
    };
    let (ingress_rate, egress_rate) = (rate("ingress")?, rate("egress")?);
    if ingress_rate == 0 && egress_rate == 0 {
        return Ok(None);
    }
    // The plugin wants a burst beside each rate; the largest it takes leaves the rate alone in charge.
    let burst = |rate: u64| if rate == 0 { 0 } else { u64::from(u32::MAX) };
    Ok(Some(Bandwidth {
        ingress_rate,
        ingress_burst: burst(ingress_rate),
        egress_rate,
        egress_burst: burst(egress_rate),
    }))
}

#[cfg(test)]
mod tests;
