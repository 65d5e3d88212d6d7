//! PodSandboxStats.

use std::sync::Arc;

use proto::cri::v1 as cri;

use crate::{
    sandbox::{Node, RequestError},
    stats::{self, Figures},
};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::PodSandboxStatsRequest,
) -> Result<cri::PodSandboxStatsResponse, RequestError> {
    let view = node.sandboxes.sandbox(&request.pod_sandbox_id)?.view();
    let measured = stats::measure(&node, view, None).await?;
    let scratch = node.config.scratch().display().to_string();
    let figures = Figures {
        measured: &measured,
        samples: &node.samples,
        scratch: &scratch,
    };
    Ok(cri::PodSandboxStatsResponse {
        stats: Some(stats::sandbox_stats(&figures)),
    })
}
