//! ReopenContainerLog: kubelet has renamed the log and wants a new one.

use std::sync::Arc;

use proto::cri::v1 as cri;

use crate::sandbox::{Node, Request, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::ReopenContainerLogRequest,
) -> Result<cri::ReopenContainerLogResponse, RequestError> {
    let (sandbox, container) = node.sandboxes.container(&request.container_id)?;
    sandbox
        .ask(|reply| Request::ReopenLog(container.id.clone(), reply))
        .await?;
    Ok(cri::ReopenContainerLogResponse {})
}
