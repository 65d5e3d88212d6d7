//! PullImage: the answer is the image's id, as ContainerStatus and ImageStatus have it.

use std::sync::Arc;

use proto::cri::v1 as cri;

use crate::{
    image::RegistryAuth,
    sandbox::{Node, RequestError},
};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::PullImageRequest,
) -> Result<cri::PullImageResponse, RequestError> {
    let reference = request.image.unwrap_or_default().image;
    if reference.is_empty() {
        return Err(RequestError::invalid("image.image", "missing"));
    }
    let auth = request.auth.map(|auth| RegistryAuth {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    });
    let image_ref = node
        .images
        .pull(&reference, auth.as_ref())
        .await
        .map_err(RequestError::Pull)?;
    Ok(cri::PullImageResponse { image_ref })
}
