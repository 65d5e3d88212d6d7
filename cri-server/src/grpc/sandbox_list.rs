//! ListPodSandbox.

use std::sync::Arc;

use proto::cri::v1 as cri;

use super::convert;
use crate::sandbox::{Node, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::ListPodSandboxRequest,
) -> Result<cri::ListPodSandboxResponse, RequestError> {
    let filter = request.filter.unwrap_or_default();
    let views = node.sandboxes.views();
    let items = views
        .iter()
        .filter(|view| view.is_listed())
        .map(|view| convert::sandbox(view));
    Ok(cri::ListPodSandboxResponse {
        items: items
            .filter(|item| convert::sandbox_matches(&filter, item))
            .collect(),
    })
}
