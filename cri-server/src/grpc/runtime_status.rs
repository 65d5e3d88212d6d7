//! Status: whether pods can be run now, and what this runtime can do.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
};

use proto::cri::v1 as cri;
use serde_json::json;

use crate::{
    network::NetworkStatus,
    sandbox::{COLD_HANDLER, HANDLER, Node, RequestError},
};

pub(super) async fn handle(
    node: Arc<Node>,
    request: cri::StatusRequest,
    recovered: bool,
) -> Result<cri::StatusResponse, RequestError> {
    let runtime = if recovered {
        condition("RuntimeReady", None)
    } else {
        let why = (
            "Recovering",
            "the state of the last daemon is being recovered".to_owned(),
        );
        condition("RuntimeReady", Some(why))
    };
    let network = match node.network.status() {
        NetworkStatus::Ready => condition("NetworkReady", None),
        NetworkStatus::NotReady { reason, message } => condition("NetworkReady", Some((reason, message))),
    };
    let handler = |name: &str| cri::RuntimeHandler {
        name: name.to_owned(),
        features: Some(cri::RuntimeHandlerFeatures {
            recursive_read_only_mounts: true,
            user_namespaces: true,
        }),
    };
    Ok(cri::StatusResponse {
        status: Some(cri::RuntimeStatus {
            conditions: vec![runtime, network],
        }),
        info: if request.verbose {
            info(&node)
        } else {
            HashMap::new()
        },
        runtime_handlers: vec![handler(""), handler(HANDLER), handler(COLD_HANDLER)],
        features: Some(cri::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: true,
        }),
    })
}

fn condition(kind: &str, problem: Option<(&str, String)>) -> cri::RuntimeCondition {
    let status = problem.is_none();
    let (reason, message) = problem.unwrap_or_default();
    cri::RuntimeCondition {
        r#type: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message,
    }
}

/// Values are JSON, as crictl shows them.
fn info(node: &Node) -> HashMap<String, String> {
    let machine = &node.config.machine;
    let config = json!({
        "state": node.config.state,
        "run": node.config.run,
        "kernel": machine.kernel,
        "initramfs": machine.initramfs,
        "vmm": machine.vmm,
        "memoryMiB": machine.memory_mib,
        "vcpus": machine.vcpus,
        "scratchMiB": machine.scratch_mib,
    });
    let pod_cidr = node.pod_cidr.lock().unwrap_or_else(PoisonError::into_inner);
    HashMap::from([
        ("podCIDR".to_owned(), json!(*pod_cidr).to_string()),
        ("config".to_owned(), config.to_string()),
        ("calls".to_owned(), json!(node.metrics.calls()).to_string()),
        ("templates".to_owned(), json!(node.templates.list()).to_string()),
        ("sandboxes".to_owned(), node.sandboxes.views().len().to_string()),
    ])
}
