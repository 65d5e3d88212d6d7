//! Clients as kubelet and crictl are: an HTTP upgrade, then SPDY streams or WebSocket channels.

use std::collections::{BTreeMap, BTreeSet};

use cri_server::streaming::testing::{ClientEvent, SpdyClient};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    net::{
        TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest as _},
};

use super::Wish;
use crate::support::PATIENCE;

pub(super) type Spdy = SpdyClient<OwnedReadHalf, OwnedWriteHalf>;

/// An answer that is no upgrade.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) head: String,
}

fn split_url(url: &str) -> (&str, &str) {
    let rest = url.strip_prefix("http://").unwrap();
    rest.split_once('/').unwrap()
}

async fn connect(address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    // Small, so that a client that does not read is soon felt.
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    socket.connect(address.parse().unwrap()).await.unwrap()
}

/// Sends a request with these header lines.
pub(super) async fn request(url: &str, headers: &[&str]) -> (TcpStream, u16, String) {
    let (address, path) = split_url(url);
    let mut stream = connect(address).await;
    let mut head = format!("POST /{path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n");
    for header in headers {
        head += &format!("{header}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Byte by byte: what follows belongs to the other protocol.
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (stream, status, answer)
}

pub(super) async fn spdy(url: &str, versions: &[&str]) -> Result<Spdy, Refused> {
    let versions: Vec<String> = versions
        .iter()
        .map(|version| format!("X-Stream-Protocol-Version: {version}"))
        .collect();
    let mut headers = vec!["Connection: Upgrade", "Upgrade: SPDY/3.1"];
    headers.extend(versions.iter().map(String::as_str));
    let (stream, status, head) = request(url, &headers).await;
    if status != 101 {
        return Err(Refused { status, head });
    }
    let (reader, writer) = stream.into_split();
    Ok(SpdyClient::new(reader, writer))
}

pub(super) async fn websocket(url: &str, protocol: &str) -> Result<WebSocketStream<TcpStream>, Error> {
    let (address, _) = split_url(url);
    let stream = connect(address).await;
    let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
    if !protocol.is_empty() {
        let value = protocol.parse().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", value);
    }
    client_async(request, stream).await.map(|(socket, _)| socket)
}

/// A SPDY connection inside of a WebSocket, as kubectl forwards ports; what carries it ends with the second value.
pub(super) async fn tunnelled(
    url: &str,
) -> (
    SpdyClient<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>,
    JoinSet<()>,
) {
    let socket = websocket(url, "SPDY/3.1+portforward.k8s.io").await.unwrap();
    let (mut sink, mut stream) = socket.split();
    let (near, far) = duplex(64 * 1024);
    let (mut far_reader, mut far_writer) = split(far);
    let mut carried = JoinSet::new();
    carried.spawn(async move {
        let mut buffer = vec![0; 32 * 1024];
        while let Ok(read) = far_reader.read(&mut buffer).await {
            let message = Message::Binary(buffer[..read].to_vec().into());
            if read == 0 || sink.send(message).await.is_err() {
                return;
            }
        }
    });
    carried.spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            if far_writer.write_all(&message.into_data()).await.is_err() {
                return;
            }
        }
    });
    let (reader, writer) = split(near);
    (SpdyClient::new(reader, writer), carried)
}

/// A client of exec or attach, and what it has heard.
pub(super) struct Command {
    pub(super) spdy: Spdy,
    streams: BTreeMap<&'static str, u32>,
    heard: BTreeMap<u32, Vec<u8>>,
    pub(super) ended: BTreeSet<u32>,
    pub(super) gone: bool,
}

impl Command {
    /// With version 4, as crictl does it.
    pub(super) async fn open(url: &str, wish: Wish) -> Self {
        Self::open_version(url, wish, "v4.channel.k8s.io").await
    }

    pub(super) async fn open_version(url: &str, wish: Wish, version: &str) -> Self {
        let mut spdy = spdy(url, &[version]).await.unwrap();
        let mut streams = BTreeMap::new();
        for (wanted, kind) in [
            (true, "error"),
            (wish.stdin, "stdin"),
            (wish.stdout, "stdout"),
            (wish.stderr, "stderr"),
            (wish.tty && version != "v2.channel.k8s.io", "resize"),
        ] {
            if wanted {
                let id = spdy.open(&[("streamType", kind)]).await.unwrap();
                streams.insert(kind, id);
                let answer = timeout(PATIENCE, spdy.next()).await.unwrap();
                assert_eq!(answer.unwrap(), Some(ClientEvent::Accepted(id)));
            }
        }
        Self {
            spdy,
            streams,
            heard: BTreeMap::new(),
            ended: BTreeSet::new(),
            gone: false,
        }
    }

    pub(super) fn id(&self, stream: &str) -> u32 {
        self.streams[stream]
    }

    pub(super) async fn type_in(&mut self, text: &str) {
        self.spdy
            .data(self.id("stdin"), text.as_bytes(), false)
            .await
            .unwrap();
    }

    pub(super) async fn close_stdin(&mut self) {
        self.spdy.data(self.id("stdin"), b"", true).await.unwrap();
    }

    pub(super) async fn resize(&mut self, width: u16, height: u16) {
        let size = format!(r#"{{"Width":{width},"Height":{height}}}"#);
        self.spdy
            .data(self.id("resize"), size.as_bytes(), false)
            .await
            .unwrap();
    }

    /// What came on a stream so far.
    pub(super) fn heard(&self, stream: &str) -> String {
        let bytes = self.heard.get(&self.id(stream)).cloned().unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(super) fn bytes(&self, stream: &str) -> usize {
        self.heard.get(&self.id(stream)).map_or(0, Vec::len)
    }

    /// Reads until it is so.
    pub(super) async fn until(&mut self, is_so: impl Fn(&Self) -> bool) {
        while !is_so(self) {
            assert!(!self.gone, "the server has gone: {:?}", self.heard);
            match timeout(PATIENCE, self.spdy.next()).await.unwrap() {
                Ok(Some(ClientEvent::Data(stream, bytes, fin))) => {
                    self.heard.entry(stream).or_default().extend_from_slice(&bytes);
                    if fin {
                        self.ended.insert(stream);
                    }
                }
                Ok(Some(ClientEvent::GoAway) | None) | Err(_) => self.gone = true,
                Ok(Some(_)) => {}
            }
        }
    }

    /// Reads to the end; the error stream's bytes.
    pub(super) async fn end(&mut self) -> String {
        self.until(|command| command.gone).await;
        for stream in ["error", "stdout", "stderr"] {
            if let Some(id) = self.streams.get(stream) {
                assert!(self.ended.contains(id), "{stream} has no end");
            }
        }
        self.heard("error")
    }

    /// As [`Self::end`]; the status that it is.
    pub(super) async fn status(&mut self) -> Value {
        let text = self.end().await;
        serde_json::from_str(&text).unwrap()
    }

    /// As [`Self::end`]; the exit code that it tells.
    pub(super) async fn exit_code(&mut self) -> i32 {
        exit_code(&self.status().await)
    }
}

pub(super) fn exit_code(status: &Value) -> i32 {
    if status["status"] == "Success" {
        return 0;
    }
    assert_eq!(status["reason"], "NonZeroExitCode", "{status}");
    let cause = &status["details"]["causes"][0];
    assert_eq!(cause["reason"], "ExitCode");
    cause["message"].as_str().unwrap().parse().unwrap()
}
