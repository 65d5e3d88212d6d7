//! Version: also how clients find out that CRI v1 is spoken.

use std::sync::Arc;

use proto::cri::v1 as cri;

use crate::sandbox::{Node, RequestError};

/// Version of the kubelet-runtime handshake itself, which never changed.
const KUBELET_API: &str = "0.1.0";

pub(super) async fn handle(
    _: Arc<Node>,
    _: cri::VersionRequest,
) -> Result<cri::VersionResponse, RequestError> {
    Ok(cri::VersionResponse {
        version: KUBELET_API.to_owned(),
        runtime_name: "clearpod".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    })
}
