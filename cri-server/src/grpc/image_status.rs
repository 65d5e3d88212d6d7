//! ImageStatus: an image that is not there is an answer without image, no error.

use std::{collections::HashMap, sync::Arc};

use proto::cri::v1 as cri;
use serde_json::json;

use super::convert;
use crate::sandbox::{Node, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::ImageStatusRequest,
) -> Result<cri::ImageStatusResponse, RequestError> {
    let reference = request.image.unwrap_or_default().image;
    if reference.is_empty() {
        return Err(RequestError::invalid("image.image", "missing"));
    }
    let image = node.images.resolve(&reference);
    let info = match &image {
        Some(image) if request.verbose => {
            let layers: Vec<_> = image
                .layers
                .iter()
                .map(|layer| json!({"diffID": layer.diff_id, "bytes": layer.size}))
                .collect();
            let value = json!({"config": image.config, "layers": layers});
            HashMap::from([("info".to_owned(), value.to_string())])
        }
        _ => HashMap::new(),
    };
    Ok(cri::ImageStatusResponse {
        image: image.map(|image| convert::image(&image)),
        info,
    })
}
