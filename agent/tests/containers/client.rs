//! The daemon's side of both protocols, over socket pairs into the agent.

use std::pin::Pin;
use std::task::{Context, Poll};

use agent::AgentHandle;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use proto::agent::v1::agent_client::AgentClient;
use proto::agent::v1::{AgentError, ErrorCode};
use proto::stdio::{FRAME_HEADER_LEN, FrameHeader, Hello, Role, Status as StdioStatus, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tonic::Status;
use tonic::body::Body;

/// One HTTP/2 connection as a tower service.
#[derive(Debug, Clone)]
pub(crate) struct Connection(SendRequest<Body>);

type Request = hyper::Request<Body>;
type Response = hyper::Response<Incoming>;
type Answer = Pin<Box<dyn Future<Output = Result<Response, hyper::Error>> + Send>>;

impl tower::Service<Request> for Connection {
    type Response = Response;
    type Error = hyper::Error;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Answer {
        Box::pin(self.0.send_request(request))
    }
}

#[derive(Clone)]
struct OnAgent(AgentHandle);

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for OnAgent {
    fn execute(&self, task: F) {
        self.0.spawn(async move {
            task.await;
        });
    }
}

pub(crate) async fn rpc(agent: &AgentHandle) -> AgentClient<Connection> {
    let (ours, theirs) = UnixStream::pair().expect("socket pair");
    agent.serve_rpc(theirs);
    let (sender, connection) = http2::handshake(OnAgent(agent.clone()), TokioIo::new(ours))
        .await
        .expect("HTTP/2 handshake");
    agent.spawn(async move {
        connection.await.ok();
    });
    AgentClient::with_origin(Connection(sender), "http://agent".parse().expect("a constant"))
        .max_decoding_message_size(64 << 20)
}

/// Everything that a process wrote.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) async fn connect(
    agent: &AgentHandle,
    role: Role,
    container: &str,
    exec: &str,
) -> (UnixStream, StdioStatus) {
    let (mut ours, theirs) = UnixStream::pair().expect("socket pair");
    agent.serve_stdio(theirs);
    let hello = Hello {
        role,
        offset: 0,
        container_id: container.to_owned(),
        exec_id: exec.to_owned(),
    };
    ours.write_all(&hello.encode().expect("ids are short"))
        .await
        .expect("send hello");
    let status = StdioStatus::decode(ours.read_u8().await.expect("status")).expect("status byte");
    (ours, status)
}

/// Reads until all streams have ended, acknowledging as a daemon does.
pub(crate) async fn output(agent: &AgentHandle, container: &str, exec: &str) -> Output {
    let (mut connection, status) = connect(agent, Role::Output, container, exec).await;
    assert_eq!(status, StdioStatus::Ok, "output of {container} {exec}");
    let mut output = Output::default();
    let mut stored = 0u64;
    let mut header = [0; FRAME_HEADER_LEN];
    while connection.read_exact(&mut header).await.is_ok() {
        let header = FrameHeader::decode(header).expect("frame header");
        let mut bytes = vec![0; header.len as usize];
        connection.read_exact(&mut bytes).await.expect("frame");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match header.stream {
            Stream::Stdout => output.stdout.push_str(&text),
            Stream::Stderr => output.stderr.push_str(&text),
        }
        stored += bytes.len() as u64;
        connection.write_all(&stored.to_le_bytes()).await.ok();
    }
    output
}

/// The typed error of a refused call.
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> (ErrorCode, i32, String) {
    let status = answer.expect_err("the call was to be refused");
    let error = AgentError::decode(status.details()).expect("typed details");
    (error.code(), error.errno, error.message)
}
