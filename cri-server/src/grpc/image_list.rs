//! ListImages and StreamImages.

use std::sync::Arc;

use proto::cri::v1 as cri;

use super::{
    convert,
    pages::{Pages, pages},
};
use crate::sandbox::{Node, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::ListImagesRequest,
) -> Result<cri::ListImagesResponse, RequestError> {
    Ok(cri::ListImagesResponse {
        images: images(&node, request.filter),
    })
}

pub(super) async fn stream(
    node: Arc<Node>,
    request: cri::StreamImagesRequest,
) -> Result<Pages<cri::StreamImagesResponse>, RequestError> {
    let images = images(&node, request.filter);
    Ok(pages(images, |images| cri::StreamImagesResponse { images }))
}

fn images(node: &Node, filter: Option<cri::ImageFilter>) -> Vec<cri::Image> {
    let filter = filter.and_then(|filter| filter.image).unwrap_or_default().image;
    let filter = (!filter.is_empty()).then_some(filter.as_str());
    let images = node.images.list(filter);
    images.iter().map(|image| convert::image(image)).collect()
}
