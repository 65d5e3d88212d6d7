//! UpdatePodSandboxResources.

use std::sync::Arc;

use proto::cri::v1 as cri;

use crate::sandbox::{Node, Request, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::UpdatePodSandboxResourcesRequest,
) -> Result<cri::UpdatePodSandboxResourcesResponse, RequestError> {
    let sandbox = node.sandboxes.sandbox(&request.pod_sandbox_id)?;
    sandbox
        .ask(|reply| Request::UpdateSandbox(Box::new(request), reply))
        .await?;
    Ok(cri::UpdatePodSandboxResourcesResponse {})
}
