//! ExecSync.

use std::{sync::Arc, time::Duration};

use proto::cri::v1 as cri;

use crate::{
    container::exec,
    sandbox::{Node, RequestError},
};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::ExecSyncRequest,
) -> Result<cri::ExecSyncResponse, RequestError> {
    let (sandbox, container) = node.sandboxes.container(&request.container_id)?;
    let limit = u64::try_from(request.timeout)
        .map_err(|_| RequestError::invalid("timeout", format!("{} is negative", request.timeout)))?;
    let limit = Duration::from_secs(limit);
    let executed = exec::exec_sync(&node, &sandbox, &container, request.cmd, limit).await?;
    Ok(cri::ExecSyncResponse {
        stdout: executed.stdout,
        stderr: executed.stderr,
        exit_code: executed.exit_code,
    })
}
