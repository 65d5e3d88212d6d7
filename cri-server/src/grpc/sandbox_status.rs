//! PodSandboxStatus; verbose adds the Machine, the phases of its start and the end of its console, as JSON.

use std::{collections::HashMap, sync::Arc};

use proto::cri::v1 as cri;
use serde_json::json;

use super::convert;
use crate::{
    clock::now_ns,
    host::Kind,
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
        containers_statuses: convert::container_statuses(&view),
        timestamp: now_ns(),
    })
}

async fn info(view: &SandboxView) -> HashMap<String, String> {
    let console = match view.machine.as_ref().map(|machine| &machine.control) {
        // A VMM that does not answer is shown without its console.
        Some(Some(control)) => control.console(CONSOLE).await.unwrap_or_default(),
        Some(None) => String::new(),
        None => view.console.clone(),
    };
    let running = view.machine.as_ref();
    let machine = running.filter(|machine| machine.kind == Kind::Machine);
    let host = running.filter(|machine| machine.kind != Kind::Machine);
    let value = json!({
        "kind": running.map(|machine| if machine.kind == Kind::Machine { "machine" } else { "host" }),
        "vmm_pid": machine.map(|machine| machine.pid),
        "shim_pid": host.map(|machine| machine.pid),
        "memory_mib": machine.map(|machine| machine.memory_mib),
        "vcpus": machine.map(|machine| machine.vcpus),
        "start": machine.map(|_| if view.timings.forked { "fork" } else { "boot" }),
        "state": view.state,
        "phases": view.timings.phases,
        "console": console,
    });
    // One object: crictl parses a value that begins with a brace, and a guest chooses how its console begins.
    HashMap::from([("info".to_owned(), value.to_string())])
}
