//! From creation to removal.

use std::time::Duration;

use proto::agent::v1::mount::Source;
use proto::agent::v1::watch_event::Event;
use proto::agent::v1::*;

use crate::client::refused;
use crate::fixture::{Fixture, process};

pub(super) async fn output_and_exit_code_come_back(f: Fixture) {
    let (exit, output) = f.run(f.shell("hello", "echo out; echo err >&2; exit 7")).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (7, 0, false));
    assert_eq!(
        (output.stdout.as_str(), output.stderr.as_str()),
        ("out\n", "err\n")
    );
    assert!(exit.finished_at_ns > 0);
}

pub(super) async fn a_missing_program_is_an_exec_error(f: Fixture) {
    let mut request = f.shell("missing", "");
    request.process = Some(process(&["no-such-program"]));
    f.create(request).await;
    let start = StartContainerRequest {
        container_id: "missing".to_owned(),
    };
    let (code, errno, message) = refused(f.client.clone().start_container(start).await);
    assert_eq!((code, errno), (ErrorCode::Exec, libc::ENOENT), "{message}");
    assert_ne!(f.wait("missing", "").await.code, 0);
    f.remove("missing").await;
}

pub(super) async fn exec_runs_beside_the_container(f: Fixture) {
    f.create(f.shell("beside", "echo here > /tmp/file; sleep 1000"))
        .await;
    f.start("beside").await;
    let (exit, output) = f
        .exec_output("beside", "e1", &["sh", "-c", "sleep 0.1; cat /tmp/file; exit 3"])
        .await;
    assert_eq!((exit.code, output.stdout.as_str()), (3, "here\n"));
    let same = "readlink /proc/self/ns/$0; readlink /proc/1/ns/$0";
    for namespace in ["pid", "mnt", "cgroup", "net", "ipc", "uts"] {
        let (_, output) = f
            .exec_output("beside", "e1", &["sh", "-c", same, namespace])
            .await;
        let seen: Vec<&str> = output.stdout.lines().collect();
        assert_eq!(seen.len(), 2, "{output:?}");
        assert_eq!(seen[0], seen[1]);
    }
    f.remove("beside").await;
}

pub(super) async fn exec_errors_carry_the_errno(f: Fixture) {
    f.create(f.shell("errno", "sleep 1000")).await;
    let (code, ..) = refused(f.exec("errno", "early", process(&["true"])).await);
    assert_eq!(code, ErrorCode::WrongState);
    f.start("errno").await;
    for (program, errno) in [
        ("nope", libc::ENOENT),
        ("/etc/not-executable", libc::EACCES),
        ("/etc", libc::EACCES),
    ] {
        let (code, got, message) = refused(f.exec("errno", "e", process(&[program])).await);
        assert_eq!((code, got), (ErrorCode::Exec, errno), "{message}");
    }
    let mut nobody = process(&["true"]);
    nobody.user = Some(User {
        spec: "nobody".to_owned(),
        ..User::default()
    });
    assert_eq!(
        refused(f.exec("errno", "e", nobody).await).0,
        ErrorCode::UserNotFound
    );
    f.remove("errno").await;
    assert_eq!(
        refused(f.exec("errno", "e", process(&["true"])).await).0,
        ErrorCode::NotFound
    );
}

pub(super) async fn signals_end_containers(f: Fixture) {
    f.create(f.shell(
        "term",
        "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done",
    ))
    .await;
    f.start("term").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    f.signal("term", libc::SIGTERM, false).await;
    assert_eq!(f.wait("term", "").await.code, 5);
    f.remove("term").await;
    f.create(f.shell("kill", "trap '' TERM; sleep 1000 & sleep 1000"))
        .await;
    f.start("kill").await;
    f.signal("kill", libc::SIGTERM, true).await;
    f.signal("kill", libc::SIGKILL, true).await;
    let exit = f.wait("kill", "").await;
    assert_eq!(
        (exit.code, exit.signal, exit.oom_killed),
        (137, libc::SIGKILL, false)
    );
    let request = SignalRequest {
        container_id: "kill".to_owned(),
        signal: 15,
        ..SignalRequest::default()
    };
    assert_eq!(
        refused(f.client.clone().signal(request).await).0,
        ErrorCode::WrongState
    );
    f.remove("kill").await;
}

pub(super) async fn an_id_means_one_container(f: Fixture) {
    f.create(f.shell("twice", "true")).await;
    assert_eq!(
        refused(f.client.clone().create_container(f.shell("twice", "true")).await).0,
        ErrorCode::AlreadyExists
    );
    f.start("twice").await;
    let start = StartContainerRequest {
        container_id: "twice".to_owned(),
    };
    assert_eq!(
        refused(f.client.clone().start_container(start).await).0,
        ErrorCode::WrongState
    );
    f.remove("twice").await;
    let remove = RemoveContainerRequest {
        container_id: "twice".to_owned(),
    };
    assert_eq!(
        refused(f.client.clone().remove_container(remove).await).0,
        ErrorCode::NotFound
    );
    assert_eq!(
        refused(f.client.clone().create_container(f.shell("../up", "true")).await).0,
        ErrorCode::InvalidArgument
    );
}

pub(super) async fn a_failed_creation_leaves_nothing(f: Fixture) {
    let before = f.leftovers();
    let mut request = f.shell("failed", "true");
    request.process.as_mut().unwrap().user = Some(User {
        spec: "nobody".to_owned(),
        ..User::default()
    });
    request.mounts = vec![Mount {
        destination: "/data".to_owned(),
        source: Some(Source::Tmpfs(TmpfsSource {
            name: "data".to_owned(),
            ..TmpfsSource::default()
        })),
        ..Mount::default()
    }];
    for _ in 0..3 {
        let (code, _, message) = refused(f.client.clone().create_container(request.clone()).await);
        assert_eq!(code, ErrorCode::UserNotFound);
        assert!(message.contains("nobody"), "{message}");
    }
    assert_eq!(f.leftovers(), before);
}

pub(super) async fn a_created_container_can_be_removed(f: Fixture) {
    f.create(f.shell("unstarted", "echo never")).await;
    f.remove("unstarted").await;
    f.create(f.shell("unstarted", "true")).await;
    f.signal("unstarted", libc::SIGKILL, false).await;
    assert_eq!(f.wait("unstarted", "").await.code, 137);
    f.remove("unstarted").await;
}

pub(super) async fn watchers_see_a_snapshot_and_then_exits(f: Fixture) {
    f.create(f.shell("watched", "exit 4")).await;
    let mut events = f
        .client
        .clone()
        .watch(WatchRequest {})
        .await
        .unwrap()
        .into_inner();
    let Some(Event::Snapshot(snapshot)) = events.message().await.unwrap().unwrap().event else {
        panic!("no snapshot")
    };
    let [container] = snapshot.containers.as_slice() else {
        panic!("{snapshot:?}")
    };
    assert_eq!(
        (container.container_id.as_str(), container.phase()),
        ("watched", ContainerPhase::Created)
    );
    assert!(container.pid > 1);
    f.start("watched").await;
    let Some(Event::Exited(exited)) = events.message().await.unwrap().unwrap().event else {
        panic!("no exit")
    };
    assert_eq!(
        (exited.container_id.as_str(), exited.exit.unwrap().code),
        ("watched", 4)
    );
    let mut again = f
        .client
        .clone()
        .watch(WatchRequest {})
        .await
        .unwrap()
        .into_inner();
    let Some(Event::Snapshot(snapshot)) = again.message().await.unwrap().unwrap().event else {
        panic!("no snapshot")
    };
    assert_eq!(snapshot.containers[0].phase(), ContainerPhase::Exited);
    assert!(snapshot.containers[0].started_at_ns > 0);
    f.remove("watched").await;
}

pub(super) async fn termination_messages_come_back(f: Fixture) {
    let mut request = f.shell("message", "seq 1 2000 > /dev/termination-log; exit 1");
    request.termination_log_path = "/dev/termination-log".to_owned();
    let (exit, _) = f.run(request).await;
    assert_eq!(exit.termination_message.len(), 4096);
    assert!(exit.termination_message.ends_with(b"\n1999\n2000\n"));
    // A FIFO in its place holds nobody up.
    let mut request = f.shell("fifo", "rm /log 2>/dev/null; exit 1");
    request.termination_log_path = "/log".to_owned();
    assert_eq!(f.run(request).await.0.termination_message, b"");
}

pub(super) async fn orphans_are_reaped(f: Fixture) {
    f.create(f.shell("orphans", "sleep 1000")).await;
    f.start("orphans").await;
    // Both shells end at once; what they leave is the container's init's, or the agent's when that is gone.
    f.exec_output("orphans", "e", &["sh", "-c", "(sleep 0.2 &) ; exit 0"])
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    f.remove("orphans").await;
    assert_eq!(children_of_the_agent(), Vec::<String>::new());
}

fn children_of_the_agent() -> Vec<String> {
    let me = std::process::id();
    let children = std::fs::read_to_string(format!("/proc/{me}/task/{me}/children")).unwrap_or_default();
    children.split_whitespace().map(str::to_owned).collect()
}

pub(super) async fn a_hundred_containers_leave_nothing(f: Fixture) {
    let count = if f.in_guest { 20 } else { 100 };
    f.run(f.shell("warm-up", "true")).await;
    let before = (f.leftovers(), descriptors());
    for index in 0..count {
        let id = format!("c{index}");
        f.create(f.shell(&id, "echo $$; sleep 1000")).await;
        f.start(&id).await;
        f.exec_output(&id, "e", &["true"]).await;
        f.remove(&id).await;
    }
    assert_eq!((f.leftovers(), descriptors()), before);
    assert_eq!(children_of_the_agent(), Vec::<String>::new());
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
