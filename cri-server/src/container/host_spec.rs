//! From CRI's configuration of a container to the shim's, for pods on the host: what `spec` refuses because a guest has none of
//! it, paths and devices of the host, propagation, labels, is honoured here. What both have in common is `spec`'s.

use std::{
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use proto::{
    agent::v1 as agent,
    cri::v1::{self as cri, NamespaceMode},
};

use super::{
    apparmor::{self, Wanted},
    mounts::{self, is_image},
    seccomp::Kernel,
    spec::{self, ContainerPlan},
};
use crate::{
    config::ContainerDefaults,
    host::{self, HostPlan},
    id_map,
    image::RunConfig,
    sandbox::RequestError,
};

const SECURITY: &str = "linux.security_context";
const NAMESPACES: &str = "linux.security_context.namespace_options";
/// Where the kernel shows SELinux, and AppArmor when it is on.
const SELINUX: &str = "/sys/fs/selinux/enforce";
const APPARMOR: &str = "/sys/kernel/security/apparmor/profiles";

/// Translates a container of a pod on the host.
pub(crate) async fn plan(
    container_id: &str,
    config: &cri::ContainerConfig,
    sandbox: &cri::PodSandboxConfig,
    image: &RunConfig,
    defaults: &ContainerDefaults,
    host: HostPlan,
) -> Result<ContainerPlan, RequestError> {
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.clone().unwrap_or_default();
    if !config.cdi_devices.is_empty() {
        return Err(RequestError::unsupported("CDI_devices", "CDI devices"));
    }
    if config.windows.is_some() {
        return Err(RequestError::unsupported("windows", "Windows containers"));
    }
    let common = spec::common(container_id, config, image, defaults, Kernel::Host).await?;
    let request = agent::CreateContainerRequest {
        mounts: bound(config, &security)?,
        namespaces: Some(namespaces(&security, host)?),
        resources: Some(spec::resources_on_host(linux.resources.as_ref())?),
        devices: devices(config)?,
        host_labels: Some(labels(&security)?),
        ..common
    };
    Ok(ContainerPlan {
        request,
        // All of the host's is bound as it is: nothing has to be made of it, and nobody has to carry the message.
        mounts: Vec::new(),
        devices: Vec::new(),
        termination_log: None,
        log_path: spec::log_path(sandbox, config)?,
    })
}

/// The sandbox has decided on network and IPC: a container that wishes for another cannot be had.
fn namespaces(
    security: &cri::LinuxContainerSecurityContext,
    host: HostPlan,
) -> Result<agent::Namespaces, RequestError> {
    let wish = security.namespace_options.clone().unwrap_or_default();
    host::refuse_user_namespace(NAMESPACES, &wish)?;
    for (name, mode, of_sandbox) in [
        ("network", wish.network(), host.host_network),
        ("ipc", wish.ipc(), host.host_ipc),
    ] {
        if (mode == NamespaceMode::Node) && !of_sandbox {
            let reason = "NODE: the sandbox was made with one of its own";
            return Err(RequestError::invalid(format!("{NAMESPACES}.{name}"), reason));
        }
    }
    let (pid, pid_target) = match wish.pid() {
        NamespaceMode::Pod => (agent::PidNamespace::Pod, String::new()),
        NamespaceMode::Container => (agent::PidNamespace::Container, String::new()),
        NamespaceMode::Target => (agent::PidNamespace::Target, wish.target_id.clone()),
        NamespaceMode::Node => (agent::PidNamespace::Node, String::new()),
    };
    Ok(agent::Namespaces {
        pid: pid.into(),
        pid_target,
    })
}

fn bound(
    config: &cri::ContainerConfig,
    security: &cri::LinuxContainerSecurityContext,
) -> Result<Vec<agent::Mount>, RequestError> {
    let own = mounts::pod_files(&config.mounts).map(|(destination, source)| agent::Mount {
        destination: destination.to_owned(),
        source: Some(source),
        ..agent::Mount::default()
    });
    let mut bound: Vec<agent::Mount> = own.collect();
    let labelled = security
        .selinux_options
        .as_ref()
        .is_some_and(|label| *label != cri::SeLinuxOption::default());
    for (index, mount) in config.mounts.iter().enumerate() {
        let field = |name: &str| format!("mounts[{index}].{name}");
        check(&format!("mounts[{index}]"), mount)?;
        id_map::of_mount(&format!("mounts[{index}]"), mount, None)?;
        if mount.selinux_relabel && labelled {
            let reason = "files of the host keep their labels";
            return Err(RequestError::unsupported(field("selinux_relabel"), reason));
        }
        // CRI: links are followed, and a path that is not there is an error.
        let path = fs_err::canonicalize(&mount.host_path)
            .map_err(|error| RequestError::invalid(field("host_path"), error.to_string()))?;
        let path = path.into_os_string().into_string();
        let path =
            path.map_err(|_| RequestError::unsupported(field("host_path"), "a path that is not UTF-8"))?;
        let propagation = match mount.propagation() {
            cri::MountPropagation::PropagationPrivate => agent::Propagation::Private,
            cri::MountPropagation::PropagationHostToContainer => agent::Propagation::Slave,
            cri::MountPropagation::PropagationBidirectional => agent::Propagation::Shared,
        };
        bound.push(agent::Mount {
            destination: mount.container_path.clone(),
            read_only: mount.readonly,
            recursive_read_only: mount.recursive_read_only,
            options: Vec::new(),
            source: Some(agent::mount::Source::Host(agent::HostSource {
                path,
                propagation: propagation.into(),
            })),
            id_mapped: false,
        });
    }
    Ok(bound)
}

fn check(field: &str, mount: &cri::Mount) -> Result<(), RequestError> {
    mounts::check_common(field, mount)?;
    let unsupported =
        |name: &str, reason: &str| Err(RequestError::unsupported(format!("{field}.{name}"), reason));
    if is_image(mount) {
        return unsupported("image", "image volumes of pods on the host");
    }
    if !mount.mount_options.is_empty() {
        return unsupported("mount_options", "mount options of pods on the host");
    }
    if !mount.host_path.starts_with('/') {
        return Err(RequestError::invalid(
            format!("{field}.host_path"),
            "no absolute path",
        ));
    }
    Ok(())
}

fn devices(config: &cri::ContainerConfig) -> Result<Vec<agent::Device>, RequestError> {
    let devices = config.devices.iter().enumerate().map(|(index, device)| {
        let field = format!("devices[{index}].host_path");
        let metadata = fs_err::metadata(&device.host_path)
            .map_err(|error| RequestError::invalid(field.clone(), error.to_string()))?;
        let kind = if metadata.file_type().is_char_device() {
            "c"
        } else if metadata.file_type().is_block_device() {
            "b"
        } else {
            let reason = format!("{} is no device", device.host_path);
            return Err(RequestError::invalid(field, reason));
        };
        Ok(agent::Device {
            path: device.container_path.clone(),
            kind: kind.to_owned(),
            major: rustix::fs::major(metadata.rdev()),
            minor: rustix::fs::minor(metadata.rdev()),
            mode: metadata.mode() & 0o777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            access: device.permissions.clone(),
            disk: None,
        })
    });
    devices.collect()
}

/// Labels mean something where the host's kernel has them, and are refused where it has not. AppArmor's default profile is none
/// of ours: it stands for what a host without AppArmor gives.
fn labels(security: &cri::LinuxContainerSecurityContext) -> Result<agent::HostLabels, RequestError> {
    let mut labels = agent::HostLabels::default();
    if let Some(selinux) = security
        .selinux_options
        .as_ref()
        .filter(|label| **label != cri::SeLinuxOption::default())
    {
        if !Path::new(SELINUX).exists() {
            let reason = "SELinux is off on this host";
            return Err(RequestError::unsupported(
                format!("{SECURITY}.selinux_options"),
                reason,
            ));
        }
        let or = |value: &str, default: &str| {
            if value.is_empty() {
                default.to_owned()
            } else {
                value.to_owned()
            }
        };
        labels.selinux_process_label = [
            or(&selinux.user, "system_u"),
            or(&selinux.role, "system_r"),
            or(&selinux.r#type, "container_t"),
            or(&selinux.level, "s0"),
        ]
        .join(":");
    }
    if security.privileged {
        return Ok(labels);
    }
    if let Some(Wanted { name, field }) = apparmor::wanted(SECURITY, security)? {
        if !Path::new(APPARMOR).exists() {
            let reason = "AppArmor is off on this host";
            return Err(RequestError::unsupported(field, reason));
        }
        labels.apparmor_profile = name;
    }
    Ok(labels)
}

#[cfg(test)]
mod tests;
