//! Clients that call the socket by other names than "localhost", at the level of what they send: no client library of Rust
//! lets its user send an authority that h2 would refuse.

use std::process::Command;

use prost::Message as _;
use proto::cri::v1::VersionResponse;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};

use crate::support::{PATIENCE, TestNode};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PROTOCOL_ERROR: u32 = 1;

/// A connection on which frames are written by hand.
struct Wire {
    stream: UnixStream,
    next: u8,
}

/// How a call ended.
#[derive(Debug)]
enum Outcome {
    Answered(VersionResponse),
    /// RST_STREAM or GOAWAY, with its code.
    Refused(u32),
}

impl Wire {
    async fn connect(node: &TestNode) -> Self {
        let mut stream = UnixStream::connect(node.path("run/clearpod.sock")).await.unwrap();
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        let mut wire = Self { stream, next: 1 };
        wire.send(&frame(SETTINGS, 0, 0, &[])).await;
        wire
    }

    async fn send(&mut self, frames: &[u8]) {
        self.stream.write_all(frames).await.unwrap();
    }

    /// The call Version with these fields.
    async fn version(&mut self, fields: &[u8]) -> Outcome {
        let stream = self.next;
        self.next += 2;
        let headers = frame(HEADERS, END_HEADERS, stream, fields);
        // An empty message: not compressed, no bytes.
        let message = frame(DATA, END_STREAM, stream, &[0; 5]);
        // In one piece: after headers that it refuses the server takes nothing more, and may be gone.
        self.send(&[headers, message].concat()).await;
        timeout(PATIENCE, self.outcome(stream))
            .await
            .expect("an outcome of the call")
    }

    async fn outcome(&mut self, stream: u8) -> Outcome {
        let mut message = Vec::new();
        loop {
            let mut header = [0; 9];
            self.stream.read_exact(&mut header).await.unwrap();
            let [a, b, c, kind, flags, .., on] = header;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]).try_into().unwrap()];
            self.stream.read_exact(&mut payload).await.unwrap();
            match kind {
                DATA if on == stream => message.extend_from_slice(&payload),
                HEADERS if on == stream && flags & END_STREAM != 0 => {
                    return Outcome::Answered(VersionResponse::decode(&message[5..]).unwrap());
                }
                RST_STREAM if on == stream => return Outcome::Refused(code(&payload)),
                GOAWAY => return Outcome::Refused(code(&payload[4..])),
                _ => {}
            }
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

fn code(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

/// What a gRPC client sends first; all but the authority given goes into the table of fields, oldest first: path,
/// content-type, te.
fn fields(authority: &[u8]) -> Vec<u8> {
    let path = "/runtime.v1.RuntimeService/Version";
    let mut fields = vec![0x83, 0x86, 0x44, u8::try_from(path.len()).unwrap()];
    fields.extend_from_slice(path.as_bytes());
    fields.extend_from_slice(authority);
    fields.extend_from_slice(b"\x5f\x10application/grpc\x40\x02te\x08trailers");
    fields
}

/// A value as a literal that enters the table, as clients send their authority.
fn indexed(authority: &str) -> Vec<u8> {
    [
        &[0x41, u8::try_from(authority.len()).unwrap()][..],
        authority.as_bytes(),
    ]
    .concat()
}

fn answered(outcome: Outcome, what: &str) {
    match outcome {
        Outcome::Answered(version) => assert_eq!(version.runtime_name, "clearpod", "{what}"),
        Outcome::Refused(code) => panic!("{what}: refused with {code}"),
    }
}

#[tokio::test]
async fn every_client_s_authority_is_taken_on_each_call_of_its_connection() {
    let node = TestNode::start().await;
    let long = format!("%2F{}", "d%2F".repeat(20));
    let authorities = [
        ("kubelet, crictl", "localhost"),
        ("k3s", "%2Frun%2Fk3s%2Fcontainerd%2Fcontainerd.sock"),
        ("grpc of C++ and Python", "%2Frun%2Fclearpod%2Fclearpod.sock"),
        ("grpcurl", "/run/clearpod/clearpod.sock"),
        ("the target itself", "unix:///run/clearpod/clearpod.sock"),
        ("a long path", &long),
    ];
    for (client, authority) in authorities {
        let mut wire = Wire::connect(&node).await;
        answered(wire.version(&fields(&indexed(authority))).await, client);
        // By their places in the table: path, authority, content-type, te.
        answered(wire.version(&[0x83, 0x86, 0xc1, 0xc0, 0xbf, 0xbe]).await, client);
    }
}

#[tokio::test]
async fn an_empty_authority_and_none_are_taken() {
    let node = TestNode::start().await;
    let mut wire = Wire::connect(&node).await;
    for (what, authority) in [
        ("none", &[][..]),
        ("indexed", &[0x81]),
        ("literal", &[0x01, 0x00]),
    ] {
        answered(wire.version(&fields(authority)).await, what);
    }
}

#[tokio::test]
async fn what_is_malformed_otherwise_is_refused_and_the_next_client_served() {
    let node = TestNode::start().await;
    let mut wire = Wire::connect(&node).await;
    let twice = [indexed("/run/x.sock"), indexed("localhost")].concat();
    let outcome = wire.version(&fields(&twice)).await;
    assert!(matches!(outcome, Outcome::Refused(PROTOCOL_ERROR)), "{outcome:?}");
    answered(
        wire.version(&fields(&indexed("/run/x.sock"))).await,
        "the same connection",
    );
    let outcome = wire
        .version(&[0x83, 0x86, 0x41, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff])
        .await;
    // What h2 says of a header block that cannot be decoded, and with it the connection ends.
    assert!(matches!(outcome, Outcome::Refused(PROTOCOL_ERROR)), "{outcome:?}");
    let mut wire = Wire::connect(&node).await;
    answered(
        wire.version(&fields(&indexed("/run/x.sock"))).await,
        "another connection",
    );
}

/// gRPC's C core under Python, with its own idea of a socket's authority and with those that it can be told.
/// CLEARPOD_GRPCIO is what `e2e/tools/grpcio` prints.
#[tokio::test]
async fn grpcio_is_served() {
    const SCRIPT: &str = r#"
import sys, grpc
for authority in None, "%2Frun%2Fx.sock", "/run/x.sock", "unix:///run/x.sock", "":
    options = [] if authority is None else [("grpc.default_authority", authority)]
    with grpc.insecure_channel("unix:" + sys.argv[1], options=options) as channel:
        version = channel.unary_unary("/runtime.v1.RuntimeService/Version")
        for _ in range(3):
            assert b"clearpod" in version(b"", timeout=30), options
"#;
    let Some(grpcio) = std::env::var_os("CLEARPOD_GRPCIO") else {
        eprintln!("SKIPPED: grpcio_is_served: CLEARPOD_GRPCIO names no directory with gRPC for Python");
        return;
    };
    let node = TestNode::start().await;
    let socket = node.path("run/clearpod.sock");
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", grpcio).args(["-c", SCRIPT]).arg(socket);
    let output = tokio::task::spawn_blocking(move || python.output())
        .await
        .unwrap()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
