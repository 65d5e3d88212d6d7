//! ContainerStatus.

use std::{collections::HashMap, sync::Arc};

use proto::cri::v1 as cri;
use serde_json::json;

use super::convert;
use crate::sandbox::{Node, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::ContainerStatusRequest,
) -> Result<cri::ContainerStatusResponse, RequestError> {
    let (_, container) = node.sandboxes.container(&request.container_id)?;
    let info = if request.verbose {
        let value = json!({
            "sandboxID": container.sandbox_id,
            "state": container.state,
            "stopSignal": container.stop_signal,
        });
        HashMap::from([("info".to_owned(), value.to_string())])
    } else {
        HashMap::new()
    };
    Ok(cri::ContainerStatusResponse {
        status: Some(convert::container_status(&container)),
        info,
    })
}
