//! Logs whose files are taken away, and disks without space under them.

use std::path::Path;

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use proto::cri::v1 as cri;

use crate::support::{TestNode, eventually};

/// Bytes of the small disk; more than the test logs.
const DISK: usize = 2 << 20;

/// A container that says a number every few milliseconds; its id.
async fn counting(node: &TestNode, pod: &str, name: &str) -> String {
    node.run_container(pod, name, &["sh", "-c", "while true; do echo tick; done"])
        .await
}

async fn reopen(node: &TestNode, container: &str) {
    let request = cri::ReopenContainerLogRequest {
        container_id: container.to_owned(),
    };
    node.runtime.clone().reopen_container_log(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_removed_is_made_anew_when_it_is_reopened() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod("web").await.unwrap();
    let container = counting(&node, &pod, "c").await;
    node.log("web", "c", 3).await;
    let path = node.path("logs/web/c.log");
    std::fs::remove_file(&path).unwrap();
    // It goes on without a file that has a name.
    let machine = node.host.machine(&pod).unwrap();
    let before = machine.agent().written(&container, "");
    eventually("the container goes on", async || {
        machine.agent().written(&container, "") > before + 50
    })
    .await;
    assert!(!path.exists(), "nobody asked for it");
    reopen(&node, &container).await;
    assert!(path.exists());
    assert_eq!(node.log("web", "c", 3).await[0], "stdout F tick");
    // The directory as well, and a daemon that does not know of it.
    std::fs::remove_dir_all(node.path("logs/web")).unwrap();
    node.kill_daemon().await;
    assert_eq!(node.log("web", "c", 3).await[0], "stdout F tick");
    node.remove_pod(&pod).await.unwrap();
    node.assert_nothing_is_left();
}

/// Runs `test` where it may mount what it likes, with all threads of its runtime.
fn with_own_mounts(test: impl AsyncFnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to mount a small disk");
        return;
    }
    let thread = std::thread::Builder::new().name("own-mounts".to_owned());
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    };
    let ended = thread.spawn(body).unwrap().join();
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

fn small_disk(at: &Path) {
    std::fs::create_dir_all(at).unwrap();
    let size = format!("size={DISK}");
    mount(
        Some("tmpfs"),
        at,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(size.as_str()),
    )
    .unwrap();
}

/// Takes all the space that is left.
fn fill(directory: &Path) {
    let filler = directory.join("filler");
    let written = std::fs::write(&filler, vec![0; DISK]);
    assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
}

#[test]
fn a_full_disk_holds_the_log_up_and_loses_nothing() {
    with_own_mounts(async || {
        let node = TestNode::start_with(|config| config.deadlines.drain_s = 1).await;
        let logs = node.path("logs/web");
        small_disk(&logs);
        let pod = node.run_pod("web").await.unwrap();
        let script = "echo before; sleep 2; flood 98890; echo after; sleep infinity";
        let container = node.run_container(&pod, "c", &["sh", "-c", script]).await;
        node.log("web", "c", 1).await;
        fill(&logs);
        let machine = node.host.machine(&pod).unwrap();
        eventually("the container goes on", async || {
            machine.agent().written(&container, "") > 98_890
        })
        .await;
        // All else can be done with it, and with others.
        assert_eq!(node.exec(&container, &["true"], 10).await.unwrap().exit_code, 0);
        let other = node.run_container(&pod, "other", &["sleep", "infinity"]).await;
        node.stop_container(&other, 0).await.unwrap();
        node.remove_container(&other).await.unwrap();
        std::fs::remove_file(logs.join("filler")).unwrap();
        let log = logs.join("c.log");
        eventually("the log goes on", async || {
            std::fs::read(&log).is_ok_and(|log| log.ends_with(b" stdout F after\n"))
        })
        .await;
    });
}
