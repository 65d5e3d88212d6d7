//! Attach: a container's own streams, for as long as it runs, beside its log.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use proto::cri::v1 as cri;
use tokio::time::timeout;
use tonic::Code;

use super::{ALL, OUTPUT, TERMINAL, Wish, attach_url, client::Command, running};
use crate::support::{PATIENCE, TestNode, eventually, refused};

/// A container that has stdin; its id.
pub(super) async fn talkative(
    node: &TestNode,
    pod: &str,
    change: impl FnOnce(&mut cri::ContainerConfig),
) -> String {
    let mut config = node.container_config("talkative", &["sh", "-c", "cat; echo end"]);
    config.stdin = true;
    change(&mut config);
    let id = node.create(pod, config).await.unwrap();
    node.start_container(&id).await.unwrap();
    id
}

async fn attach(node: &TestNode, container: &str, wish: Wish) -> Command {
    let url = attach_url(node, container, wish).await.unwrap();
    Command::open(&url, wish).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_follows_the_container_and_ends_its_stdin() {
    let (node, pod, _) = running().await;
    let id = talkative(&node, &pod, |config| config.stdin_once = true).await;
    let mut client = attach(&node, &id, ALL).await;
    client.type_in("hello\n").await;
    client.until(|client| client.heard("stdout") == "hello\n").await;
    client.close_stdin().await;
    let status = client.status().await;
    assert_eq!(status["status"], "Success", "{status}");
    assert_eq!(client.heard("stdout"), "hello\nend\n");
    assert_eq!(node.ended(&id).await.exit_code, 0);
    let log = node.log("web", "talkative", 2).await;
    assert_eq!(log, ["stdout F hello", "stdout F end"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stdin_that_is_not_for_once_outlives_its_clients() {
    let (node, pod, _) = running().await;
    let id = talkative(&node, &pod, |_| {}).await;
    for (number, polite) in [(1, true), (2, false), (3, true)] {
        let mut client = attach(&node, &id, ALL).await;
        let line = format!("{number}\n");
        client.type_in(&line).await;
        client
            .until(|client| client.heard("stdout").ends_with(&line))
            .await;
        if polite {
            client.close_stdin().await;
        }
    }
    let state = node.container_status(&id).await.unwrap().state();
    assert_eq!(state, cri::ContainerState::ContainerRunning);
    let log = node.log("web", "talkative", 3).await;
    assert_eq!(log, ["stdout F 1", "stdout F 2", "stdout F 3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_resized_and_its_clients_share_the_output() {
    let (node, pod, _) = running().await;
    let id = talkative(&node, &pod, |config| config.tty = true).await;
    let watching = Wish {
        stdin: false,
        ..TERMINAL
    };
    let (mut typing, mut watching) = (
        attach(&node, &id, TERMINAL).await,
        attach(&node, &id, watching).await,
    );
    typing.resize(120, 40).await;
    let machine = node.host.machine(&pod).unwrap();
    eventually("the terminal has its size", async || {
        machine.agent().sizes(&id, "") == [(120, 40)]
    })
    .await;
    typing.type_in("seen by both\n").await;
    for client in [&mut typing, &mut watching] {
        client
            .until(|client| client.heard("stdout") == "seen by both\n")
            .await;
    }
    node.stop_container(&id, 0).await.unwrap();
    for client in [&mut typing, &mut watching] {
        let status = client.status().await;
        assert_eq!(status["status"], "Success", "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_by_field() {
    let (node, pod, silent) = running().await;
    let url = |id, wish| attach_url(&node, id, wish);
    refused(url(&silent, ALL).await, Code::InvalidArgument, "stdin");
    refused(
        url(&silent, Wish::default()).await,
        Code::InvalidArgument,
        "stdin",
    );
    let terminal = Wish {
        stdin: false,
        ..TERMINAL
    };
    refused(url(&silent, terminal).await, Code::InvalidArgument, "tty");
    let config = node.container_config("created", &["true"]);
    let created = node.create(&pod, config).await.unwrap();
    refused(
        url(&created, OUTPUT).await,
        Code::FailedPrecondition,
        "not running",
    );
}

fn last_bytes(path: &Path, count: i64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::End(-count))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_loses_output_and_the_log_none() {
    /// Of 16 bytes each: more than the sockets' buffers and the log's subscribers hold.
    const LINES: u32 = 768 * 1024;
    let (node, pod, _) = running().await;
    let id = talkative(&node, &pod, |config| config.stdin_once = true).await;
    let mut client = attach(&node, &id, ALL).await;
    let lines: Vec<u32> = (0..LINES).collect();
    for piece in lines.chunks(2000) {
        let text: String = piece.iter().map(|number| format!("{number:015}\n")).collect();
        // The client does not read, and the container gets all the same what it sends.
        timeout(PATIENCE, client.type_in(&text)).await.unwrap();
    }
    client.close_stdin().await;
    let log = node.path("logs/web/talkative.log");
    eventually("the container's last line is logged", async || {
        last_bytes(&log, 5).is_ok_and(|bytes| bytes == b" end\n")
    })
    .await;
    let text = std::fs::read_to_string(&log).unwrap();
    let numbers = text
        .lines()
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u32>().ok());
    assert!(numbers.eq(0..LINES), "the log is not complete");
    client.end().await;
    let notice = client.heard("stderr");
    assert!(notice.contains("too slow"), "nothing says that output is missing");
    assert!(client.bytes("stdout") < 16 * LINES as usize);
}
