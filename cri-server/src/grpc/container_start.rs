//! StartContainer.

use std::sync::Arc;

use proto::cri::v1 as cri;

use crate::sandbox::{Node, Request, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::StartContainerRequest,
) -> Result<cri::StartContainerResponse, RequestError> {
    let (sandbox, container) = node.sandboxes.container(&request.container_id)?;
    sandbox
        .ask(|reply| Request::StartContainer(container.id.clone(), reply))
        .await?;
    Ok(cri::StartContainerResponse {})
}
