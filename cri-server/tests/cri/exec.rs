//! ExecSync: output, codes, limits, and that nothing of a command stays.

use std::time::{Duration, Instant};

use cri_server::guest::fake::{Fault, FaultPoint};
use tonic::Code;

use crate::support::{TestNode, eventually, refused};

async fn running() -> (TestNode, String, String) {
    let node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node.run_container(&pod, "c", &["sleep", "infinity"]).await;
    (node, pod, container)
}

#[tokio::test(flavor = "multi_thread")]
async fn output_and_code_come_back_and_the_command_is_forgotten() {
    let (node, pod, container) = running().await;
    let answer = node
        .exec(&container, &["sh", "-c", "echo out; echo err >&2; exit 5"], 10)
        .await
        .unwrap();
    assert_eq!(
        (answer.stdout, answer.stderr, answer.exit_code),
        (b"out\n".to_vec(), b"err\n".to_vec(), 5)
    );
    let agent = node.host.machine(&pod).unwrap();
    eventually("the command is forgotten", async || {
        agent.agent().execs(&container).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_be_executed_ends_as_under_a_shell() {
    let (node, _, container) = running().await;
    let missing = node.exec(&container, &["/no/such/program"], 0).await.unwrap();
    assert_eq!(missing.exit_code, 127);
    assert!(
        String::from_utf8(missing.stderr)
            .unwrap()
            .contains("/no/such/program")
    );
    assert_eq!(
        node.exec(&container, &["not-executable"], 0)
            .await
            .unwrap()
            .exit_code,
        126
    );
    refused(node.exec(&container, &[], 0).await, Code::InvalidArgument, "cmd");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_over_its_limit_is_killed() {
    let (node, pod, container) = running().await;
    let began = Instant::now();
    let answer = node.exec(&container, &["sleep", "infinity"], 1).await;
    refused(answer, Code::DeadlineExceeded, "sleep");
    assert!(began.elapsed() < Duration::from_secs(10));
    let machine = node.host.machine(&pod).unwrap();
    eventually("the command is killed", async || {
        machine.agent().execs(&container).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_takes_its_command_along() {
    let (node, pod, container) = running().await;
    let machine = node.host.machine(&pod).unwrap();
    let client = tokio::time::timeout(
        Duration::from_millis(500),
        node.exec(&container, &["sleep", "infinity"], 0),
    );
    assert!(client.await.is_err());
    eventually("the command is killed", async || {
        machine.agent().execs(&container).is_empty()
    })
    .await;
    assert!(node.exec(&container, &["true"], 0).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_while_its_command_starts_leaves_nothing_running() {
    let (node, pod, container) = running().await;
    let machine = node.host.machine(&pod).unwrap();
    node.host.inject(FaultPoint::Call("Exec"), Fault::Late, 1);
    let sleep = ["sleep", "infinity"];
    let client = tokio::time::timeout(Duration::from_millis(100), node.exec(&container, &sleep, 0));
    assert!(client.await.is_err());
    eventually("the command has started", async || {
        machine.agent().execs_begun() == 1
    })
    .await;
    eventually("the command is killed", async || {
        machine.agent().execs(&container).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_output_is_cut_and_the_command_goes_on() {
    let (node, _, container) = running().await;
    let answer = node
        .exec(&container, &["sh", "-c", "flood 20000000; exit 4"], 60)
        .await
        .unwrap();
    assert_eq!(answer.exit_code, 4);
    let kept = answer.stdout.len() + answer.stderr.len();
    assert!(kept < 16 << 20 && kept > 15 << 20, "{kept}");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_side_by_side() {
    let (node, _, container) = running().await;
    let slow = node.exec(&container, &["sleep", "1"], 0);
    let quick = async {
        for _ in 0..5 {
            node.exec(&container, &["true"], 0).await.unwrap();
        }
        Instant::now()
    };
    let (slow, quick_ended) = tokio::join!(
        async {
            slow.await.unwrap();
            Instant::now()
        },
        quick
    );
    assert!(quick_ended < slow);
}
