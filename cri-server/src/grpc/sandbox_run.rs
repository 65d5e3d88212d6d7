//! RunPodSandbox.

use std::sync::Arc;

use proto::cri::v1 as cri;

use crate::sandbox::{Node, RequestError, run};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::RunPodSandboxRequest,
) -> Result<cri::RunPodSandboxResponse, RequestError> {
    let pod_sandbox_id = run(&node, request).await?;
    Ok(cri::RunPodSandboxResponse { pod_sandbox_id })
}
