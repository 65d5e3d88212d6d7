//! What the daemon's streams carry, in one process: logs from an agent that is as fast as a socket, commands and forwarded
//! connections of a whole daemon with a fake guest. A JSON object on standard output.
//!
//!     cargo bench -p cri-server --bench streams [-- MEBIBYTES]

#![expect(clippy::unwrap_used, reason = "a figure that cannot be taken says where")]
#![expect(clippy::print_stdout, reason = "its result")]

#[path = "../../tests/cri/support.rs"]
#[expect(
    dead_code,
    reason = "shared with the larger test program, which uses all of it"
)]
mod support;

mod forward;
mod log;

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use support::TestNode;

/// Calls of ExecSync that are measured one after the other.
const CALLS: usize = 200;

#[tokio::main]
async fn main() {
    // cargo adds "--bench".
    let mebibytes = std::env::args().find_map(|argument| argument.parse().ok());
    let bytes = mebibytes.unwrap_or(256) << 20;
    let mut figures = Map::new();
    figures.insert("log".to_owned(), log::measure(bytes).await);
    let node = TestNode::start().await;
    let pod = node.run_pod("bench").await.unwrap();
    let container = node.run_container(&pod, "c", &["sleep", "infinity"]).await;
    let forwarded = forward::measure(&node, &pod, bytes).await;
    figures.insert("port_forward".to_owned(), forwarded);
    let exec = forward::exec(&node, &container, bytes / 16).await;
    figures.insert("exec".to_owned(), exec);
    figures.insert("exec_sync_ms".to_owned(), exec_sync(&node, &container).await);
    node.remove_pod(&pod).await.unwrap();
    println!("{:#}", Value::Object(figures));
}

async fn exec_sync(node: &TestNode, container: &str) -> Value {
    let mut took = Vec::new();
    for _ in 0..CALLS {
        let began = Instant::now();
        node.exec(container, &["true"], 10).await.unwrap();
        took.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    took.sort_by(f64::total_cmp);
    json!({ "p50": took[CALLS / 2], "p99": took[CALLS * 99 / 100], "calls": CALLS })
}

/// Millions of bytes a second.
fn rate(bytes: usize, took: Duration) -> Value {
    let megabytes = u32::try_from(bytes / 1_000_000).unwrap();
    json!({ "bytes": bytes, "mb_per_s": f64::from(megabytes) / took.as_secs_f64() })
}
