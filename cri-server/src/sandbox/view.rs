//! What a sandbox shows: a snapshot that its owner task publishes after each input. Lists and statuses read it and never
//! wait for the task.

use std::{net::IpAddr, sync::Arc};

use proto::cri::v1 as cri;

use super::{SandboxState, timings::Timings, volumes::VolumeUse};
use crate::{
    container::{limits::Limits, state::ContainerState},
    guest::{Dialer, GuestClient},
    host::Kind,
    image::RunConfig,
    machine::ControlClient,
};

/// A sandbox at one moment.
#[derive(Debug, Clone)]
pub(crate) struct SandboxView {
    pub(crate) id: String,
    pub(crate) request: Arc<cri::RunPodSandboxRequest>,
    pub(crate) created_at: i64,
    pub(crate) state: SandboxState,
    /// Primary first.
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) timings: Timings,
    /// Of a Machine that has ended.
    pub(crate) console: String,
    pub(crate) machine: Option<MachineView>,
    /// Oldest first.
    pub(crate) containers: Vec<Arc<ContainerView>>,
}

/// How to reach a Machine that runs, or a host pod's shim.
#[derive(Debug, Clone)]
pub(crate) struct MachineView {
    pub(crate) kind: Kind,
    pub(crate) pid: u32,
    pub(crate) memory_mib: u64,
    pub(crate) vcpus: u8,
    /// A host pod has none.
    pub(crate) control: Option<ControlClient>,
    pub(crate) guest: GuestClient,
    pub(crate) dialer: Dialer,
}

/// A container at one moment.
#[derive(Debug, Clone)]
pub(crate) struct ContainerView {
    pub(crate) id: String,
    pub(crate) sandbox_id: String,
    pub(crate) request: Arc<cri::CreateContainerRequest>,
    pub(crate) created_at: i64,
    pub(crate) state: ContainerState,
    pub(crate) image_id: String,
    pub(crate) image_ref: String,
    pub(crate) image: RunConfig,
    pub(crate) user: Option<(u32, u32, Vec<u32>)>,
    pub(crate) log_path: Option<std::path::PathBuf>,
    pub(crate) volumes: Vec<VolumeUse>,
    pub(crate) stop_signal: u32,
    pub(crate) updated: Option<Limits>,
    pub(crate) shown: Option<Limits>,
}

impl SandboxView {
    /// CRI's configuration; validated before the sandbox was made.
    pub(crate) fn config(&self) -> cri::PodSandboxConfig {
        self.request.config.clone().unwrap_or_default()
    }

    /// Whether clients see it: nobody has the id of one that starts.
    pub(crate) fn is_listed(&self) -> bool {
        !matches!(self.state, SandboxState::Starting { .. })
    }
}

impl ContainerView {
    /// CRI's configuration, with the limits that are asked for now.
    pub(crate) fn config(&self) -> cri::ContainerConfig {
        let mut config = self.request.config.clone().unwrap_or_default();
        if let Some(limits) = &self.updated {
            config.linux.get_or_insert_default().resources = Some(limits.to_cri());
        }
        config
    }

    /// The limits as the guest has them; of a container of an older daemon, those that were asked for.
    pub(crate) fn limits(&self) -> Option<cri::LinuxContainerResources> {
        match &self.shown {
            Some(shown) => Some(shown.to_cri()),
            None => self.config().linux.and_then(|linux| linux.resources),
        }
    }
}
