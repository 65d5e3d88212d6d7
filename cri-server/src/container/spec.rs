//! What CRI asks of a container, as the order that the agent gets. No state, no guest; only the files that a mount or a
//! seccomp profile names are read from the host.
//!
//! Every field of `ContainerConfig` is honoured here or refused by name. `process` has the command and the user,
//! `security` capabilities and confinement, `resources` the cgroup, `mounts` the volumes.

mod mounts;
mod process;
mod resources;
mod seccomp;
mod security;
#[cfg(test)]
mod tests;

use std::fmt;

use proto::{agent::v1 as agent, cri::v1 as cri};

use crate::{config::ContainerDefaults, image::RunConfig};

pub(crate) use process::{exec_process, stop_signal};

/// Everything that an order is made of.
#[derive(Debug)]
pub(crate) struct SpecInput<'a> {
    pub(crate) container_id: &'a str,
    pub(crate) config: &'a cri::ContainerConfig,
    pub(crate) sandbox: &'a cri::PodSandboxConfig,
    /// The host name that the pod has in the guest.
    pub(crate) hostname: &'a str,
    pub(crate) image: &'a RunConfig,
    /// Lowest first, already on the Machine's bus.
    pub(crate) layers: Vec<agent::Disk>,
    pub(crate) defaults: &'a ContainerDefaults,
}

/// A field that cannot be what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SpecError {
    /// Path of the field in the CRI request, e.g. `config.mounts[2].host_path`.
    pub(crate) field: String,
    pub(crate) problem: String,
    pub(crate) kind: SpecErrorKind,
}

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpecErrorKind {
    /// No container can be like that.
    Invalid,
    /// This runtime does not offer that.
    Unsupported,
}

impl SpecError {
    pub(crate) fn invalid(field: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self {
            field: field.into(),
            problem: problem.to_string(),
            kind: SpecErrorKind::Invalid,
        }
    }

    pub(crate) fn unsupported(field: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self {
            field: field.into(),
            problem: problem.to_string(),
            kind: SpecErrorKind::Unsupported,
        }
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

impl std::error::Error for SpecError {}

/// Puts the order together. Reads host files (blocking).
///
/// # Errors
/// The first field that is invalid, or that this runtime does not honour.
pub(crate) fn build(input: SpecInput<'_>) -> Result<agent::CreateContainerRequest, SpecError> {
    let config = input.config;
    refuse_what_is_not_offered(config)?;
    let linux = config.linux.clone().unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    Ok(agent::CreateContainerRequest {
        container_id: input.container_id.to_owned(),
        layers: input.layers,
        read_only_rootfs: context.readonly_rootfs,
        mounts: mounts::all(config, input.defaults)?,
        process: Some(process::init(
            config,
            &context,
            input.image,
            input.hostname,
            input.defaults,
        )?),
        namespaces: Some(security::namespaces(&context, input.sandbox)?),
        resources: Some(resources::limits(
            "config.linux.resources",
            linux.resources.as_ref(),
        )?),
        security: Some(security::security(&context)?),
        devices: Vec::new(),
        sysctls: Default::default(),
        termination_log_path: String::new(),
    })
}

fn refuse_what_is_not_offered(config: &cri::ContainerConfig) -> Result<(), SpecError> {
    if let Some(device) = config.devices.first() {
        return Err(SpecError::unsupported(
            "config.devices[0]",
            format!(
                "host device {:?} cannot be given to a container in a Machine",
                device.host_path
            ),
        ));
    }
    if let Some(device) = config.cdi_devices.first() {
        return Err(SpecError::unsupported(
            "config.CDI_devices[0]",
            format!(
                "{:?}: CDI devices of the host cannot be given to a container in a Machine",
                device.name
            ),
        ));
    }
    if config.windows.is_some() {
        return Err(SpecError::unsupported(
            "config.windows",
            "this runtime runs Linux containers",
        ));
    }
    Ok(())
}
