//! ListMetricDescriptors: always the same list.

use std::sync::Arc;

use proto::cri::v1 as cri;

use crate::{
    sandbox::{Node, RequestError},
    stats::metrics,
};

pub(super) async fn handle(
    _: Arc<Node>,
    _: cri::ListMetricDescriptorsRequest,
) -> Result<cri::ListMetricDescriptorsResponse, RequestError> {
    Ok(cri::ListMetricDescriptorsResponse {
        descriptors: metrics::descriptors(),
    })
}
