//! Other limits for a container or a pod that runs: what is asked is checked against the Machine, made room for (`grow`), told to the guest or
//! set on the host's cgroup of the VMM, recorded as the guest has it then. A pod on the host has no size of its own: there the kernel
//! alone decides, and the cgroup on the host is the one that the containers are in.

use proto::cri::v1 as cri;

use super::{
    driver::Driver,
    error::RequestError,
    plan::{CgroupPlan, machine_bytes},
    room::{self, Room},
    state::Input,
};
use crate::{
    container::{limits::Limits, spec, state::Ask},
    host::Kind,
    machine::CgroupError,
};

impl Driver {
    /// UpdateContainerResources.
    pub(super) async fn update_container(
        &mut self,
        id: &str,
        change: &cri::LinuxContainerResources,
    ) -> Result<(), RequestError> {
        self.check(id, Ask::Update, "update")?;
        self.transition(Input::Use).await?;
        let before = self.container(id)?.wanted();
        let change = Limits::from(change);
        let wanted = before.changed(&change);
        let asked = Room::of_container(&wanted, &change);
        self.make_room(id, &wanted, &asked).await?;
        let updated = self.limit_in_guest(id, wanted, &before).await;
        // After a refusal as well: what the container still has counts then.
        self.give_room_back().await;
        updated
    }

    async fn limit_in_guest(
        &mut self,
        id: &str,
        wanted: Limits,
        before: &Limits,
    ) -> Result<(), RequestError> {
        let resources = match self.plan.kind {
            Kind::Machine => spec::resources(Some(&wanted.to_cri()), self.live()?.size.vcpus)?,
            Kind::Host(_) => spec::resources_on_host(Some(&wanted.to_cri()))?,
        };
        self.raise_host_quota(id, &wanted).await?;
        let score = spec::oom_score_adj(wanted.oom_score_adj)?;
        let changed_score = (wanted.oom_score_adj != before.oom_score_adj).then_some(score);
        let actual = self
            .live()?
            .guest
            .update_container(id, resources, changed_score)
            .await
            .map_err(RequestError::guest(format!("update container {id}")))?;
        let container = self.container_mut(id)?;
        container.record.shown = Some(wanted.shown(&actual));
        container.record.updated = Some(wanted);
        self.weigh_for_oom_killer();
        self.put_container(id).await
    }

    /// UpdatePodSandboxResources: the pod's limits, on the VMM's own cgroup. kubelet has changed the pod's cgroup before.
    pub(super) async fn update_sandbox(
        &mut self,
        request: &cri::UpdatePodSandboxResourcesRequest,
    ) -> Result<(), RequestError> {
        self.transition(Input::Use).await?;
        let resources = pod_limits("resources", request.resources.as_ref())?;
        let overhead = pod_limits("overhead", request.overhead.as_ref())?;
        let asked = Room::of_pod(&resources, &overhead);
        self.make_room_for_pod(&resources, &overhead, &asked).await?;
        self.give_room_back().await;
        let Some(cgroup) = self.plan.cgroup.clone() else {
            return Ok(());
        };
        let least = match self.plan.kind {
            Kind::Machine => machine_bytes(self.live()?.size.memory_mib, &self.node.config),
            Kind::Host(_) => 0,
        };
        let limits = room::host_limits(&resources, &overhead, least);
        on_cgroup(cgroup, move |cgroup| cgroup.cgroup.limit(&limits)).await
    }

    /// The VMM may use as much of the host's processors as its containers together may of the guest's; a pod on the host as its
    /// containers together may.
    async fn raise_host_quota(&self, id: &str, wanted: &Limits) -> Result<(), RequestError> {
        let Some(cgroup) = self.plan.cgroup.clone() else {
            return Ok(());
        };
        let others = self
            .containers
            .values()
            .filter(|container| container.is_unfinished() && container.record.id != id)
            .filter_map(|container| container.wanted().cpu_millionths());
        let together = others
            .chain(wanted.cpu_millionths())
            .fold(0_u64, u64::saturating_add);
        on_cgroup(cgroup, move |cgroup| {
            match room::raised_quota(cgroup.cgroup.cpu_max()?, together) {
                Some(limits) => cgroup.cgroup.limit(&limits),
                None => Ok(()),
            }
        })
        .await
    }
}

pub(super) async fn on_cgroup(
    cgroup: CgroupPlan,
    change: impl FnOnce(&CgroupPlan) -> Result<(), CgroupError> + Send + 'static,
) -> Result<(), RequestError> {
    let operation = "limit the machine's cgroup";
    tokio::task::spawn_blocking(move || change(&cgroup))
        .await
        .map_err(RequestError::failed(operation))?
        .map_err(RequestError::failed(operation))
}

/// Processors' time and memory, which a Machine has; nothing else of a pod can be limited from outside.
pub(super) fn pod_limits(
    field: &str,
    wish: Option<&cri::LinuxContainerResources>,
) -> Result<Limits, RequestError> {
    let limits = wish.map(Limits::from).unwrap_or_default();
    // kubelet asks for it beside each memory limit. A Machine is one process: it always ends as a whole.
    let other_files = limits.unified.keys().any(|file| file != "memory.oom.group");
    for (name, is_there) in [
        ("cpuset_cpus", !limits.cpuset_cpus.is_empty()),
        ("cpuset_mems", !limits.cpuset_mems.is_empty()),
        ("unified", other_files),
        (
            "hugepage_limits",
            limits.hugepages.iter().any(|(_, limit)| *limit > 0),
        ),
    ] {
        if is_there {
            let reason = "only processor time and memory of a pod can be limited";
            return Err(RequestError::unsupported(format!("{field}.{name}"), reason));
        }
    }
    for (name, value) in [
        ("cpu_period", limits.cpu_period),
        ("cpu_shares", limits.cpu_shares),
        ("memory_limit_in_bytes", limits.memory),
    ] {
        if value < 0 {
            return Err(RequestError::invalid(
                format!("{field}.{name}"),
                format!("{value} is negative"),
            ));
        }
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pod_cannot_be_limited_in_is_refused_by_field() {
        let refused = |change: fn(&mut cri::LinuxContainerResources)| {
            let mut wish = cri::LinuxContainerResources::default();
            change(&mut wish);
            pod_limits("resources", Some(&wish)).unwrap_err().to_string()
        };
        assert!(refused(|wish| wish.cpuset_cpus = "0".to_owned()).starts_with("resources.cpuset_cpus"));
        assert!(
            refused(|wish| {
                wish.unified.insert("memory.high".to_owned(), "1".to_owned());
            })
            .starts_with("resources.unified")
        );
        assert!(refused(|wish| wish.memory_limit_in_bytes = -1).contains("-1 is negative"));
        let mut fine = cri::LinuxContainerResources::default();
        fine.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
        pod_limits("resources", Some(&fine)).unwrap();
        assert_eq!(pod_limits("overhead", None).unwrap(), Limits::default());
    }
}
