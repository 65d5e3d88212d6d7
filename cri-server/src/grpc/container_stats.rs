//! ContainerStats.

use std::sync::Arc;

use proto::cri::v1 as cri;

use crate::{
    sandbox::{Node, RequestError},
    stats::{self, Figures},
};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::ContainerStatsRequest,
) -> Result<cri::ContainerStatsResponse, RequestError> {
    let (sandbox, container) = node.sandboxes.container(&request.container_id)?;
    let measured = stats::measure(&node, sandbox.view(), Some(&container.id)).await?;
    let scratch = node.config.scratch().display().to_string();
    let figures = Figures {
        measured: &measured,
        samples: &node.samples,
        scratch: &scratch,
    };
    let stats = stats::container_stats(&figures, &container);
    let stats = stats.ok_or_else(|| RequestError::NotFound {
        kind: "container",
        id: container.id.clone(),
    })?;
    Ok(cri::ContainerStatsResponse { stats: Some(stats) })
}
