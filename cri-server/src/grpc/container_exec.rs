//! Exec: an URL at which the client runs a command.

use std::sync::Arc;

use proto::cri::v1 as cri;

use crate::{
    container::exec,
    sandbox::{Node, RequestError},
    streaming::{Purpose, Wanted},
};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::ExecRequest,
) -> Result<cri::ExecResponse, RequestError> {
    let wanted = Wanted::try_from(&request)?;
    let (sandbox, container) = node.sandboxes.container(&request.container_id)?;
    // What can be refused now is refused with a code; the client hears later failures as text only.
    exec::prepare(&node, &sandbox, &container, request.cmd.clone())?;
    let url = node.streaming.url(Purpose::Exec {
        container_id: container.id.clone(),
        command: request.cmd,
        wanted,
    })?;
    Ok(cri::ExecResponse { url })
}
