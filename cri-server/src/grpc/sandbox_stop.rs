//! StopPodSandbox: idempotent; a sandbox that nobody knows is as stopped as can be.

use std::sync::Arc;

use proto::cri::v1 as cri;

use super::convert::gone_is_done;
use crate::sandbox::{Node, Request, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::StopPodSandboxRequest,
) -> Result<cri::StopPodSandboxResponse, RequestError> {
    gone_is_done(
        async {
            node.sandboxes
                .sandbox(&request.pod_sandbox_id)?
                .ask(Request::Stop)
                .await
        }
        .await,
    )?;
    Ok(cri::StopPodSandboxResponse {})
}
