//! `container_*` metrics of CRI: kubelet puts them where cAdvisor's were, which sees nothing of a Machine. `table` is how a
//! series is written down, `series` which there are.

mod series;
mod table;

use proto::{agent::v1, cri::v1 as cri};

use self::{
    series::{COMMON, CONTAINED, Common, Contained, NETWORK},
    table::{LABELS, Series},
};
use super::gather::Measured;
use crate::{
    container::{limits::Limits, state::ContainerState},
    sandbox::ContainerView,
};

const SECOND: i64 = 1_000_000_000;

/// Every series that there can be: always the same list.
pub(crate) fn descriptors() -> Vec<cri::MetricDescriptor> {
    let common = COMMON.iter().map(Series::descriptor);
    let contained = CONTAINED.iter().map(Series::descriptor);
    let network = NETWORK.iter().map(Series::descriptor);
    common.chain(contained).chain(network).collect()
}

/// Those of a sandbox and its containers that have not ended.
pub(crate) fn sandbox_metrics(measured: &Measured) -> cri::PodSandboxMetrics {
    let view = &measured.view;
    let labels = labels(measured, None);
    let guest = Common {
        cgroup: measured.stats.sandbox.unwrap_or_default(),
        at_s: seconds(measured.at_ns),
        started_s: seconds(view.created_at),
    };
    let mut metrics = read(COMMON, &guest, &labels, measured.at_ns);
    metrics.extend(read(NETWORK, &measured.stats.interfaces, &labels, measured.at_ns));
    let alive = view
        .containers
        .iter()
        .filter(|container| !matches!(container.state, ContainerState::Exited(_)));
    cri::PodSandboxMetrics {
        pod_sandbox_id: view.id.clone(),
        metrics,
        container_metrics: alive
            .filter_map(|container| {
                let known = measured.stats.containers.iter();
                let stats = known.clone().find(|stats| stats.container_id == container.id)?;
                Some(container_metrics(measured, container, stats))
            })
            .collect(),
    }
}

fn container_metrics(
    measured: &Measured,
    view: &ContainerView,
    stats: &v1::ContainerStats,
) -> cri::ContainerMetrics {
    let labels = labels(measured, Some(view));
    let started = match view.state.started_at() {
        0 => view.created_at,
        started => started,
    };
    let common = Common {
        cgroup: stats.cgroup.unwrap_or_default(),
        at_s: seconds(measured.at_ns),
        started_s: seconds(started),
    };
    let contained = Contained {
        stats: stats.clone(),
        scratch: measured.stats.scratch,
        limits: view.limits().as_ref().map(Limits::from).unwrap_or_default(),
    };
    let mut metrics = read(COMMON, &common, &labels, measured.at_ns);
    metrics.extend(read(CONTAINED, &contained, &labels, measured.at_ns));
    cri::ContainerMetrics {
        container_id: view.id.clone(),
        metrics,
    }
}

fn read<S>(
    table: &[Series<S>],
    subject: &S,
    labels: &[String; LABELS.len()],
    at_ns: i64,
) -> Vec<cri::Metric> {
    let metrics = table
        .iter()
        .flat_map(|series| series.metrics(subject, labels, at_ns));
    metrics.collect()
}

fn labels(measured: &Measured, container: Option<&ContainerView>) -> [String; LABELS.len()] {
    let pod = measured.view.config().metadata.unwrap_or_default();
    let (id, name, image, label) = match container {
        None => (
            measured.view.id.clone(),
            String::new(),
            String::new(),
            String::new(),
        ),
        Some(container) => {
            let config = container.config();
            let image = config.image.unwrap_or_default();
            let label = config.metadata.unwrap_or_default().name;
            let shown = if image.user_specified_image.is_empty() {
                image.image
            } else {
                image.user_specified_image
            };
            (container.id.clone(), container.id.clone(), shown, label)
        }
    };
    [id, name, image, label, pod.name, pod.namespace]
}

fn seconds(ns: i64) -> u64 {
    u64::try_from(ns / SECOND).unwrap_or(0)
}

#[cfg(test)]
mod tests;
