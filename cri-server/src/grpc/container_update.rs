//! UpdateContainerResources: what is named changes, the rest stays.

use std::sync::Arc;

use proto::cri::v1 as cri;

use crate::sandbox::{Node, Request, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::UpdateContainerResourcesRequest,
) -> Result<cri::UpdateContainerResourcesResponse, RequestError> {
    if request.windows.is_some() {
        return Err(RequestError::unsupported("windows", "Windows containers"));
    }
    let (sandbox, container) = node.sandboxes.container(&request.container_id)?;
    let id = container.id.clone();
    let change = Box::new(request.linux.unwrap_or_default());
    sandbox
        .ask(|reply| Request::UpdateContainer(id, change, reply))
        .await?;
    Ok(cri::UpdateContainerResourcesResponse {})
}
