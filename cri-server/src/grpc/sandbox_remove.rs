//! RemovePodSandbox: idempotent; containers go with it.

use std::sync::Arc;

use proto::cri::v1 as cri;

use super::convert::gone_is_done;
use crate::sandbox::{Node, Request, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::RemovePodSandboxRequest,
) -> Result<cri::RemovePodSandboxResponse, RequestError> {
    gone_is_done(
        async {
            node.sandboxes
                .sandbox(&request.pod_sandbox_id)?
                .ask(Request::Remove)
                .await
        }
        .await,
    )?;
    Ok(cri::RemovePodSandboxResponse {})
}
