//! Exec over SPDY: streams, ends, codes, sizes, and clients that are slow or go.

use std::time::Duration;

use cri_server::{
    guest::fake::{Fault, FaultPoint},
    streaming::testing::ClientEvent,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::Code;

use super::{ALL, OUTPUT, TERMINAL, Wish, channels::Channels, client::Command, exec_url, forgotten, running};
use crate::support::{PATIENCE, TestNode, eventually, refused};

async fn open(node: &TestNode, container: &str, command: &[&str], wish: Wish) -> Command {
    let url = exec_url(node, container, command, wish).await.unwrap();
    Command::open(&url, wish).await
}

/// The one exec of a container, once it is there.
async fn exec_id(node: &TestNode, pod: &str, container: &str) -> String {
    let machine = node.host.machine(pod).unwrap();
    eventually("the command runs", async || {
        !machine.agent().execs(container).is_empty()
    })
    .await;
    machine.agent().execs(container).remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_ends_with_its_stdin_and_its_code() {
    let (node, pod, container) = running().await;
    let script = "cat; echo end >&2; exit 3";
    let mut command = open(&node, &container, &["sh", "-c", script], ALL).await;
    for line in ["one\n", "two\n"] {
        command.type_in(line).await;
        command
            .until(|command| command.heard("stdout").ends_with(line))
            .await;
    }
    command.close_stdin().await;
    assert_eq!(command.exit_code().await, 3);
    assert_eq!(command.heard("stdout"), "one\ntwo\n");
    assert_eq!(command.heard("stderr"), "end\n");
    forgotten(&node, &pod, &container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_and_failures_are_told() {
    let (node, pod, container) = running().await;
    for (words, code) in [
        (&["true"][..], 0),
        (&["false"], 1),
        (&["sh", "-c", "exit 255"], 255),
    ] {
        let mut command = open(&node, &container, words, OUTPUT).await;
        assert_eq!(command.exit_code().await, code, "{words:?}");
    }
    let mut missing = open(&node, &container, &["/no/such/program"], OUTPUT).await;
    assert_eq!(missing.exit_code().await, 127);
    let text = missing.heard("stderr");
    assert!(text.contains("/no/such/program"), "{text}");
    // The container ends between URL and use.
    let url = exec_url(&node, &container, &["true"], OUTPUT).await.unwrap();
    node.stop_container(&container, 0).await.unwrap();
    let status = Command::open(&url, OUTPUT).await.status().await;
    assert_eq!(status["reason"], "InternalError", "{status}");
    forgotten(&node, &pod, &container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn older_versions_tell_failures_as_text() {
    let (node, _, container) = running().await;
    for version in ["v3.channel.k8s.io", "v2.channel.k8s.io"] {
        for (words, text) in [(&["true"][..], ""), (&["sh", "-c", "exit 7"], "exit code: 7")] {
            let url = exec_url(&node, &container, words, OUTPUT).await.unwrap();
            let error = Command::open_version(&url, OUTPUT, version).await.end().await;
            assert!(
                error.ends_with(text) && error.is_empty() == text.is_empty(),
                "{error}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_gets_the_clients_sizes_and_no_stderr() {
    let (node, pod, container) = running().await;
    let mut command = open(&node, &container, &["cat"], TERMINAL).await;
    let exec = exec_id(&node, &pod, &container).await;
    let machine = node.host.machine(&pod).unwrap();
    for (width, height) in [(80, 24), (100, 30)] {
        command.resize(width, height).await;
        eventually("the terminal has its size", async || {
            machine.agent().sizes(&container, &exec).last() == Some(&(width.into(), height.into()))
        })
        .await;
    }
    command.type_in("typed\n").await;
    command
        .until(|command| command.heard("stdout") == "typed\n")
        .await;
    command.close_stdin().await;
    assert_eq!(command.exit_code().await, 0);
    assert_eq!(
        command.heard("stdout"),
        "typed\n\x04",
        "a terminal's end is a character"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_begins_with_the_size_that_the_client_sends_first() {
    let (node, pod, container) = running().await;
    let machine = node.host.machine(&pod).unwrap();
    let call = FaultPoint::Call("ResizeTerminal");
    node.host.inject(call, Fault::Fail, usize::MAX);
    let mut command = open(&node, &container, &["cat"], TERMINAL).await;
    command.resize(80, 24).await;
    let exec = exec_id(&node, &pod, &container).await;
    assert_eq!(machine.agent().sizes(&container, &exec), [(80, 24)]);
    command.close_stdin().await;
    assert_eq!(command.exit_code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_by_field() {
    let (node, pod, container) = running().await;
    let url = |words: &'static [&'static str], wish| exec_url(&node, &container, words, wish);
    let both = Wish {
        stderr: true,
        ..TERMINAL
    };
    refused(url(&["true"], both).await, Code::InvalidArgument, "stderr");
    refused(
        url(&["true"], Wish::default()).await,
        Code::InvalidArgument,
        "stdin",
    );
    refused(url(&[], OUTPUT).await, Code::InvalidArgument, "cmd");
    let unknown = exec_url(&node, "unknown", &["true"], OUTPUT).await;
    refused(unknown, Code::NotFound, "unknown");
    let config = node.container_config("created", &["true"]);
    let created = node.create(&pod, config).await.unwrap();
    let not_running = exec_url(&node, &created, &["true"], OUTPUT).await;
    refused(not_running, Code::FailedPrecondition, "not running");
}

/// Each way alone and both at once: more than every buffer on the way.
#[tokio::test(flavor = "multi_thread")]
async fn eight_mebibytes_pass_each_way_without_loss() {
    const TOTAL: usize = 8 << 20;
    let (node, _, container) = running().await;
    let mut command = open(&node, &container, &["cat"], ALL).await;
    let (stdin, stdout) = (command.id("stdin"), command.id("stdout"));
    let (mut receiving, mut sending) = command.spdy.split();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let numbers: Vec<u8> = (0..TOTAL / 4)
            .flat_map(|number| u32::try_from(number).unwrap().to_be_bytes())
            .collect();
        for piece in numbers.chunks(30_000) {
            sending.data(stdin, piece, false).await.unwrap();
        }
        sending.data(stdin, b"", true).await.unwrap();
        sending
    });
    let mut received = Vec::with_capacity(TOTAL);
    loop {
        match timeout(PATIENCE, receiving.next()).await.unwrap().unwrap() {
            Some(ClientEvent::Data(stream, bytes, _)) if stream == stdout => {
                received.extend_from_slice(&bytes);
            }
            Some(ClientEvent::GoAway) | None => break,
            Some(_) => {}
        }
    }
    drop(tasks.join_all().await);
    assert_eq!(received.len(), TOTAL);
    let numbers = received
        .chunks(4)
        .map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap()));
    assert!(numbers.eq(0..u32::try_from(TOTAL / 4).unwrap()));
    command = open(&node, &container, &["flood", "8388608"], OUTPUT).await;
    assert_eq!(command.exit_code().await, 0);
    assert_eq!(command.bytes("stdout"), TOTAL);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_slows_the_process_down() {
    const TOTAL: u64 = 64 << 20;
    let (node, pod, container) = running().await;
    let command = open(&node, &container, &["flood", &TOTAL.to_string()], OUTPUT).await;
    let exec = exec_id(&node, &pod, &container).await;
    let machine = node.host.machine(&pod).unwrap();
    let written = || machine.agent().written(&container, &exec);
    // Until it writes no more.
    let mut before = 0;
    eventually("the process waits", async || {
        sleep(Duration::from_millis(300)).await;
        let now = written();
        let stands = now > 0 && now == before;
        before = now;
        stands
    })
    .await;
    assert!(
        before < TOTAL / 2,
        "{before} bytes are between process and client"
    );
    drop(command);
    forgotten(&node, &pod, &container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_takes_its_command_along() {
    let (node, pod, container) = running().await;
    // While nothing happens.
    let silent = open(&node, &container, &["sleep", "infinity"], ALL).await;
    exec_id(&node, &pod, &container).await;
    drop(silent);
    forgotten(&node, &pod, &container).await;
    // In the middle of its output.
    let mut listening = open(&node, &container, &["flood", "1000000000"], OUTPUT).await;
    listening
        .until(|command| command.bytes("stdout") > 1_000_000)
        .await;
    drop(listening);
    forgotten(&node, &pod, &container).await;
    // While its input waits for a process that does not read.
    let mut talking = open(&node, &container, &["sleep", "infinity"], ALL).await;
    let stdin = talking.id("stdin");
    let piece = [0; 32 * 1024];
    while timeout(
        Duration::from_millis(500),
        talking.spdy.data(stdin, &piece, false),
    )
    .await
    .is_ok()
    {}
    drop(talking);
    forgotten(&node, &pod, &container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_breaks_the_protocol_takes_its_command_along() {
    let (node, pod, container) = running().await;
    let mut command = open(&node, &container, &["sleep", "infinity"], ALL).await;
    exec_id(&node, &pod, &container).await;
    command.spdy.raw(&[0xff; 64]).await.unwrap();
    command.until(|command| command.gone).await;
    forgotten(&node, &pod, &container).await;
    let mut next = open(&node, &container, &["true"], OUTPUT).await;
    assert_eq!(next.exit_code().await, 0, "others are not concerned");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_ends_ends_its_commands() {
    let (node, pod, container) = running().await;
    let mut command = open(&node, &container, &["sleep", "infinity"], OUTPUT).await;
    exec_id(&node, &pod, &container).await;
    node.host.machine(&pod).unwrap().kill_agent();
    let status = command.status().await;
    assert_eq!(status["status"], "Failure", "{status}");
}

/// Half of them over SPDY, half over WebSocket.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_commands_at_once_keep_their_streams_apart() {
    let (node, pod, container) = running().await;
    let mut commands = JoinSet::new();
    for number in 0..200_u8 {
        let script = format!("cat; echo {number} >&2; exit {number}");
        let url = exec_url(&node, &container, &["sh", "-c", &script], ALL)
            .await
            .unwrap();
        let (typed, told) = (format!("in {number}"), format!("{number}\n"));
        commands.spawn(async move {
            if number % 2 == 0 {
                let mut command = Command::open(&url, ALL).await;
                command.type_in(&typed).await;
                command.close_stdin().await;
                assert_eq!(command.exit_code().await, i32::from(number));
                assert_eq!((command.heard("stdout"), command.heard("stderr")), (typed, told));
            } else {
                let mut channels = Channels::open(&url, "v5.channel.k8s.io").await;
                channels.send(0, typed.as_bytes()).await;
                channels.send(255, &[0]).await;
                assert_eq!(channels.exit_code().await, i32::from(number));
                assert_eq!(channels.heard[1], typed.as_bytes());
                assert_eq!(channels.heard[2], told.as_bytes());
            }
        });
    }
    commands.join_all().await;
    forgotten(&node, &pod, &container).await;
}
