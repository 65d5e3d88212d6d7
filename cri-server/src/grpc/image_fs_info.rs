//! ImageFsInfo: what images take; containers' writable layers are on the same file system.

use std::sync::Arc;

use proto::cri::v1 as cri;

use crate::sandbox::{Node, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    _: cri::ImageFsInfoRequest,
) -> Result<cri::ImageFsInfoResponse, RequestError> {
    let images = Arc::clone(&node.images);
    let operation = "measure the image store";
    let usage = tokio::task::spawn_blocking(move || images.usage())
        .await
        .map_err(RequestError::failed(operation))?
        .map_err(RequestError::failed(operation))?;
    let usage = cri::FilesystemUsage {
        timestamp: usage.timestamp,
        fs_id: Some(cri::FilesystemIdentifier {
            mountpoint: usage.mountpoint.display().to_string(),
        }),
        used_bytes: Some(cri::UInt64Value { value: usage.bytes }),
        inodes_used: Some(cri::UInt64Value { value: usage.inodes }),
    };
    Ok(cri::ImageFsInfoResponse {
        image_filesystems: vec![usage.clone()],
        container_filesystems: vec![usage],
    })
}
