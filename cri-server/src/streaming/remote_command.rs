//! The streams of exec and attach: which ones a client has to open, and how it is told what became of its command.

use std::time::Duration;

use bytes::Bytes;
use proto::cri::v1 as cri;
use serde_json::json;
use tokio::time::timeout;

use super::{
    connection::Line,
    spdy::{NewStream, Session},
    stream::{Gone, Incoming, Outgoing},
    websocket::{Channels, Codec, Socket},
};
use crate::sandbox::RequestError;

/// Channels of a WebSocket, by number.
mod channel {
    pub(super) const STDIN: u8 = 0;
    pub(super) const STDOUT: u8 = 1;
    pub(super) const STDERR: u8 = 2;
    pub(super) const ERROR: u8 = 3;
    pub(super) const RESIZE: u8 = 4;
}

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) terminal: bool,
}

/// A client with its streams.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) stdin: Option<Incoming>,
    pub(super) resize: Option<Incoming>,
    pub(super) output: ClientOutput,
    pub(super) line: Line,
    error: Outgoing,
    /// Statuses are JSON since version 4; before, only failures are told, as text.
    json: bool,
    transport: Transport,
    /// Our halves of streams that only the client sends on: their end would end the stream.
    _kept: Vec<Outgoing>,
}

/// Where a process's output goes. A stream that the client does not want, or has broken off, takes everything.
#[derive(Debug, Default)]
pub(super) struct ClientOutput {
    stdout: Option<Outgoing>,
    stderr: Option<Outgoing>,
}

#[derive(Debug)]
enum Transport {
    Spdy(Session),
    WebSocket(Channels),
}

/// What became of the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Exited(i32),
    Failed(String),
    /// Nobody is there to be told.
    Gone,
}

impl Wanted {
    /// As CRI allows them; Exec and Attach ask in the same order.
    fn checked([stdin, stdout, stderr, terminal]: [bool; 4]) -> Result<Self, RequestError> {
        if terminal && stderr {
            return Err(RequestError::invalid(
                "stderr",
                "a terminal has one output: tty and stderr exclude each other",
            ));
        }
        if !(stdin || stdout || stderr) {
            return Err(RequestError::invalid(
                "stdin",
                "one of stdin, stdout and stderr must be set",
            ));
        }
        Ok(Self {
            stdin,
            stdout,
            stderr,
            terminal,
        })
    }
}

impl TryFrom<&cri::ExecRequest> for Wanted {
    type Error = RequestError;

    fn try_from(request: &cri::ExecRequest) -> Result<Self, RequestError> {
        Self::checked([request.stdin, request.stdout, request.stderr, request.tty])
    }
}

impl TryFrom<&cri::AttachRequest> for Wanted {
    type Error = RequestError;

    fn try_from(request: &cri::AttachRequest) -> Result<Self, RequestError> {
        Self::checked([request.stdin, request.stdout, request.stderr, request.tty])
    }
}

impl Client {
    /// Waits for the streams that `wanted` and `protocol` call for; `None` when they do not come in time.
    pub(super) async fn over_spdy(
        mut session: Session,
        protocol: &str,
        wanted: Wanted,
        line: &Line,
        within: Duration,
    ) -> Option<Self> {
        let resizes = wanted.terminal && protocol != "v2.channel.k8s.io";
        let mut streams = SpdyStreams::default();
        let collected = timeout(within, async {
            while !streams.are_complete(wanted, resizes) {
                streams.add(session.accept().await?, wanted, resizes);
            }
            Some(())
        })
        .await;
        match collected {
            Ok(Some(())) => {}
            Ok(None) => return None,
            Err(_) => {
                tracing::info!(?wanted, "a streaming client did not create its streams in time");
                drop(timeout(within, session.close()).await);
                return None;
            }
        }
        session.refuse_more();
        let (_, error) = streams.error?;
        let mut kept = Vec::new();
        let mut incoming = |pair: Option<(Incoming, Outgoing)>| {
            pair.map(|(incoming, outgoing)| {
                kept.push(outgoing);
                incoming
            })
        };
        Some(Self {
            stdin: incoming(streams.stdin),
            resize: incoming(streams.resize),
            output: ClientOutput {
                stdout: streams.stdout.map(|(_, outgoing)| outgoing),
                stderr: streams.stderr.map(|(_, outgoing)| outgoing),
            },
            line: line.clone(),
            error,
            json: matches!(protocol, "v5.channel.k8s.io" | "v4.channel.k8s.io"),
            transport: Transport::Spdy(session),
            _kept: kept,
        })
    }

    /// Channels need not be created.
    pub(super) async fn over_websocket(
        socket: Socket,
        protocol: &str,
        wanted: Wanted,
        line: &Line,
    ) -> Option<Self> {
        let codec = Codec {
            base64: protocol.contains("base64"),
            close: protocol.starts_with("v5."),
        };
        let mut readable = Vec::new();
        if wanted.stdin {
            readable.push(channel::STDIN);
        }
        if wanted.terminal {
            readable.push(channel::RESIZE);
        }
        let (channels, incoming) = Channels::start(socket, codec, &readable, line);
        let mut incoming = incoming.into_iter();
        let stdin = wanted.stdin.then(|| incoming.next()).flatten();
        let resize = wanted.terminal.then(|| incoming.next()).flatten();
        let outgoing = |channel, wanted: bool| wanted.then(|| channels.outgoing(channel));
        let output = ClientOutput {
            stdout: outgoing(channel::STDOUT, wanted.stdout),
            stderr: outgoing(channel::STDERR, wanted.stderr),
        };
        let error = channels.outgoing(channel::ERROR);
        let first = output
            .stdout
            .as_ref()
            .or(output.stderr.as_ref())
            .unwrap_or(&error);
        if let Outgoing::Channel(first) = first {
            first.greet().await.ok()?;
        }
        Some(Self {
            stdin,
            resize,
            output,
            line: line.clone(),
            error,
            json: protocol.starts_with("v5.") || protocol.starts_with("v4."),
            transport: Transport::WebSocket(channels),
            _kept: Vec::new(),
        })
    }

    /// Tells the client what became of its command, ends the connection and waits for it to do so too.
    pub(super) async fn finish(self, outcome: Outcome, linger: Duration) {
        let Self {
            stdin,
            resize,
            output,
            line,
            error,
            json,
            transport,
            _kept,
        } = self;
        // What the client still sends is thrown away from here on.
        drop((stdin, resize));
        let goodbye = async {
            output.finish().await;
            if let Some(status) = status(&outcome, json) {
                drop(error.send(Bytes::from(status)).await);
            }
            drop(error.finish().await);
            match transport {
                Transport::Spdy(mut session) => {
                    session.close().await;
                    drop(timeout(linger, line.closed.cancelled()).await);
                }
                Transport::WebSocket(channels) => {
                    channels.close().await;
                    drop(timeout(linger, line.closed.cancelled()).await);
                }
            }
        };
        tokio::select! {
            () = goodbye => {}
            () = line.closed.cancelled() => {}
        }
    }
}

#[derive(Debug, Default)]
struct SpdyStreams {
    error: Option<(Incoming, Outgoing)>,
    stdin: Option<(Incoming, Outgoing)>,
    stdout: Option<(Incoming, Outgoing)>,
    stderr: Option<(Incoming, Outgoing)>,
    resize: Option<(Incoming, Outgoing)>,
}

impl SpdyStreams {
    /// A stream that nobody asked for, or a second one of its kind, is refused.
    fn add(&mut self, new: NewStream, wanted: Wanted, resizes: bool) {
        let place = match new.header("streamtype") {
            "error" => Some(&mut self.error),
            "stdin" if wanted.stdin => Some(&mut self.stdin),
            "stdout" if wanted.stdout => Some(&mut self.stdout),
            "stderr" if wanted.stderr => Some(&mut self.stderr),
            "resize" if resizes => Some(&mut self.resize),
            other => {
                tracing::debug!(kind = other, "a stream that nobody asked for is refused");
                None
            }
        };
        if let Some(place) = place
            && place.is_none()
        {
            *place = new.accept();
        }
    }

    fn are_complete(&self, wanted: Wanted, resizes: bool) -> bool {
        self.error.is_some()
            && self.stdin.is_some() == wanted.stdin
            && self.stdout.is_some() == wanted.stdout
            && self.stderr.is_some() == wanted.stderr
            && self.resize.is_some() == resizes
    }
}

impl ClientOutput {
    /// Waits until the client takes the bytes.
    pub(super) async fn stdout(&mut self, bytes: Bytes) {
        send(&mut self.stdout, bytes).await;
    }

    /// As [`Self::stdout`].
    pub(super) async fn stderr(&mut self, bytes: Bytes) {
        send(&mut self.stderr, bytes).await;
    }

    /// For people: on stderr, or on stdout if that is all there is.
    pub(super) async fn note(&mut self, text: String) {
        let stream = if self.stderr.is_some() {
            &mut self.stderr
        } else {
            &mut self.stdout
        };
        send(stream, text.into()).await;
    }

    async fn finish(self) {
        for stream in [self.stdout, self.stderr].into_iter().flatten() {
            drop(stream.finish().await);
        }
    }
}

async fn send(stream: &mut Option<Outgoing>, bytes: Bytes) {
    if let Some(open) = stream
        && open.send(bytes).await == Err(Gone)
    {
        *stream = None;
    }
}

/// Kubernetes' `metav1.Status` since version 4 of the protocol.
fn status(outcome: &Outcome, json: bool) -> Option<String> {
    let (message, reason, causes, code) = match outcome {
        Outcome::Gone => return None,
        Outcome::Exited(0) => {
            return json.then(|| json!({ "metadata": {}, "status": "Success" }).to_string());
        }
        Outcome::Exited(code) => (
            format!("command terminated with non-zero exit code: {code}"),
            "NonZeroExitCode",
            json!([{ "reason": "ExitCode", "message": code.to_string() }]),
            None,
        ),
        Outcome::Failed(text) => (
            format!("Internal error occurred: {text}"),
            "InternalError",
            json!([{ "message": text }]),
            Some(500),
        ),
    };
    if !json {
        return Some(message);
    }
    let mut status = json!({
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "details": { "causes": causes },
    });
    if let (Some(code), Some(fields)) = (code, status.as_object_mut()) {
        fields.insert("code".to_owned(), json!(code));
    }
    Some(status.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_wishes_are_refused_by_field() {
        let wanted = |stdin, stdout, stderr, terminal| {
            Wanted::checked([stdin, stdout, stderr, terminal]).map_err(|error| error.to_string())
        };
        assert!(wanted(true, false, false, false).is_ok());
        assert!(wanted(false, true, false, true).is_ok());
        assert!(wanted(false, true, true, true).unwrap_err().starts_with("stderr"));
        assert!(
            wanted(false, false, false, true)
                .unwrap_err()
                .starts_with("stdin")
        );
    }

    #[test]
    fn statuses_are_what_kubernetes_clients_read() {
        let json = |outcome| {
            let text = status(&outcome, true).unwrap();
            serde_json::from_str::<serde_json::Value>(&text).unwrap()
        };
        assert_eq!(json(Outcome::Exited(0))["status"], "Success");
        let exited = json(Outcome::Exited(5));
        assert_eq!(exited["reason"], "NonZeroExitCode");
        let cause = json!({ "reason": "ExitCode", "message": "5" });
        assert_eq!(exited["details"]["causes"][0], cause);
        let failed = json(Outcome::Failed("no \"such\" thing".to_owned()));
        assert_eq!(failed["reason"], "InternalError");
        assert_eq!(failed["code"], 500);
        assert_eq!(failed["message"], "Internal error occurred: no \"such\" thing");
        assert_eq!(status(&Outcome::Gone, true), None);
    }

    #[test]
    fn before_version_4_only_failures_are_told() {
        assert_eq!(status(&Outcome::Exited(0), false), None);
        let text = status(&Outcome::Exited(7), false).unwrap();
        assert!(text.ends_with('7') && !text.contains('{'), "{text}");
    }
}
