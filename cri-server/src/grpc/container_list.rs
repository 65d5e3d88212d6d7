//! ListContainers.

use std::sync::Arc;

use proto::cri::v1 as cri;

use super::convert;
use crate::sandbox::{Node, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::ListContainersRequest,
) -> Result<cri::ListContainersResponse, RequestError> {
    let filter = request.filter.unwrap_or_default();
    let views = node.sandboxes.views();
    let items = views
        .iter()
        .flat_map(|view| &view.containers)
        .map(|container| convert::container(container));
    Ok(cri::ListContainersResponse {
        containers: items
            .filter(|item| convert::container_matches(&filter, item))
            .collect(),
    })
}
