//! ListImages.

use std::sync::Arc;

use proto::cri::v1 as cri;

use super::convert;
use crate::sandbox::{Node, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::ListImagesRequest,
) -> Result<cri::ListImagesResponse, RequestError> {
    let filter = request
        .filter
        .and_then(|filter| filter.image)
        .unwrap_or_default()
        .image;
    let filter = (!filter.is_empty()).then_some(filter.as_str());
    let images = node.images.list(filter);
    Ok(cri::ListImagesResponse {
        images: images.iter().map(|image| convert::image(image)).collect(),
    })
}
