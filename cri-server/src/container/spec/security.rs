//! Capabilities, namespaces and paths out of reach.

use proto::{agent::v1 as agent, cri::v1 as cri};

use super::{SpecError, seccomp};

/// capabilities(7), in the order of their numbers.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has when nobody asks for more or less: the set that Docker made the custom.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Masked and read-only in every container that is not privileged, unless the request has lists of its own.
const MASKED_PATHS: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];
const READ_ONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

pub(super) fn field(name: &str) -> String {
    format!("config.linux.security_context.{name}")
}

/// Which PID namespace; and no other namespace but the pod's own.
pub(super) fn namespaces(
    context: &cri::LinuxContainerSecurityContext,
    sandbox: &cri::PodSandboxConfig,
) -> Result<agent::Namespaces, SpecError> {
    let pod = sandbox
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref());
    let pod = pod
        .and_then(|context| context.namespace_options.clone())
        .unwrap_or_default();
    let options = context.namespace_options.clone().unwrap_or_else(|| pod.clone());
    for (name, mode) in [("network", options.network()), ("ipc", options.ipc())] {
        if mode == cri::NamespaceMode::Node {
            let problem = "NODE is outside of the pod's Machine";
            return Err(SpecError::unsupported(
                field(&format!("namespace_options.{name}")),
                problem,
            ));
        }
    }
    if options
        .userns_options
        .as_ref()
        .is_some_and(|user| user.mode() == cri::NamespaceMode::Pod)
    {
        let problem = "user namespaces are not offered";
        return Err(SpecError::unsupported(
            field("namespace_options.userns_options"),
            problem,
        ));
    }
    let (pid, target) = match options.pid() {
        cri::NamespaceMode::Container => (agent::PidNamespace::Container, String::new()),
        cri::NamespaceMode::Pod => (agent::PidNamespace::Pod, String::new()),
        cri::NamespaceMode::Target if options.target_id.is_empty() => {
            let problem = "is needed with pid TARGET";
            return Err(SpecError::invalid(field("namespace_options.target_id"), problem));
        }
        cri::NamespaceMode::Target => (agent::PidNamespace::Target, options.target_id.clone()),
        cri::NamespaceMode::Node => {
            let problem = "NODE is outside of the pod's Machine";
            return Err(SpecError::unsupported(field("namespace_options.pid"), problem));
        }
    };
    Ok(agent::Namespaces {
        pid: pid.into(),
        pid_target: target,
        uid_mappings: Vec::new(),
        gid_mappings: Vec::new(),
    })
}

/// Everything that confines the container's processes. Reads a Localhost seccomp profile.
pub(super) fn security(context: &cri::LinuxContainerSecurityContext) -> Result<agent::Security, SpecError> {
    refuse_host_policies(context)?;
    let capabilities = capabilities(context)?;
    let seccomp = seccomp::profile(context, &capabilities)?;
    Ok(agent::Security {
        capabilities: Some(capabilities),
        no_new_privileges: context.no_new_privs,
        seccomp,
        masked_paths: paths(
            "masked_paths",
            &context.masked_paths,
            &MASKED_PATHS,
            context.privileged,
        )?,
        read_only_paths: paths(
            "readonly_paths",
            &context.readonly_paths,
            &READ_ONLY_PATHS,
            context.privileged,
        )?,
        privileged: context.privileged,
    })
}

/// The host's AppArmor and SELinux policies do not reach into the guest.
fn refuse_host_policies(context: &cri::LinuxContainerSecurityContext) -> Result<(), SpecError> {
    let confined = |profile: &cri::SecurityProfile| {
        profile.profile_type() != cri::security_profile::ProfileType::Unconfined
    };
    if context.apparmor.as_ref().is_some_and(confined) {
        return Err(SpecError::unsupported(
            field("apparmor"),
            "AppArmor profiles of the host do not reach the guest",
        ));
    }
    // Deprecated in CRI in favour of `apparmor`, and still sent beside it.
    #[expect(deprecated, reason = "clients of older CRI versions send only this one")]
    let profile = context.apparmor_profile.as_str();
    if context.apparmor.is_none() && !["", "unconfined"].contains(&profile) {
        let problem = format!("{profile:?}: AppArmor profiles of the host do not reach the guest");
        return Err(SpecError::unsupported(field("apparmor_profile"), problem));
    }
    let label = context.selinux_options.as_ref();
    if label.is_some_and(|label| *label != cri::SeLinuxOption::default()) {
        return Err(SpecError::unsupported(
            field("selinux_options"),
            "the guest has no SELinux",
        ));
    }
    Ok(())
}

fn capabilities(context: &cri::LinuxContainerSecurityContext) -> Result<agent::Capabilities, SpecError> {
    let asked = context.capabilities.clone().unwrap_or_default();
    let mut set: Vec<&str> = if context.privileged {
        ALL.to_vec()
    } else {
        DEFAULT.to_vec()
    };
    let add = known("add_capabilities", &asked.add_capabilities)?;
    let drop = known("drop_capabilities", &asked.drop_capabilities)?;
    let ambient = known("add_ambient_capabilities", &asked.add_ambient_capabilities)?;
    // "ALL" first, so that a name beside it in the other list still counts.
    if add.contains(&"ALL") {
        set = ALL.to_vec();
    }
    if drop.contains(&"ALL") {
        set.clear();
    }
    set.extend(add.iter().filter(|name| **name != "ALL"));
    set.extend(ambient.iter().filter(|name| **name != "ALL"));
    set.retain(|name| !drop.contains(name));
    let names = |wanted: &dyn Fn(&&str) -> bool| -> Vec<String> {
        ALL.iter()
            .filter(|name| wanted(name))
            .map(|name| format!("CAP_{name}"))
            .collect()
    };
    let held = names(&|name| set.contains(name));
    let ambient = names(&|name| set.contains(name) && (ambient.contains(name) || ambient.contains(&"ALL")));
    Ok(agent::Capabilities {
        bounding: held.clone(),
        effective: held.clone(),
        permitted: held,
        inheritable: ambient.clone(),
        ambient,
    })
}

fn known(list: &str, names: &[String]) -> Result<Vec<&'static str>, SpecError> {
    let find = |(index, name): (usize, &String)| {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let unknown = || {
            let problem = format!("{name:?} is no capability");
            SpecError::invalid(field(&format!("capabilities.{list}[{index}]")), problem)
        };
        if short == "ALL" {
            return Ok("ALL");
        }
        ALL.iter()
            .find(|known| **known == short)
            .copied()
            .ok_or_else(unknown)
    };
    names.iter().enumerate().map(find).collect()
}

fn paths(name: &str, asked: &[String], default: &[&str], privileged: bool) -> Result<Vec<String>, SpecError> {
    if let Some(path) = asked.iter().find(|path| !path.starts_with('/')) {
        return Err(SpecError::invalid(
            field(name),
            format!("{path:?} is not absolute"),
        ));
    }
    if privileged {
        return Ok(Vec::new());
    }
    if asked.is_empty() {
        return Ok(default.iter().map(|path| (*path).to_owned()).collect());
    }
    Ok(asked.to_vec())
}
