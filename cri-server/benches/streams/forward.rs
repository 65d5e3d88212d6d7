//! Port-forward and exec over SPDY, from a client's socket to the fake guest and back.

use std::time::Instant;

use cri_server::streaming::testing::{ClientEvent, SpdyClient};
use proto::cri::v1 as cri;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::{rate, support::TestNode};

const PIECE: usize = 32 * 1024;

type Spdy = SpdyClient<OwnedReadHalf, OwnedWriteHalf>;

/// `bytes` to a server in the pod, then as many from it.
pub(crate) async fn measure(node: &TestNode, pod: &str, bytes: usize) -> Value {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let request = cri::PortForwardRequest {
        pod_sandbox_id: pod.to_owned(),
        port: Vec::new(),
    };
    let answer = node.runtime.clone().port_forward(request).await.unwrap();
    let mut client = connect(&answer.into_inner().url, "portforward.k8s.io").await;
    let stream = pair(&mut client, port, "0").await;
    let mut server = listener.accept().await.unwrap().0;
    let began = Instant::now();
    let send = async {
        for _ in 0..bytes / PIECE {
            client.data(stream, &[7; PIECE], false).await.unwrap();
        }
        client.data(stream, b"", true).await.unwrap();
    };
    let receive = async {
        let mut buffer = vec![0; PIECE];
        while server.read(&mut buffer).await.unwrap() > 0 {}
    };
    tokio::join!(send, receive);
    let there = rate(bytes, began.elapsed());
    let stream = pair(&mut client, port, "1").await;
    let mut server = listener.accept().await.unwrap().0;
    let began = Instant::now();
    let send = async move {
        for _ in 0..bytes / PIECE {
            server.write_all(&[7; PIECE]).await.unwrap();
        }
    };
    tokio::join!(send, read_to_end(&mut client, stream));
    json!({ "to_the_pod": there, "from_the_pod": rate(bytes, began.elapsed()) })
}

/// Output of a command; the fake guest's processes write a line at a time.
pub(crate) async fn exec(node: &TestNode, container: &str, bytes: usize) -> Value {
    let request = cri::ExecRequest {
        container_id: container.to_owned(),
        cmd: vec!["flood".to_owned(), bytes.to_string()],
        stdout: true,
        ..cri::ExecRequest::default()
    };
    let answer = node.runtime.clone().exec(request).await.unwrap();
    let mut client = connect(&answer.into_inner().url, "v4.channel.k8s.io").await;
    client.open(&[("streamType", "error")]).await.unwrap();
    let stdout = client.open(&[("streamType", "stdout")]).await.unwrap();
    let began = Instant::now();
    read_to_end(&mut client, stdout).await;
    rate(bytes, began.elapsed())
}

/// A client after its upgrade.
async fn connect(url: &str, protocol: &str) -> Spdy {
    let (address, path) = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
        .unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Byte by byte: what follows belongs to the other protocol.
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    let (reader, writer) = stream.into_split();
    SpdyClient::new(reader, writer)
}

/// The data stream of a forwarded connection.
async fn pair(client: &mut Spdy, port: u16, request: &str) -> u32 {
    let port = port.to_string();
    let headers = |kind| {
        [
            ("streamType", kind),
            ("port", port.as_str()),
            ("requestID", request),
        ]
    };
    let error = client.open(&headers("error")).await.unwrap();
    client.data(error, b"", true).await.unwrap();
    client.open(&headers("data")).await.unwrap()
}

async fn read_to_end(client: &mut Spdy, stream: u32) {
    loop {
        match client.next().await.unwrap() {
            Some(ClientEvent::Data(of, _, true)) if of == stream => return,
            Some(_) => {}
            None => panic!("the server has gone"),
        }
    }
}
