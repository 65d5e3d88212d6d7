//! RemoveImage: every name of the image; idempotent.

use std::sync::Arc;

use proto::cri::v1 as cri;

use crate::sandbox::{Node, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::RemoveImageRequest,
) -> Result<cri::RemoveImageResponse, RequestError> {
    let reference = request.image.unwrap_or_default().image;
    if reference.is_empty() {
        return Err(RequestError::invalid("image.image", "missing"));
    }
    let images = Arc::clone(&node.images);
    let operation = format!("remove image {reference}");
    tokio::task::spawn_blocking(move || images.remove(&reference))
        .await
        .map_err(RequestError::failed(operation.clone()))?
        .map_err(RequestError::failed(operation))?;
    Ok(cri::RemoveImageResponse {})
}
