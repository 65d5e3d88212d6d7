//! What a host pod uses: cgroup numbers, what containers wrote, network counters.

use proto::agent::v1::StatsResponse;

use crate::cgroup::{self, Cgroup};
use crate::clock;
use crate::container::registry::Member as _;
use crate::error::Failure;
use crate::host::pod::HostPod;
use crate::stats::{interfaces, measure};

/// Numbers of one container, or of the sandbox and all containers. A node without cgroups has none but of files and interfaces.
///
/// # Errors
/// `NotFound`.
pub(super) async fn stats(pod: &HostPod, container_id: &str) -> Result<StatsResponse, Failure> {
    let everything = container_id.is_empty();
    let containers = if everything {
        pod.containers.all()
    } else {
        vec![pod.containers.get(container_id)?]
    };
    let mut response = StatsResponse {
        timestamp_ns: clock::realtime_ns(),
        ..StatsResponse::default()
    };
    if everything {
        response.sandbox = pod
            .cgroup
            .as_ref()
            .map(|cgroup| cgroup::stats::read(cgroup.path()));
        // The node's interfaces are not the pod's.
        if pod.config.network.is_some() {
            response.interfaces = interfaces("/proc".as_ref());
        }
    }
    for container in containers {
        let upper = container.places.upper();
        let cgroup = container.cgroup.as_ref().map(Cgroup::path);
        response
            .containers
            .push(measure(container.id(), upper, cgroup).await?);
    }
    Ok(response)
}
