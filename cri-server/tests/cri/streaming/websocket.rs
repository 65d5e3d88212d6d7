//! Exec over WebSocket: the channel protocols.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::{
    ALL, OUTPUT, TERMINAL,
    channels::{Channels, binary},
    exec_url, forgotten, running,
};
use crate::support::{PATIENCE, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn version_5_ends_stdin() {
    let (node, pod, container) = running().await;
    let script = "cat; echo end >&2; exit 9";
    let url = exec_url(&node, &container, &["sh", "-c", script], ALL)
        .await
        .unwrap();
    let mut client = Channels::open(&url, "v5.channel.k8s.io").await;
    client.send(0, b"typed").await;
    client.until(|heard| heard[1] == b"typed").await;
    client.send(255, &[0]).await;
    assert_eq!(client.exit_code().await, 9);
    assert_eq!(client.heard[2], b"end\n");
    forgotten(&node, &pod, &container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_comes_whole_in_every_version() {
    const TOTAL: usize = 3 << 20;
    let (node, _, container) = running().await;
    for protocol in [
        "v5.channel.k8s.io",
        "v4.channel.k8s.io",
        "v4.base64.channel.k8s.io",
    ] {
        let script = format!("flood {TOTAL}; exit 4");
        let url = exec_url(&node, &container, &["sh", "-c", &script], OUTPUT)
            .await
            .unwrap();
        let mut client = Channels::open(&url, protocol).await;
        assert_eq!(client.exit_code().await, 4, "{protocol}");
        assert_eq!(client.heard[1].len(), TOTAL, "{protocol}");
    }
    let url = exec_url(&node, &container, &["false"], OUTPUT).await.unwrap();
    let mut client = Channels::open(&url, "channel.k8s.io").await;
    client.until(|_| false).await;
    assert!(
        client.heard[3].ends_with(b"exit code: 1"),
        "before version 4 it is text"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn base64_is_read_as_well() {
    let (node, _, container) = running().await;
    let url = exec_url(&node, &container, &["cat"], ALL).await.unwrap();
    let mut client = Channels::open(&url, "v4.base64.channel.k8s.io").await;
    let text = format!("0{}", BASE64.encode("typed"));
    client.socket.send(Message::Text(text.into())).await.unwrap();
    client.until(|heard| heard[1] == b"typed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_pings_and_goodbyes_are_understood() {
    let (node, pod, container) = running().await;
    let url = exec_url(&node, &container, &["cat"], TERMINAL).await.unwrap();
    let mut client = Channels::open(&url, "v5.channel.k8s.io").await;
    let machine = node.host.machine(&pod).unwrap();
    eventually("the command runs", async || {
        !machine.agent().execs(&container).is_empty()
    })
    .await;
    let exec = machine.agent().execs(&container).remove(0);
    client.send(4, br#"{"Width":90,"Height":20}"#).await;
    eventually("the terminal has its size", async || {
        machine.agent().sizes(&container, &exec) == [(90, 20)]
    })
    .await;
    client.socket.send(Message::Ping("beat".into())).await.unwrap();
    loop {
        let message = timeout(PATIENCE, client.socket.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        if let Message::Pong(beat) = message {
            assert_eq!(beat, "beat");
            break;
        }
    }
    client.socket.close(None).await.unwrap();
    forgotten(&node, &pod, &container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_long_ends_the_connection() {
    let (node, pod, container) = running().await;
    let url = exec_url(&node, &container, &["cat"], ALL).await.unwrap();
    let mut client = Channels::open(&url, "v5.channel.k8s.io").await;
    let too_long = binary(0, &vec![0; 2 << 20]);
    client.socket.send(too_long).await.ok();
    while timeout(PATIENCE, client.socket.next())
        .await
        .unwrap()
        .is_some_and(|message| message.is_ok())
    {}
    forgotten(&node, &pod, &container).await;
}
