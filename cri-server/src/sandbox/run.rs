//! A new sandbox: validate, reserve its id and name, hand it to an owner task, and wait until it is ready.

use std::sync::Arc;

use proto::cri::v1 as cri;
use tokio::sync::oneshot;

use super::{
    driver::{Driver, Origin},
    error::RequestError,
    node::{Node, new_id},
    plan,
    state::{Acquired, SandboxState},
    timings::Timings,
};
use crate::{clock::now_ns, store::SandboxRecord};

/// Runs a sandbox and returns its id.
pub(crate) async fn run(
    node: &Arc<Node>,
    request: cri::RunPodSandboxRequest,
) -> Result<String, RequestError> {
    let id = new_id()?;
    let plan = plan::plan(&id, &request, &node.config)?;
    let record = SandboxRecord {
        id: id.clone(),
        created_at: now_ns(),
        state: SandboxState::Starting {
            held: Acquired::ALL.to_vec(),
        },
        attachment: None,
        timings: Timings::default(),
        console: String::new(),
    };
    let (reply, answer) = oneshot::channel();
    let (driver, handle) = Driver::new(Arc::clone(node), plan, request, record);
    node.sandboxes.reserve(handle)?;
    node.tasks.spawn(driver.run(Origin::New(reply)));
    answer
        .await
        .map_err(|_| RequestError::Unavailable { doing: "stopping" })?
}
