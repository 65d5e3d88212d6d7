//! Port-forward: connections to servers "inside the pod" (a fake guest's loopback interface is the test's own).

use cri_server::streaming::testing::{ClientEvent, SpdyClient};
use futures_util::{SinkExt as _, StreamExt as _};
use proto::cri::v1::NamespaceMode;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;
use tonic::Code;

use super::{
    client::{spdy, tunnelled, websocket},
    forward_url, running,
};
use crate::{
    host_pod::{self, node_with_host_pods},
    support::{PATIENCE, TestNode, refused},
};

pub(super) const VERSION: &[&str] = &["portforward.k8s.io"];

/// One connection of a client: its data and its error stream.
pub(super) struct Forward {
    pub(super) data: u32,
    error: u32,
}

/// Opens a pair of streams as kubectl does.
pub(super) async fn open<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    client: &mut SpdyClient<R, W>,
    port: u16,
    request: &str,
) -> Forward {
    let port = port.to_string();
    let mut ids = Vec::new();
    for kind in ["error", "data"] {
        let headers = [("streamType", kind), ("port", &port), ("requestID", request)];
        ids.push(client.open(&headers).await.unwrap());
    }
    client.data(ids[0], b"", true).await.unwrap();
    Forward {
        error: ids[0],
        data: ids[1],
    }
}

/// Everything that comes on `stream` until its end; on other streams nothing may come.
async fn read_to_end<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    client: &mut SpdyClient<R, W>,
    stream: u32,
) -> Vec<u8> {
    let mut received = Vec::new();
    loop {
        match timeout(PATIENCE, client.next()).await.unwrap().unwrap() {
            Some(ClientEvent::Data(of, bytes, fin)) if of == stream => {
                received.extend_from_slice(&bytes);
                if fin {
                    return received;
                }
            }
            Some(ClientEvent::Data(of, bytes, _)) => {
                assert!(
                    bytes.is_empty(),
                    "{:?} on stream {of}",
                    bytes.escape_ascii().to_string()
                );
            }
            Some(ClientEvent::Reset(of)) => assert_ne!(of, stream),
            Some(_) => {}
            None => panic!("the server has gone"),
        }
    }
}

pub(super) async fn server() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

pub(super) async fn accept(listener: &TcpListener) -> TcpStream {
    timeout(PATIENCE, listener.accept()).await.unwrap().unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_stand_side_by_side_and_a_refused_one_says_why() {
    let (node, pod, _) = running().await;
    let (listener, port) = server().await;
    let (closed, closed_port) = server().await;
    drop(closed);
    let url = forward_url(&node, &pod, &[]).await.unwrap();
    let mut client = spdy(&url, VERSION).await.unwrap();
    let one = open(&mut client, port, "0").await;
    let mut first = accept(&listener).await;
    let refused = open(&mut client, closed_port, "1").await;
    let text = String::from_utf8(read_to_end(&mut client, refused.error).await).unwrap();
    assert!(
        text.contains(&closed_port.to_string()) && text.contains("refused"),
        "{text}"
    );
    let other = open(&mut client, port, "2").await;
    let mut second = accept(&listener).await;
    client.data(other.data, b"to the second", true).await.unwrap();
    client.data(one.data, b"to the first", true).await.unwrap();
    let mut heard = String::new();
    first.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "to the first");
    heard.clear();
    second.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "to the second");
    // The client's half is closed, the server's is not.
    first.write_all(b"from the first").await.unwrap();
    drop(first);
    assert_eq!(read_to_end(&mut client, one.data).await, b"from the first");
    second.write_all(b"from the second").await.unwrap();
    drop(second);
    assert_eq!(read_to_end(&mut client, other.data).await, b"from the second");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_or_a_client_that_is_thrown_away_ends_its_connections() {
    let (node, pod, _) = running().await;
    let (listener, port) = server().await;
    let url = forward_url(&node, &pod, &[]).await.unwrap();
    let mut client = spdy(&url, VERSION).await.unwrap();
    let one = open(&mut client, port, "0").await;
    let mut first = accept(&listener).await;
    open(&mut client, port, "1").await;
    let mut second = accept(&listener).await;
    client.reset(one.data).await.unwrap();
    let ended = |stream| async move { timeout(PATIENCE, read_end(stream)).await.unwrap() };
    ended(&mut first).await;
    drop(client);
    ended(&mut second).await;
}

/// Returns at the end, in order or not.
async fn read_end(stream: &mut TcpStream) {
    stream.read_to_end(&mut Vec::new()).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_make_no_pair_are_refused_or_time_out() {
    let (node, pod, _) = running().await;
    let url = forward_url(&node, &pod, &[]).await.unwrap();
    let mut client = spdy(&url, VERSION).await.unwrap();
    for headers in [
        &[("streamType", "data")][..],
        &[("streamType", "data"), ("port", "0")],
        &[("streamType", "data"), ("port", "65536")],
        &[("streamType", "other"), ("port", "80")],
    ] {
        let id = client.open(headers).await.unwrap();
        let answer = timeout(PATIENCE, client.next()).await.unwrap().unwrap();
        assert_eq!(answer, Some(ClientEvent::Reset(id)), "{headers:?}");
    }
    let headers = [("streamType", "error"), ("port", "80"), ("requestID", "7")];
    let lonely = client.open(&headers).await.unwrap();
    let text = String::from_utf8(read_to_end(&mut client, lonely).await).unwrap();
    assert!(text.contains("timed out"), "{text}");
}

/// Halves that the client breaks off count as well: they wait for the other half.
#[tokio::test(flavor = "multi_thread")]
async fn halves_of_pairs_have_a_bound() {
    let node = TestNode::start_with(|config| config.streaming.creation_s = 3600).await;
    let pod = node.run_pod("web").await.unwrap();
    let url = forward_url(&node, &pod, &[]).await.unwrap();
    let mut client = spdy(&url, VERSION).await.unwrap();
    let mut accepted = 0;
    loop {
        let request = accepted.to_string();
        let headers = [("streamType", "error"), ("port", "80"), ("requestID", &request)];
        let id = client.open(&headers).await.unwrap();
        match timeout(PATIENCE, client.next()).await.unwrap().unwrap() {
            Some(ClientEvent::Accepted(of)) => assert_eq!(of, id),
            Some(ClientEvent::Reset(of)) => {
                assert_eq!((of, accepted), (id, 256));
                return;
            }
            other => panic!("{other:?}"),
        }
        client.reset(id).await.unwrap();
        accepted += 1;
        assert!(accepted <= 256, "one more is taken");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnelled_connection_is_one() {
    let (node, pod, _) = running().await;
    let (listener, port) = server().await;
    let url = forward_url(&node, &pod, &[]).await.unwrap();
    let (mut client, _carried) = tunnelled(&url).await;
    let forward = open(&mut client, port, "0").await;
    let mut server = accept(&listener).await;
    client.data(forward.data, b"question", true).await.unwrap();
    let mut heard = String::new();
    server.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "question");
    server.write_all(&vec![7; 1 << 20]).await.unwrap();
    drop(server);
    assert_eq!(read_to_end(&mut client, forward.data).await.len(), 1 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_on_the_host_is_reached_through_its_shim() {
    let node = node_with_host_pods().await;
    let wish = host_pod::pod(&node, "proxy", NamespaceMode::Node, NamespaceMode::Pod);
    let pod = node.run_pod_with(wish).await.unwrap();
    let (listener, port) = server().await;
    let url = forward_url(&node, &pod, &[]).await.unwrap();
    let mut client = spdy(&url, VERSION).await.unwrap();
    let forward = open(&mut client, port, "0").await;
    accept(&listener).await.write_all(b"answer").await.unwrap();
    assert_eq!(read_to_end(&mut client, forward.data).await, b"answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_channels_come_in_pairs() {
    let (node, pod, _) = running().await;
    let (listener, port) = server().await;
    let (closed, closed_port) = server().await;
    drop(closed);
    let url = forward_url(&node, &pod, &[port.into(), closed_port.into()])
        .await
        .unwrap();
    let mut socket = websocket(&url, "v4.channel.k8s.io").await.unwrap();
    let mut heard = vec![Vec::new(); 4];
    let mut server = accept(&listener).await;
    let data = Message::Binary(b"\0question".to_vec().into());
    socket.send(data).await.unwrap();
    let mut question = [0; 8];
    server.read_exact(&mut question).await.unwrap();
    assert_eq!(&question, b"question");
    server.write_all(b"answer").await.unwrap();
    while heard[0].len() < 2 + 6 || !heard[3].ends_with(b")") {
        let message = timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
        let bytes = message.into_data();
        heard[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
    }
    let expected = |port: u16, rest: &[u8]| [&port.to_le_bytes(), rest].concat();
    assert_eq!(heard[0], expected(port, b"answer"));
    assert_eq!(heard[1], expected(port, b""));
    assert_eq!(heard[2], expected(closed_port, b""));
    assert!(String::from_utf8_lossy(&heard[3][2..]).contains("refused"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_by_field() {
    let (node, pod, _) = running().await;
    for port in [0, -1, 65_536] {
        refused(
            forward_url(&node, &pod, &[port]).await,
            Code::InvalidArgument,
            "port",
        );
    }
    refused(
        forward_url(&node, "unknown", &[]).await,
        Code::NotFound,
        "unknown",
    );
    node.stop_pod(&pod).await.unwrap();
    refused(
        forward_url(&node, &pod, &[]).await,
        Code::FailedPrecondition,
        "machine",
    );
}
