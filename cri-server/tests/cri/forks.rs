//! A daemon that makes templates, and what it says of them and of the pods that go on from them.

use std::path::PathBuf;

use proto::cri::v1 as cri;
use serde_json::Value;

use crate::support::{TestNode, eventually};

/// Of files that a test can change.
pub(crate) async fn start() -> TestNode {
    TestNode::start_with(|config| {
        let directory = config.run.parent().unwrap().join("parts");
        std::fs::create_dir_all(&directory).unwrap();
        let part = |name: &str| -> PathBuf {
            let path = directory.join(name);
            std::fs::write(&path, name).unwrap();
            path
        };
        config.machine.kernel = part("kernel");
        config.machine.initramfs = part("initramfs");
        config.machine.vmm = part("vmm");
        config.machine.templates.enabled = true;
        config.machine.templates.most = 2;
        config.deadlines.fork_s = 1;
    })
    .await
}

/// As `clearpod templates` gets them.
pub(crate) async fn templates(node: &TestNode) -> Vec<Value> {
    let request = cri::StatusRequest { verbose: true };
    let answer = node.runtime.clone().status(request).await.unwrap();
    serde_json::from_str(&answer.into_inner().info["templates"]).unwrap()
}

/// Waits until that many are ready, and nothing of making them is left.
pub(crate) async fn ready(node: &TestNode, count: usize) -> Vec<Value> {
    eventually("the templates are ready", async || {
        let templates = templates(node).await;
        templates.len() == count && templates.iter().all(|template| template["state"] == "ready")
    })
    .await;
    templates(node).await
}

pub(crate) async fn start_of(node: &TestNode, pod: &str) -> String {
    let info = &node.pod_status(pod).await.unwrap().info["info"];
    let info: Value = serde_json::from_str(info).unwrap();
    info["start"].as_str().unwrap().to_owned()
}
