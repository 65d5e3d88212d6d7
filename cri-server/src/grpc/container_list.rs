//! ListContainers and StreamContainers.

use std::sync::Arc;

use proto::cri::v1 as cri;

use super::{
    convert,
    pages::{Pages, pages},
};
use crate::sandbox::{Node, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::ListContainersRequest,
) -> Result<cri::ListContainersResponse, RequestError> {
    Ok(cri::ListContainersResponse {
        containers: containers(&node, &request.filter.unwrap_or_default()),
    })
}

pub(super) async fn stream(
    node: Arc<Node>,
    request: cri::StreamContainersRequest,
) -> Result<Pages<cri::StreamContainersResponse>, RequestError> {
    let containers = containers(&node, &request.filter.unwrap_or_default());
    Ok(pages(containers, |containers| cri::StreamContainersResponse {
        containers,
    }))
}

fn containers(node: &Node, filter: &cri::ContainerFilter) -> Vec<cri::Container> {
    let views = node.sandboxes.views();
    let items = views
        .iter()
        .flat_map(|view| &view.containers)
        .map(|container| convert::container(container));
    items
        .filter(|item| convert::container_matches(filter, item))
        .collect()
}
