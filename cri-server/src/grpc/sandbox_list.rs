//! ListPodSandbox and StreamPodSandboxes.

use std::sync::Arc;

use proto::cri::v1 as cri;

use super::{
    convert,
    pages::{Pages, pages},
};
use crate::sandbox::{Node, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::ListPodSandboxRequest,
) -> Result<cri::ListPodSandboxResponse, RequestError> {
    Ok(cri::ListPodSandboxResponse {
        items: sandboxes(&node, &request.filter.unwrap_or_default()),
    })
}

pub(super) async fn stream(
    node: Arc<Node>,
    request: cri::StreamPodSandboxesRequest,
) -> Result<Pages<cri::StreamPodSandboxesResponse>, RequestError> {
    let pod_sandboxes = sandboxes(&node, &request.filter.unwrap_or_default());
    Ok(pages(pod_sandboxes, |pod_sandboxes| {
        cri::StreamPodSandboxesResponse { pod_sandboxes }
    }))
}

fn sandboxes(node: &Node, filter: &cri::PodSandboxFilter) -> Vec<cri::PodSandbox> {
    let views = node.sandboxes.views();
    let items = views
        .iter()
        .filter(|view| view.is_listed())
        .map(|view| convert::sandbox(view));
    items
        .filter(|item| convert::sandbox_matches(filter, item))
        .collect()
}
