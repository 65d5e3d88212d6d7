//! Exec over WebSocket: the channel protocols.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use super::{
    ALL, OUTPUT, TERMINAL,
    client::{exit_code, websocket},
    exec_url, running,
};
use crate::support::{PATIENCE, eventually};

type Socket = WebSocketStream<TcpStream>;

/// What came on the five channels until it is so, or to the end.
async fn hear(socket: &mut Socket, heard: &mut [Vec<u8>; 5], enough: impl Fn(&[Vec<u8>; 5]) -> bool) {
    while !enough(heard) {
        match timeout(PATIENCE, socket.next()).await.unwrap() {
            Some(Ok(Message::Binary(bytes))) => {
                heard[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
            }
            Some(Ok(Message::Text(text))) => {
                let channel = usize::from(text.as_bytes()[0] - b'0');
                heard[channel].extend_from_slice(&BASE64.decode(&text.as_bytes()[1..]).unwrap());
            }
            Some(Ok(Message::Close(_))) | None => return,
            Some(Ok(_)) => {}
            Some(Err(error)) => panic!("{error}"),
        }
    }
}

async fn end(socket: &mut Socket, heard: &mut [Vec<u8>; 5]) -> i32 {
    hear(socket, heard, |_| false).await;
    exit_code(&serde_json::from_slice(&heard[3]).unwrap())
}

fn binary(bytes: &[u8]) -> Message {
    Message::Binary(bytes.to_vec().into())
}

#[tokio::test(flavor = "multi_thread")]
async fn version_5_ends_stdin() {
    let (node, pod, container) = running().await;
    let script = "cat; echo end >&2; exit 9";
    let url = exec_url(&node, &container, &["sh", "-c", script], ALL)
        .await
        .unwrap();
    let mut socket = websocket(&url, "v5.channel.k8s.io").await.unwrap();
    let mut heard = Default::default();
    socket.send(binary(b"\0typed")).await.unwrap();
    hear(&mut socket, &mut heard, |heard| heard[1] == b"typed").await;
    socket.send(binary(&[255, 0])).await.unwrap();
    assert_eq!(end(&mut socket, &mut heard).await, 9);
    assert_eq!(heard[2], b"end\n");
    let machine = node.host.machine(&pod).unwrap();
    eventually("the command is gone from the guest", async || {
        machine.agent().execs(&container).is_empty()
    })
    .await;
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
        let mut socket = websocket(&url, protocol).await.unwrap();
        let mut heard = Default::default();
        assert_eq!(end(&mut socket, &mut heard).await, 4, "{protocol}");
        assert_eq!(heard[1].len(), TOTAL, "{protocol}");
    }
    let url = exec_url(&node, &container, &["false"], OUTPUT).await.unwrap();
    let mut socket = websocket(&url, "channel.k8s.io").await.unwrap();
    let mut heard = Default::default();
    hear(&mut socket, &mut heard, |_| false).await;
    assert!(heard[3].ends_with(b"exit code: 1"), "before version 4 it is text");
}

#[tokio::test(flavor = "multi_thread")]
async fn base64_is_read_as_well() {
    let (node, _, container) = running().await;
    let url = exec_url(&node, &container, &["cat"], ALL).await.unwrap();
    let mut socket = websocket(&url, "v4.base64.channel.k8s.io").await.unwrap();
    let text = format!("0{}", BASE64.encode("typed"));
    socket.send(Message::Text(text.into())).await.unwrap();
    let mut heard = Default::default();
    hear(&mut socket, &mut heard, |heard| heard[1] == b"typed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_pings_and_goodbyes_are_understood() {
    let (node, pod, container) = running().await;
    let url = exec_url(&node, &container, &["cat"], TERMINAL).await.unwrap();
    let mut socket = websocket(&url, "v5.channel.k8s.io").await.unwrap();
    let machine = node.host.machine(&pod).unwrap();
    eventually("the command runs", async || {
        !machine.agent().execs(&container).is_empty()
    })
    .await;
    let exec = machine.agent().execs(&container).remove(0);
    let size = binary(b"\x04{\"Width\":90,\"Height\":20}");
    socket.send(size).await.unwrap();
    eventually("the terminal has its size", async || {
        machine.agent().sizes(&container, &exec) == [(90, 20)]
    })
    .await;
    socket.send(Message::Ping("beat".into())).await.unwrap();
    loop {
        let message = timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
        if let Message::Pong(beat) = message {
            assert_eq!(beat, "beat");
            break;
        }
    }
    socket.close(None).await.unwrap();
    eventually("the command is gone from the guest", async || {
        machine.agent().execs(&container).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_long_ends_the_connection() {
    let (node, pod, container) = running().await;
    let url = exec_url(&node, &container, &["cat"], ALL).await.unwrap();
    let mut socket = websocket(&url, "v5.channel.k8s.io").await.unwrap();
    socket.send(binary(&vec![0; 2 << 20])).await.ok();
    while timeout(PATIENCE, socket.next())
        .await
        .unwrap()
        .is_some_and(|message| message.is_ok())
    {}
    let machine = node.host.machine(&pod).unwrap();
    eventually("the command is gone from the guest", async || {
        machine.agent().execs(&container).is_empty()
    })
    .await;
}
