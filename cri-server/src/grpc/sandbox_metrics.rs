//! ListPodSandboxMetrics and StreamPodSandboxMetrics.

use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use proto::cri::v1 as cri;

use super::pages::Pages;
use crate::{
    sandbox::{Node, RequestError},
    stats::{self, Measured, metrics},
};

pub(super) async fn handle(
    node: Arc<Node>,
    _: cri::ListPodSandboxMetricsRequest,
) -> Result<cri::ListPodSandboxMetricsResponse, RequestError> {
    Ok(cri::ListPodSandboxMetricsResponse {
        pod_metrics: measured(node).collect().await,
    })
}

/// A message per guest, as they answer.
pub(super) async fn stream(
    node: Arc<Node>,
    _: cri::StreamPodSandboxMetricsRequest,
) -> Result<Pages<cri::StreamPodSandboxMetricsResponse>, RequestError> {
    Ok(Box::pin(measured(node).map(|metrics| {
        Ok(cri::StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics: vec![metrics],
        })
    })))
}

fn measured(node: Arc<Node>) -> impl Stream<Item = cri::PodSandboxMetrics> + Send {
    let views = node.sandboxes.views();
    let guests = stats::gather(node, views, true);
    guests.map(|measured: Measured| metrics::sandbox_metrics(&measured))
}
