//! StopContainer: the stop signal, the grace of the request, then SIGKILL. Idempotent.

use std::{sync::Arc, time::Duration};

use proto::cri::v1 as cri;

use super::convert::gone_is_done;
use crate::sandbox::{Node, Request, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::StopContainerRequest,
) -> Result<cri::StopContainerResponse, RequestError> {
    // A negative grace is none.
    let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or_default());
    let stopped = async {
        let (sandbox, container) = node.sandboxes.container(&request.container_id)?;
        let id = container.id.clone();
        sandbox
            .ask(|reply| Request::StopContainer(id, grace, reply))
            .await
    };
    gone_is_done(stopped.await)?;
    Ok(cri::StopContainerResponse {})
}
