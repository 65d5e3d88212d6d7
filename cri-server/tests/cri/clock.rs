//! Guests whose clocks are wrong.

use cri_server::guest::fake::{Fault, FaultPoint};

use crate::support::{TestNode, eventually};

const HOUR_NS: i64 = 3_600_000_000_000;
/// What a guest may be wrong by without being told.
const SMALL_NS: i64 = 200_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_starts_sets_the_guests_clocks_right() {
    let mut node = TestNode::start().await;
    let mut guests = Vec::new();
    for (name, ahead) in [("behind", -HOUR_NS), ("ahead", HOUR_NS), ("right", SMALL_NS)] {
        let pod = node.run_pod(name).await.unwrap();
        let machine = node.host.machine(&pod).unwrap();
        machine.agent().set_clock_ahead(ahead);
        guests.push(machine);
    }
    // One that says nothing holds nobody up.
    let silent = node.run_pod("silent").await.unwrap();
    node.host.machine(&silent).unwrap().stall(true);
    node.kill_daemon().await;
    let wrong = || guests.iter().map(|guest| guest.agent().clock_ahead_ns());
    eventually("clocks are right", async || {
        wrong().all(|ns| ns.abs() < HOUR_NS / 10)
    })
    .await;
    let left: Vec<i64> = wrong().collect();
    assert!(left.iter().all(|ns| ns.abs() <= 500_000_000), "{left:?}");
    assert_eq!(left[2], SMALL_NS, "a step for so little does more harm");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_cannot_move_its_clock_keeps_its_pod() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    node.host
        .inject(FaultPoint::Call("MoveClock"), Fault::Fail, usize::MAX);
    node.kill_daemon().await;
    let id = node.run_container(&pod, "main", &["echo", "hello"]).await;
    assert_eq!(node.ended(&id).await.exit_code, 0);
    node.host.heal();
    node.remove_pod(&pod).await.unwrap();
    node.assert_nothing_is_left();
}
