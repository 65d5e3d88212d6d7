//! CreateContainer.

use std::sync::Arc;

use proto::cri::v1 as cri;

use crate::sandbox::{Node, Request, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::CreateContainerRequest,
) -> Result<cri::CreateContainerResponse, RequestError> {
    let sandbox = node.sandboxes.sandbox(&request.pod_sandbox_id)?;
    let container_id = sandbox
        .ask(|reply| Request::CreateContainer(Box::new(request), reply))
        .await?;
    Ok(cri::CreateContainerResponse { container_id })
}
