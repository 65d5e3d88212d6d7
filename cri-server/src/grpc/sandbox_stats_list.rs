//! ListPodSandboxStats and StreamPodSandboxStats.

use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use proto::cri::v1 as cri;

use super::{convert, pages::Pages};
use crate::{
    sandbox::{Node, RequestError},
    stats::{self, Figures, Measured},
};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::ListPodSandboxStatsRequest,
) -> Result<cri::ListPodSandboxStatsResponse, RequestError> {
    let stats = measured(node, &request.filter.unwrap_or_default());
    Ok(cri::ListPodSandboxStatsResponse {
        stats: stats.collect().await,
    })
}

/// A message per guest, as they answer.
pub(super) async fn stream(
    node: Arc<Node>,
    request: cri::StreamPodSandboxStatsRequest,
) -> Result<Pages<cri::StreamPodSandboxStatsResponse>, RequestError> {
    let stats = measured(node, &request.filter.unwrap_or_default());
    Ok(Box::pin(stats.map(|stats| {
        Ok(cri::StreamPodSandboxStatsResponse {
            pod_sandbox_stats: vec![stats],
        })
    })))
}

fn measured(
    node: Arc<Node>,
    filter: &cri::PodSandboxStatsFilter,
) -> impl Stream<Item = cri::PodSandboxStats> + Send + use<> {
    let mut views = node.sandboxes.views();
    views.retain(|view| convert::sandbox_stats_match(filter, view));
    let scratch = node.config.scratch().display().to_string();
    let guests = stats::gather(Arc::clone(&node), views, false);
    guests.map(move |measured: Measured| {
        stats::sandbox_stats(&Figures {
            measured: &measured,
            samples: &node.samples,
            scratch: &scratch,
        })
    })
}
