//! From CRI's configuration of a container to the agent's: what is honoured is translated, what is not is refused by its
//! field. Nothing is made here but missing host paths; host files that are mounted are opened or read.
//!
//! Layers, mounts and devices are added to the request later, when the Machine has them. Standard mounts (/proc, /dev, ...) are the agent's own.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use proto::{
    agent::v1 as agent,
    cri::v1::{self as cri, NamespaceMode},
};

use super::{
    apparmor, capabilities,
    devices::{self, PlannedDevice},
    mounts::{self, MemoryHomes, PlannedMount},
    seccomp::{self, Kernel},
};
use crate::{
    config::ContainerDefaults,
    id_map::{self, IdMap},
    image::RunConfig,
    sandbox::RequestError,
};

/// Where security context and namespace options are, for messages.
const SECURITY: &str = "linux.security_context";
const NAMESPACES: &str = "linux.security_context.namespace_options";
/// Where kubelet says which mount is the termination log.
const TERMINATION_LOG_ANNOTATION: &str = "io.kubernetes.container.terminationMessagePath";
const DEFAULT_TERMINATION_LOG: &str = "/dev/termination-log";
/// What a shell finds programs in when neither image nor pod says.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A container as it is to be made.
#[derive(Debug)]
pub(crate) struct ContainerPlan {
    /// For the agent, without layers and without what a Machine mounts.
    pub(crate) request: agent::CreateContainerRequest,
    /// In the order in which they are mounted.
    pub(crate) mounts: Vec<PlannedMount>,
    pub(crate) devices: Vec<PlannedDevice>,
    /// Host file that the termination message is written to.
    pub(crate) termination_log: Option<PathBuf>,
    pub(crate) log_path: Option<PathBuf>,
}

/// What a container's plan depends on beside its own configuration.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    pub(crate) sandbox: &'a cri::PodSandboxConfig,
    /// Of its Machine.
    pub(crate) vcpus: u8,
    /// Of its user namespace.
    pub(crate) id_map: Option<IdMap>,
    pub(crate) image: &'a RunConfig,
    pub(crate) defaults: &'a ContainerDefaults,
    pub(crate) memory_homes: &'a MemoryHomes,
}

/// Translates a container.
pub(crate) async fn plan(
    container_id: &str,
    config: &cri::ContainerConfig,
    around: &Surroundings<'_>,
) -> Result<ContainerPlan, RequestError> {
    refuse_unsupported(config)?;
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.clone().unwrap_or_default();
    let common = common(container_id, config, around.image, around.defaults, Kernel::Guest).await?;
    let termination_log_path = termination_log(config);
    let (mounts, devices) = host_files(config, &termination_log_path, around).await?;
    let termination_log = mounts.termination_log;
    let common_security = common.security.clone().unwrap_or_default();
    let request = agent::CreateContainerRequest {
        security: Some(apparmor(common_security, &security, around.defaults).await?),
        namespaces: Some(namespaces(&security, around.id_map)?),
        resources: Some(resources(linux.resources.as_ref(), around.vcpus)?),
        termination_log_path: if termination_log.is_some() {
            termination_log_path
        } else {
            String::new()
        },
        ..common
    };
    Ok(ContainerPlan {
        request,
        mounts: mounts.planned,
        devices,
        termination_log,
        log_path: log_path(around.sandbox, config)?,
    })
}

/// Adds the profile of AppArmor that is asked for, and the host's policy for it.
async fn apparmor(
    security: agent::Security,
    wish: &cri::LinuxContainerSecurityContext,
    defaults: &ContainerDefaults,
) -> Result<agent::Security, RequestError> {
    let Some(wanted) = apparmor::wanted(SECURITY, wish)? else {
        return Ok(security);
    };
    let (kernel, name) = (defaults.apparmor.clone(), wanted.name.clone());
    let policy = tokio::task::spawn_blocking(move || apparmor::policy(&kernel, &wanted));
    Ok(agent::Security {
        apparmor_profile: name,
        apparmor_policy: policy
            .await
            .map_err(RequestError::failed("read an AppArmor profile"))??,
        ..security
    })
}

/// What a container of either kind of pod is: its process, what confines it, its root.
pub(super) async fn common(
    container_id: &str,
    config: &cri::ContainerConfig,
    image: &RunConfig,
    defaults: &ContainerDefaults,
    kernel: Kernel,
) -> Result<agent::CreateContainerRequest, RequestError> {
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let capabilities = capabilities::sets(security.capabilities.as_ref(), security.privileged)?;
    let confinement = if security.privileged {
        Vec::new()
    } else {
        let wish = security.seccomp.as_ref();
        let field = format!("{SECURITY}.seccomp");
        seccomp::profile(&field, wish, &capabilities.bounding, kernel).await?
    };
    let (masked_paths, read_only_paths) = if security.privileged {
        Default::default()
    } else {
        (security.masked_paths.clone(), security.readonly_paths.clone())
    };
    Ok(agent::CreateContainerRequest {
        container_id: container_id.to_owned(),
        read_only_rootfs: security.readonly_rootfs,
        process: Some(agent::Process {
            args: command(config, image)?,
            stdin: config.stdin,
            ..process(config, image, defaults)?
        }),
        security: Some(agent::Security {
            capabilities: Some(capabilities),
            no_new_privileges: security.no_new_privs,
            seccomp: confinement,
            masked_paths,
            read_only_paths,
            privileged: security.privileged,
            ..agent::Security::default()
        }),
        ..agent::CreateContainerRequest::default()
    })
}

/// What a process of the container runs with, but its arguments and stdin: of the container and of each exec.
pub(crate) fn process(
    config: &cri::ContainerConfig,
    image: &RunConfig,
    defaults: &ContainerDefaults,
) -> Result<agent::Process, RequestError> {
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let oom_score_adj = linux.resources.map_or(0, |resources| resources.oom_score_adj);
    Ok(agent::Process {
        args: Vec::new(),
        env: environment(config, image),
        cwd: [&config.working_dir, &image.working_dir]
            .into_iter()
            .find(|path| !path.is_empty())
            .map_or_else(|| "/".to_owned(), Clone::clone),
        user: Some(user(&security, image)?),
        terminal: config.tty,
        terminal_size: None,
        stdin: false,
        rlimits: vec![agent::Rlimit {
            kind: "RLIMIT_NOFILE".to_owned(),
            soft: defaults.nofile.0,
            hard: defaults.nofile.1,
        }],
        oom_score_adj: self::oom_score_adj(oom_score_adj)?,
    })
}

pub(crate) fn oom_score_adj(score: i64) -> Result<i32, RequestError> {
    let number = i32::try_from(score).ok();
    number
        .filter(|score| (-1000..=1000).contains(score))
        .ok_or_else(|| {
            let reason = format!("{score} is not between -1000 and 1000");
            RequestError::invalid("linux.resources.oom_score_adj", reason)
        })
}

/// As Docker does: the pod's command replaces the image's entrypoint and its default arguments; the pod's arguments
/// replace the image's arguments.
fn command(config: &cri::ContainerConfig, image: &RunConfig) -> Result<Vec<String>, RequestError> {
    let (mut command, mut args) = (config.command.clone(), config.args.clone());
    if command.is_empty() {
        command.clone_from(&image.entrypoint);
        if args.is_empty() {
            args.clone_from(&image.cmd);
        }
    }
    command.extend(args);
    match command.first() {
        Some(program) if !program.is_empty() => Ok(command),
        _ => Err(RequestError::invalid(
            "command",
            "neither the container nor its image names one",
        )),
    }
}

/// The image's, under it what every container has, over it the pod's.
fn environment(config: &cri::ContainerConfig, image: &RunConfig) -> Vec<Vec<u8>> {
    let mut order: Vec<Vec<u8>> = Vec::new();
    let mut values: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let base = [(b"PATH".to_vec(), DEFAULT_PATH.as_bytes().to_vec())];
    let image = image.env.iter().filter_map(|entry| {
        let (key, value) = entry.split_once('=')?;
        Some((key.as_bytes().to_vec(), value.as_bytes().to_vec()))
    });
    let pod = config
        .envs
        .iter()
        .map(|entry| (entry.key.clone().into_bytes(), entry.value.clone()));
    for (key, value) in base.into_iter().chain(image).chain(pod) {
        if values.insert(key.clone(), value).is_none() {
            order.push(key);
        }
    }
    order
        .into_iter()
        .map(|key| {
            let value = values.remove(&key).unwrap_or_default();
            [key, b"=".to_vec(), value].concat()
        })
        .collect()
}

fn user(
    security: &cri::LinuxContainerSecurityContext,
    image: &RunConfig,
) -> Result<agent::User, RequestError> {
    let id = |field: &str, value: i64| {
        u32::try_from(value).map_err(|_| {
            RequestError::invalid(
                format!("linux.security_context.{field}"),
                format!("{value} is no id"),
            )
        })
    };
    let spec = match (&security.run_as_user, security.run_as_username.as_str()) {
        (Some(user), _) => id("run_as_user", user.value)?.to_string(),
        (None, "") => image.user.clone(),
        (None, name) => name.to_owned(),
    };
    if security.run_as_group.is_some()
        && security.run_as_user.is_none()
        && security.run_as_username.is_empty()
    {
        return Err(RequestError::invalid(
            "linux.security_context.run_as_group",
            "a group without run_as_user or run_as_username",
        ));
    }
    Ok(agent::User {
        spec,
        supplemental_gids: security
            .supplemental_groups
            .iter()
            .map(|&group| id("supplemental_groups", group))
            .collect::<Result<_, _>>()?,
        strict_groups: security.supplemental_groups_policy() == cri::SupplementalGroupsPolicy::Strict,
        gid: security
            .run_as_group
            .as_ref()
            .map(|group| id("run_as_group", group.value))
            .transpose()?,
    })
}

pub(super) fn namespaces(
    security: &cri::LinuxContainerSecurityContext,
    of_sandbox: Option<IdMap>,
) -> Result<agent::Namespaces, RequestError> {
    let wish = security.namespace_options.clone().unwrap_or_default();
    refuse_host_namespaces(NAMESPACES, &wish)?;
    id_map::check_container(NAMESPACES, &wish, of_sandbox)?;
    let (pid, pid_target) = match wish.pid() {
        NamespaceMode::Pod => (agent::PidNamespace::Pod, String::new()),
        NamespaceMode::Target => (agent::PidNamespace::Target, wish.target_id.clone()),
        NamespaceMode::Container | NamespaceMode::Node => (agent::PidNamespace::Container, String::new()),
    };
    Ok(agent::Namespaces {
        pid: pid.into(),
        pid_target,
    })
}

/// A Machine has nothing of the host to share: such pods belong to a runtime handler of their own.
pub(crate) fn refuse_host_namespaces(field: &str, wish: &cri::NamespaceOption) -> Result<(), RequestError> {
    let modes = [
        ("network", wish.network()),
        ("pid", wish.pid()),
        ("ipc", wish.ipc()),
    ];
    if let Some((name, _)) = modes.iter().find(|(_, mode)| *mode == NamespaceMode::Node) {
        return Err(RequestError::unsupported(
            format!("{field}.{name}"),
            "NODE: a pod in a virtual machine cannot share a namespace of the host",
        ));
    }
    Ok(())
}

/// Limits for the cgroup of a container in a guest with so many processors. Those of a cpuset are the guest's: what names
/// one that it has not was meant for the host.
pub(crate) fn resources(
    wish: Option<&cri::LinuxContainerResources>,
    vcpus: u8,
) -> Result<agent::Resources, RequestError> {
    let (cpus, mems) = wish.map_or(("", ""), |wish| (&wish.cpuset_cpus, &wish.cpuset_mems));
    for (name, value, count) in [
        ("cpuset_cpus", cpus, vcpus),
        // A guest has one memory node.
        ("cpuset_mems", mems, 1),
    ] {
        if !value.is_empty() && !is_within(value, count) {
            let reason = format!(
                "{value:?} is not within 0-{} of the guest",
                count.saturating_sub(1)
            );
            return Err(RequestError::unsupported(
                format!("linux.resources.{name}"),
                reason,
            ));
        }
    }
    resources_on_host(wish)
}

/// The same for a pod on the host, whose processors and memory nodes are the host's own.
pub(crate) fn resources_on_host(
    wish: Option<&cri::LinuxContainerResources>,
) -> Result<agent::Resources, RequestError> {
    let wish = wish.cloned().unwrap_or_default();
    let unsigned = |name: &str, value: i64| {
        u64::try_from(value).map_err(|_| {
            RequestError::invalid(format!("linux.resources.{name}"), format!("{value} is negative"))
        })
    };
    let shares = unsigned("cpu_shares", wish.cpu_shares)?;
    Ok(agent::Resources {
        cpu_quota_us: wish.cpu_quota,
        cpu_period_us: unsigned("cpu_period", wish.cpu_period)?,
        cpu_weight: if shares == 0 {
            0
        } else {
            crate::machine::CgroupLimits::weight_from_shares(shares)
        },
        memory_limit_bytes: wish.memory_limit_in_bytes,
        memory_swap_limit_bytes: wish.memory_swap_limit_in_bytes,
        pids_limit: 0,
        cpuset_cpus: wish.cpuset_cpus,
        cpuset_mems: wish.cpuset_mems,
        unified: wish.unified,
        // kubelet names every page size with a limit of 0; a kernel without such pages needs no limit.
        hugepage_limits: wish
            .hugepage_limits
            .into_iter()
            .filter(|limit| limit.limit > 0)
            .map(|limit| agent::HugepageLimit {
                page_size: limit.page_size,
                limit_bytes: limit.limit,
            })
            .collect(),
    })
}

/// A list as "0-2,5", cpuset(7), of numbers below `count`.
fn is_within(list: &str, count: u8) -> bool {
    list.split(',').all(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<u8>(), last.parse::<u8>()) {
            (Ok(first), Ok(last)) => first <= last && last < count,
            _ => false,
        }
    })
}

fn termination_log(config: &cri::ContainerConfig) -> String {
    config
        .annotations
        .get(TERMINATION_LOG_ANNOTATION)
        .map_or(DEFAULT_TERMINATION_LOG, String::as_str)
        .to_owned()
}

/// Opens and reads what the container asks for of the host's files.
async fn host_files(
    config: &cri::ContainerConfig,
    termination_log: &str,
    around: &Surroundings<'_>,
) -> Result<(mounts::Mounts, Vec<PlannedDevice>), RequestError> {
    let (config, termination_log) = (config.clone(), termination_log.to_owned());
    let (defaults, homes) = (around.defaults.clone(), around.memory_homes.clone());
    let id_map = around.id_map;
    let opened = tokio::task::spawn_blocking(move || {
        let of_pod = mounts::OfPod {
            defaults: &defaults,
            homes: &homes,
            id_map,
        };
        let mounts = mounts::plan(&config.mounts, &termination_log, &of_pod)?;
        Ok((mounts, devices::plan(&config.devices)?))
    });
    opened
        .await
        .map_err(RequestError::failed("open the mounted files"))?
}

pub(super) fn log_path(
    sandbox: &cri::PodSandboxConfig,
    config: &cri::ContainerConfig,
) -> Result<Option<PathBuf>, RequestError> {
    if sandbox.log_directory.is_empty() || config.log_path.is_empty() {
        return Ok(None);
    }
    let relative = Path::new(&config.log_path);
    let plain = relative
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if !plain {
        let reason = format!(
            "{:?} is no path below the sandbox's log directory",
            config.log_path
        );
        return Err(RequestError::invalid("log_path", reason));
    }
    Ok(Some(Path::new(&sandbox.log_directory).join(relative)))
}

pub(super) fn refuse_unsupported(config: &cri::ContainerConfig) -> Result<(), RequestError> {
    let security = config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.clone())
        .unwrap_or_default();
    if !config.cdi_devices.is_empty() {
        return Err(RequestError::unsupported("CDI_devices", "devices of the host"));
    }
    if config.windows.is_some() {
        return Err(RequestError::unsupported("windows", "Windows containers"));
    }
    refuse_selinux(SECURITY, security.selinux_options.as_ref())
}

/// Labels of SELinux are the host's, and mean nothing in the guest. `field` is the security context's.
pub(crate) fn refuse_selinux(field: &str, selinux: Option<&cri::SeLinuxOption>) -> Result<(), RequestError> {
    if selinux.is_some_and(|options| *options != cri::SeLinuxOption::default()) {
        let reason = "the guest has no SELinux";
        return Err(RequestError::unsupported(
            format!("{field}.selinux_options"),
            reason,
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
