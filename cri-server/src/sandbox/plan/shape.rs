//! The sizes of Machines by which templates fit pods, and plans of Machines that are no pod's.

use proto::cri::v1 as cri;

use super::{RequestError, SandboxPlan, bound, hotplug, plan, possible};
use crate::{config::Config, template::Shape};

/// The Machine that a template is made in: of that shape, with nothing of a pod.
pub(in crate::sandbox) fn of_template(
    id: &str,
    shape: Shape,
    config: &Config,
) -> Result<SandboxPlan, RequestError> {
    let Shape {
        memory_mib,
        memory_hotplug_mib,
        vcpus,
        vcpus_possible,
    } = shape;
    let mut plan = plan(id, &nameless(id), config)?;
    if let Some(cgroup) = &mut plan.cgroup {
        cgroup.limits.memory_max_bytes = bound(memory_mib, memory_hotplug_mib, config);
    }
    Ok(SandboxPlan {
        memory_mib,
        memory_hotplug_mib,
        vcpus,
        vcpus_possible,
        ..plan
    })
}

/// The smallest request that has a plan: what a sandbox holds has names that derive from its id.
pub(in crate::sandbox) fn nameless(id: &str) -> cri::RunPodSandboxRequest {
    cri::RunPodSandboxRequest {
        config: Some(cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: id.to_owned(),
                ..cri::PodSandboxMetadata::default()
            }),
            ..cri::PodSandboxConfig::default()
        }),
        runtime_handler: String::new(),
    }
}

/// Of the Machines of pods without limits.
pub(crate) fn default_shape(config: &Config) -> Shape {
    let machine = &config.machine;
    Shape {
        memory_mib: machine.memory_mib,
        memory_hotplug_mib: hotplug(machine.memory_mib, config),
        vcpus: machine.vcpus,
        vcpus_possible: possible(machine.vcpus, config),
    }
}

impl SandboxPlan {
    pub(in crate::sandbox) fn shape(&self) -> Shape {
        Shape {
            memory_mib: self.memory_mib,
            memory_hotplug_mib: self.memory_hotplug_mib,
            vcpus: self.vcpus,
            vcpus_possible: self.vcpus_possible,
        }
    }
}
