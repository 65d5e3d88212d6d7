//! Attach: an URL at which the client finds the container's own streams.

use std::sync::Arc;

use proto::cri::v1 as cri;

use crate::{
    sandbox::{Node, RequestError},
    streaming::{Purpose, Wanted, check_attach},
};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::AttachRequest,
) -> Result<cri::AttachResponse, RequestError> {
    let wanted = Wanted::try_from(&request)?;
    let (_, container) = node.sandboxes.container(&request.container_id)?;
    check_attach(&container, wanted)?;
    let url = node.streaming.url(Purpose::Attach {
        container_id: container.id.clone(),
        wanted,
    })?;
    Ok(cri::AttachResponse { url })
}
