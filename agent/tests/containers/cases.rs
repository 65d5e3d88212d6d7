//! The cases, one behaviour each.

use std::pin::Pin;

use proto::agent::v1::mount::Source;
use proto::agent::v1::*;
use proto::stdio::{Role, Status as StdioStatus};
use tokio::io::AsyncWriteExt as _;

use crate::client::{connect, output, refused};
use crate::fixture::{Fixture, process};

type Case = fn(Fixture) -> Pin<Box<dyn Future<Output = ()>>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        /// Name and body of every case, in the order in which they run.
        pub(crate) const CASES: &[(&str, Case)] = &[$((stringify!($name), |fixture| Box::pin($name(fixture)))),*];
    };
}

cases![
    output_and_exit_code_come_back,
    a_missing_program_is_an_exec_error,
    exec_runs_beside_the_container,
    exec_errors_carry_the_errno,
    signals_end_containers,
];

async fn output_and_exit_code_come_back(f: Fixture) {
    let (exit, output) = f.run(f.shell("hello", "echo out; echo err >&2; exit 7")).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (7, 0, false));
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
    assert!(exit.finished_at_ns > 0);
}

async fn a_missing_program_is_an_exec_error(f: Fixture) {
    let mut request = f.shell("missing", "");
    request.process = Some(process(&["no-such-program"]));
    f.create(request).await;
    let start = StartContainerRequest { container_id: "missing".to_owned() };
    let (code, errno, message) = refused(f.client.clone().start_container(start).await);
    assert_eq!((code, errno), (ErrorCode::Exec, libc::ENOENT), "{message}");
    assert_ne!(f.wait("missing", "").await.code, 0);
    f.remove("missing").await;
}

async fn exec_runs_beside_the_container(f: Fixture) {
    f.create(f.shell("main", "echo here > /tmp/file; sleep 1000")).await;
    f.start("main").await;
    let (exit, output) = f.exec_output("main", "e1", &["sh", "-c", "sleep 0.1; cat /tmp/file; exit 3"]).await;
    assert_eq!((exit.code, output.stdout.as_str()), (3, "here\n"));
    let (_, output) = f.exec_output("main", "e1", &["readlink", "/proc/self/ns/pid", "/proc/1/ns/pid"]).await;
    let namespaces: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(namespaces[0], namespaces[1]);
    f.remove("main").await;
}

async fn exec_errors_carry_the_errno(f: Fixture) {
    f.create(f.shell("main", "sleep 1000")).await;
    let (code, ..) = refused(f.exec("main", "early", process(&["true"])).await);
    assert_eq!(code, ErrorCode::WrongState);
    f.start("main").await;
    for (program, errno) in [("nope", libc::ENOENT), ("/etc/not-executable", libc::EACCES), ("/etc", libc::EACCES)] {
        let (code, got, message) = refused(f.exec("main", "e", process(&[program])).await);
        assert_eq!((code, got), (ErrorCode::Exec, errno), "{message}");
    }
    let mut nobody = process(&["true"]);
    nobody.user = Some(User { spec: "nobody".to_owned(), ..User::default() });
    assert_eq!(refused(f.exec("main", "e", nobody).await).0, ErrorCode::UserNotFound);
    f.remove("main").await;
    assert_eq!(refused(f.exec("main", "e", process(&["true"])).await).0, ErrorCode::NotFound);
}

async fn signals_end_containers(f: Fixture) {
    f.create(f.shell("term", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done")).await;
    f.start("term").await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    f.signal("term", libc::SIGTERM, false).await;
    assert_eq!(f.wait("term", "").await.code, 5);
    f.remove("term").await;
    f.create(f.shell("kill", "trap '' TERM; sleep 1000 & sleep 1000")).await;
    f.start("kill").await;
    f.signal("kill", libc::SIGTERM, true).await;
    f.signal("kill", libc::SIGKILL, true).await;
    let exit = f.wait("kill", "").await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, libc::SIGKILL, false));
    f.remove("kill").await;
}
