//! What a host pod uses: cgroup numbers, what containers wrote, network counters.

use std::path::Path;

use proto::agent::v1::{StatsRequest, StatsResponse};
use tokio::time::Instant;

use crate::cgroup::{self, Cgroup};
use crate::clock;
use crate::container::registry::Member as _;
use crate::error::Failure;
use crate::host::pod::HostPod;
use crate::stats::{PATIENCE, Subject, filesystem, network};

/// Numbers of one container, or of the sandbox and all containers. A node without cgroups has none but of files and interfaces.
///
/// # Errors
/// `NotFound`.
pub(super) async fn stats(pod: &HostPod, request: &StatsRequest) -> Result<StatsResponse, Failure> {
    let everything = request.container_id.is_empty();
    let containers = if everything {
        pod.containers.all()
    } else {
        vec![pod.containers.get(&request.container_id)?]
    };
    for container in &containers {
        container.writable.refresh(&pod.tasks);
    }
    let (proc, sysfs) = (Path::new("/proc"), Path::new("/sys"));
    let mut response = StatsResponse {
        timestamp_ns: clock::realtime_ns(),
        scratch: filesystem(&pod.config.scratch),
        ..StatsResponse::default()
    };
    if everything {
        response.sandbox = pod
            .cgroup
            .as_ref()
            .map(|cgroup| cgroup::stats::read(cgroup.path()));
        // The node's interfaces are not the pod's.
        if pod.config.network.is_some() {
            response.interfaces = network::interfaces(proc);
        }
    }
    let until = Instant::now() + PATIENCE;
    for container in containers {
        let subject = Subject {
            id: container.id(),
            init: container.init.pid(),
            cgroup: container.cgroup.as_ref().map(Cgroup::path),
            writable: &container.writable,
            // The file system is the host's, and others write to it, too.
            scratch: None,
        };
        let stats = subject.measure(proc, sysfs, request.with_files, until).await;
        response.containers.push(stats);
    }
    Ok(response)
}
