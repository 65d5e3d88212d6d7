//! stdin, stdout, stderr and terminals.

use proto::agent::v1::*;
use proto::stdio::{Role, Status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::client::{connect, output};
use crate::fixture::{Fixture, process};

pub(super) async fn stdin_reaches_the_process_and_ends(f: Fixture) {
    let mut request = f.shell("cat", "cat; echo end");
    request.process.as_mut().unwrap().stdin = true;
    f.create(request).await;
    f.start("cat").await;
    let (mut stdin, status) = connect(&f.agent, Role::Stdin, "cat", "").await;
    assert_eq!(status, Status::Ok);
    stdin.write_all(b"typed\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    assert_eq!(output(&f.agent, "cat", "").await.stdout, "typed\nend\n");
    f.remove("cat").await;
}

pub(super) async fn without_stdin_there_is_none(f: Fixture) {
    f.create(f.shell("none", "cat; echo end")).await;
    f.start("none").await;
    assert_eq!(
        connect(&f.agent, Role::Stdin, "none", "").await.1,
        Status::NoStdin
    );
    assert_eq!(
        connect(&f.agent, Role::Output, "none", "no-exec").await.1,
        Status::NotFound
    );
    assert_eq!(output(&f.agent, "none", "").await.stdout, "end\n");
    f.remove("none").await;
}

fn with_terminal(f: &Fixture, id: &str, command: &str) -> CreateContainerRequest {
    let mut request = f.shell(id, command);
    let wanted = request.process.as_mut().unwrap();
    wanted.terminal = true;
    wanted.stdin = true;
    wanted.terminal_size = Some(TerminalSize {
        width: 100,
        height: 30,
    });
    request
}

pub(super) async fn a_terminal_is_one(f: Fixture) {
    f.create(with_terminal(
        &f,
        "tty",
        "tty; stty size; read line; echo got $line; test -c /dev/console && echo console >/dev/console",
    ))
    .await;
    f.start("tty").await;
    let (mut stdin, _) = connect(&f.agent, Role::Stdin, "tty", "").await;
    stdin.write_all(b"typed\n").await.unwrap();
    let output = output(&f.agent, "tty", "").await;
    assert_eq!(output.stderr, "");
    for part in ["/dev/pts/0\r\n", "30 100\r\n", "got typed\r\n", "console\r\n"] {
        assert!(output.stdout.contains(part), "{part:?} in {:?}", output.stdout);
    }
    f.remove("tty").await;
}

pub(super) async fn a_terminal_can_be_resized(f: Fixture) {
    f.create(with_terminal(&f, "resize", "read line; stty size"))
        .await;
    f.start("resize").await;
    let size = Some(TerminalSize { width: 7, height: 9 });
    let request = ResizeTerminalRequest {
        container_id: "resize".to_owned(),
        exec_id: String::new(),
        size,
    };
    f.client.clone().resize_terminal(request).await.unwrap();
    let (mut stdin, _) = connect(&f.agent, Role::Stdin, "resize", "").await;
    stdin.write_all(b"\n").await.unwrap();
    let output = output(&f.agent, "resize", "").await;
    assert!(output.stdout.contains("9 7"), "{output:?}");
    f.remove("resize").await;
}

pub(super) async fn exec_gets_a_terminal_of_its_own(f: Fixture) {
    f.create(f.shell("main", "sleep 1000")).await;
    f.start("main").await;
    let mut wanted = process(&["sh", "-c", "tty; kill -INT $$; sleep 5"]);
    wanted.terminal = true;
    f.exec("main", "tty", wanted).await.unwrap();
    let output = output(&f.agent, "main", "tty").await;
    assert!(output.stdout.contains("/dev/pts/0"), "{output:?}");
    assert_eq!(f.wait("main", "tty").await.signal, libc::SIGINT);
    f.remove("main").await;
}

pub(super) async fn a_user_can_open_its_stdout_again(f: Fixture) {
    let mut request = f.shell("reopen", "echo out > /dev/stdout; echo err > /dev/stderr");
    request.process.as_mut().unwrap().user = Some(User {
        spec: "user".to_owned(),
        ..User::default()
    });
    let (exit, output) = f.run(request).await;
    assert_eq!(
        (exit.code, output.stdout.as_str(), output.stderr.as_str()),
        (0, "out\n", "err\n")
    );
}

pub(super) async fn a_flood_of_output_arrives_whole(f: Fixture) {
    let output = f.stdout(f.shell("flood", "seq 1 200000")).await;
    assert_eq!(output.lines().count(), 200_000);
    assert!(output.ends_with("\n199999\n200000\n"));
    // Nobody reads, the process stops, and it can be removed all the same.
    f.create(f.shell("stuck", "seq 1 10000000")).await;
    f.start("stuck").await;
    let (mut connection, _) = connect(&f.agent, Role::Output, "stuck", "").await;
    connection.read_exact(&mut [0; 1000]).await.unwrap();
    f.remove("stuck").await;
}
