//! PortForward: an URL at which the client reaches TCP ports inside the pod.

use std::sync::Arc;

use proto::cri::v1 as cri;

use crate::{
    sandbox::{Node, RequestError},
    streaming::Purpose,
};

/// Two channels each, whose numbers are a byte.
const MAX_PORTS: usize = 100;

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::PortForwardRequest,
) -> Result<cri::PortForwardResponse, RequestError> {
    let ports = ports(&request.port)?;
    let sandbox = node.sandboxes.sandbox(&request.pod_sandbox_id)?;
    if sandbox.view().machine.is_none() {
        return Err(RequestError::WrongState {
            operation: format!("forward ports of sandbox {}", sandbox.id),
            reason: "its machine does not run".to_owned(),
        });
    }
    let url = node.streaming.url(Purpose::PortForward {
        sandbox_id: sandbox.id.clone(),
        ports,
    })?;
    Ok(cri::PortForwardResponse { url })
}

pub(super) fn ports(wanted: &[i32]) -> Result<Vec<u16>, RequestError> {
    if wanted.len() > MAX_PORTS {
        return Err(RequestError::invalid("port", format!("more than {MAX_PORTS}")));
    }
    let port = |port: &i32| {
        let port = u16::try_from(*port).ok().filter(|port| *port > 0);
        port.ok_or_else(|| RequestError::invalid("port", "is not between 1 and 65535"))
    };
    wanted.iter().map(port).collect()
}
