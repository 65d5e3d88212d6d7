//! ListContainerStats and StreamContainerStats.

use std::sync::Arc;

use futures_util::StreamExt as _;
use proto::cri::v1 as cri;

use super::{convert, pages::Pages};
use crate::{
    sandbox::{ContainerView, Node, RequestError, SandboxView},
    stats::{self, Figures, Measured},
};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::ListContainerStatsRequest,
) -> Result<cri::ListContainerStatsResponse, RequestError> {
    let stats = measured(node, request.filter.unwrap_or_default());
    Ok(cri::ListContainerStatsResponse {
        stats: stats.concat().await,
    })
}

/// A message per guest, as they answer.
pub(super) async fn stream(
    node: Arc<Node>,
    request: cri::StreamContainerStatsRequest,
) -> Result<Pages<cri::StreamContainerStatsResponse>, RequestError> {
    let stats = measured(node, request.filter.unwrap_or_default());
    let messages = stats.filter(|stats| std::future::ready(!stats.is_empty()));
    Ok(Box::pin(messages.map(|container_stats| {
        Ok(cri::StreamContainerStatsResponse { container_stats })
    })))
}

/// Only guests are asked that have a container which is wanted.
fn measured(
    node: Arc<Node>,
    filter: cri::ContainerStatsFilter,
) -> impl futures_util::Stream<Item = Vec<cri::ContainerStats>> + Send {
    let mut views = node.sandboxes.views();
    views.retain(|view| wanted(view, &filter).next().is_some());
    let scratch = node.config.scratch().display().to_string();
    let guests = stats::gather(Arc::clone(&node), views, false);
    guests.map(move |measured: Measured| {
        let figures = Figures {
            measured: &measured,
            samples: &node.samples,
            scratch: &scratch,
        };
        wanted(&measured.view, &filter)
            .filter_map(|container| stats::container_stats(&figures, container))
            .collect()
    })
}

fn wanted<'a>(
    view: &'a SandboxView,
    filter: &'a cri::ContainerStatsFilter,
) -> impl Iterator<Item = &'a ContainerView> {
    let all = view.containers.iter().map(AsRef::as_ref);
    all.filter(|container| convert::container_stats_match(filter, container))
}
