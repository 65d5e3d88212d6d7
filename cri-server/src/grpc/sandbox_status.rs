//! PodSandboxStatus; verbose adds the Machine, the phases of its start and the end of its console, each as JSON.

use std::{collections::HashMap, sync::Arc};

use proto::cri::v1 as cri;
use serde_json::json;

use super::convert;
use crate::{
    clock::now_ns,
    sandbox::{Node, RequestError, SandboxView},
};

/// Bytes of the console that are shown.
const CONSOLE: usize = 16 * 1024;

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::PodSandboxStatusRequest,
) -> Result<cri::PodSandboxStatusResponse, RequestError> {
    let view = node.sandboxes.sandbox(&request.pod_sandbox_id)?.view();
    Ok(cri::PodSandboxStatusResponse {
        status: Some(convert::sandbox_status(&view)),
        info: if request.verbose {
            info(&view).await
        } else {
            HashMap::new()
        },
        containers_statuses: view
            .containers
            .iter()
            .map(|container| convert::container_status(container))
            .collect(),
        timestamp: now_ns(),
    })
}

async fn info(view: &SandboxView) -> HashMap<String, String> {
    let console = match &view.machine {
        // A VMM that does not answer is shown without its console.
        Some(machine) => machine.control.console(CONSOLE).await.unwrap_or_default(),
        None => view.console.clone(),
    };
    let machine = view
        .machine
        .as_ref()
        .map(|machine| json!({"pid": machine.pid, "memoryMiB": machine.memory_mib, "vcpus": machine.vcpus}));
    HashMap::from([
        ("machine".to_owned(), json!(machine).to_string()),
        ("state".to_owned(), json!(view.state).to_string()),
        ("timings".to_owned(), json!(view.timings.phases).to_string()),
        ("console".to_owned(), json!(console).to_string()),
    ])
}
