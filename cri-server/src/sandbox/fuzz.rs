//! A sandbox's configuration and its limits as any client may send them.

use proto::cri::v1 as cri;

use super::{
    plan,
    resize::pod_limits,
    room::{self, Demand, Room, Size},
};
use crate::{
    config::{CgroupDriver, Config},
    container::limits::Limits,
};

const MOST: Size = Size {
    memory_mib: 1024,
    vcpus: 2,
};
const ID: &str = "0123456789abcdef0123456789abcdef";

/// What is accepted keeps to what the Machine and the host rely on.
///
/// # Panics
/// When it does not.
pub(crate) fn judge(request: &cri::RunPodSandboxRequest) {
    let mut config = Config::default();
    for (driver, on_host) in [(CgroupDriver::Cgroupfs, false), (CgroupDriver::Systemd, true)] {
        config.cgroup_driver = driver;
        config.host_pods.enabled = on_host;
        config.host_pods.privileged = on_host;
        let Ok(plan) = plan::plan(ID, request, &config) else {
            continue;
        };
        let machine = &config.machine;
        assert!(
            (1..=machine.vcpus_max).contains(&plan.vcpus),
            "{} vCPUs",
            plan.vcpus
        );
        assert!(plan.memory_mib >= machine.memory_min_mib);
        assert!(plan.hostname.len() <= plan::MAX_HOSTNAME, "{:?}", plan.hostname);
        if let Some(cgroup) = &plan.cgroup {
            let directory = cgroup.cgroup.directory();
            let inside = directory
                .strip_prefix(&cgroup.root)
                .expect("below the cgroup root");
            assert!(!inside.iter().any(|part| part == ".."), "{}", directory.display());
        }
    }
}

/// UpdatePodSandboxResources and UpdateContainerResources, up to what the host and the guest are told.
pub(crate) fn resize(
    resources: Option<&cri::LinuxContainerResources>,
    overhead: Option<&cri::LinuxContainerResources>,
) {
    let change = resources.map(Limits::from).unwrap_or_default();
    let wanted = overhead.map(Limits::from).unwrap_or_default().changed(&change);
    drop(Room::of_container(&wanted, &change).fits(MOST));
    let size = Demand::of([wanted]).size(64, MOST);
    assert_eq!(size.max(MOST), MOST);
    let (Ok(resources), Ok(overhead)) = (
        pod_limits("resources", resources),
        pod_limits("overhead", overhead),
    ) else {
        return;
    };
    drop(Room::of_pod(&resources, &overhead).fits(MOST));
    let host = room::host_limits(&resources, &overhead, 1 << 20);
    assert!(
        host.cpu_weight
            .is_none_or(|weight| (1..=10_000).contains(&weight))
    );
    assert!(host.memory_max_bytes.is_none_or(|bytes| bytes >= 1 << 20));
}
