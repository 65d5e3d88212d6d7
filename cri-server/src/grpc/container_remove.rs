//! RemoveContainer: idempotent; a running container is killed.

use std::sync::Arc;

use proto::cri::v1 as cri;

use super::convert::gone_is_done;
use crate::sandbox::{Node, Request, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::RemoveContainerRequest,
) -> Result<cri::RemoveContainerResponse, RequestError> {
    let removed = async {
        let (sandbox, container) = node.sandboxes.container(&request.container_id)?;
        let id = container.id.clone();
        sandbox.ask(|reply| Request::RemoveContainer(id, reply)).await
    };
    gone_is_done(removed.await)?;
    Ok(cri::RemoveContainerResponse {})
}
