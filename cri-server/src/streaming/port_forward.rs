//! Port-forward: each pair of a client's streams is one connection to a TCP port inside the pod. Many at a time; one that
//! cannot be made or breaks ends with a text on its error stream, and the others go on.

use std::{collections::HashMap, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{
    connection::Line,
    spdy::{NewStream, Session},
    stream::{Incoming, Outgoing},
    websocket::{Channels, Codec, Socket},
};
use crate::{
    guest::{Dialer, forward},
    sandbox::{Node, RequestError, chain},
};

/// Bytes read from the pod at once.
const READ: usize = 32 * 1024;
/// Pairs that wait for their second stream. Clients open the two together; one that breaks its half off leaves the pair here for
/// a while, whatever the connection's own bound on streams says.
const MAX_WAITING: usize = 256;

/// Forwards for one client.
pub(super) struct Forwarder<'n> {
    node: &'n Node,
    sandbox_id: &'n str,
    line: &'n Line,
}

/// A stream with both its directions.
type Duplex = (Incoming, Outgoing);

/// What has come of one connection's two streams.
#[derive(Debug)]
struct Pair {
    since: Instant,
    data: Option<(u16, Duplex)>,
    error: Option<Duplex>,
}

/// The pairs that wait for their second stream.
#[derive(Debug, Default)]
struct Pairs {
    waiting: HashMap<String, Pair>,
}

impl<'n> Forwarder<'n> {
    pub(super) fn new(node: &'n Node, sandbox_id: &'n str, line: &'n Line) -> Self {
        Self {
            node,
            sandbox_id,
            line,
        }
    }

    /// Pairs of streams as the client opens them, until it goes.
    pub(super) async fn over_spdy(&self, mut session: Session) {
        let within = self.node.config.streaming.creation();
        let mut connections = JoinSet::new();
        let mut pairs = Pairs::default();
        loop {
            tokio::select! {
                new = session.accept() => {
                    let Some(new) = new else { return };
                    if let Some((port, data, error)) = pairs.add(new) {
                        let dialer = self.dialer();
                        connections.spawn(connect(dialer, port, data, error));
                    }
                }
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                () = pairs.overdue(within) => {
                    for (_, error) in pairs.expire(within).into_iter().flat_map(|pair| pair.error) {
                        let text = Bytes::from_static(b"timed out waiting for the connection's streams");
                        connections.spawn(async move { complain(error, text).await; });
                    }
                }
                () = self.line.closed.cancelled() => return,
            }
        }
    }

    /// One connection for each of `ports`, on channels of fixed numbers, until all have ended or the client goes.
    pub(super) async fn over_websocket(
        &self,
        socket: Socket,
        protocol: &str,
        ports: &[u16],
        linger: Duration,
    ) {
        let codec = Codec {
            base64: protocol.contains("base64"),
            close: false,
        };
        // Data, error, data, error, ...
        let numbers: Vec<(u16, u8)> = ports.iter().copied().zip((0..=u8::MAX).step_by(2)).collect();
        let readable: Vec<u8> = numbers.iter().map(|(_, data)| *data).collect();
        let (channels, incoming) = Channels::start(socket, codec, &readable, self.line);
        let mut connections = JoinSet::new();
        for ((port, data), incoming) in numbers.into_iter().zip(incoming) {
            let (data, error) = (channels.outgoing(data), channels.outgoing(data + 1));
            let dialer = self.dialer();
            connections.spawn(async move {
                let number = Bytes::copy_from_slice(&port.to_le_bytes());
                for stream in [&data, &error] {
                    if stream.send(number.clone()).await.is_err() {
                        return;
                    }
                }
                connect(dialer, port, (incoming, data), error).await;
            });
        }
        let served = async {
            while connections.join_next().await.is_some() {}
            channels.close().await;
            drop(timeout(linger, self.line.closed.cancelled()).await);
        };
        tokio::select! {
            () = served => {}
            () = self.line.closed.cancelled() => {}
        }
    }

    /// Asked for each connection: the sandbox may have ended meanwhile.
    fn dialer(&self) -> Result<Dialer, RequestError> {
        let view = self.node.sandboxes.sandbox(self.sandbox_id)?.view();
        let machine = view.machine.as_ref().ok_or_else(|| RequestError::WrongState {
            operation: format!("forward ports of sandbox {}", self.sandbox_id),
            reason: "its machine does not run".to_owned(),
        })?;
        Ok(machine.dialer.clone())
    }
}

impl Pairs {
    /// Takes a stream; the pair, when it is whole by that. A stream that does not say what it is for is refused.
    fn add(&mut self, new: NewStream) -> Option<(u16, Duplex, Outgoing)> {
        let is_data = match new.header("streamtype") {
            "data" => true,
            "error" => false,
            _ => return None,
        };
        let port = new.header("port").parse::<u16>().ok().filter(|port| *port > 0)?;
        let request = match new.header("requestid") {
            // The oldest clients open a pair's error stream and at once its data stream.
            "" if is_data => format!("stream {}", new.id.saturating_sub(2)),
            "" => format!("stream {}", new.id),
            request => request.to_owned(),
        };
        if self.waiting.len() >= MAX_WAITING && !self.waiting.contains_key(&request) {
            return None;
        }
        let pair = self.waiting.entry(request.clone()).or_insert_with(|| Pair {
            since: Instant::now(),
            data: None,
            error: None,
        });
        let taken = if is_data {
            pair.data.is_some()
        } else {
            pair.error.is_some()
        };
        if taken {
            return None;
        }
        let stream = new.accept()?;
        if is_data {
            pair.data = Some((port, stream));
        } else {
            pair.error = Some(stream);
        }
        if pair.data.is_none() || pair.error.is_none() {
            return None;
        }
        let pair = self.waiting.remove(&request)?;
        let ((port, data), (_, error)) = (pair.data?, pair.error?);
        Some((port, data, error))
    }

    /// Returns when a pair has waited too long.
    async fn overdue(&self, within: Duration) {
        match self.waiting.values().map(|pair| pair.since).min() {
            Some(oldest) => sleep_until(oldest + within).await,
            None => std::future::pending().await,
        }
    }

    fn expire(&mut self, within: Duration) -> Vec<Pair> {
        let expired = self.waiting.extract_if(|_, pair| pair.since.elapsed() >= within);
        expired.map(|(_, pair)| pair).collect()
    }
}

/// One connection from its dial to its end.
async fn connect(dialer: Result<Dialer, RequestError>, port: u16, data: Duplex, error: Outgoing) {
    let dialled = match dialer {
        Ok(dialer) => forward(&dialer, port).await.map_err(|error| chain(&error)),
        Err(error) => Err(chain(&error)),
    };
    let (incoming, outgoing) = data;
    match dialled {
        Ok(pod) => {
            let broken = outgoing.broken();
            let (reader, writer) = pod.into_split();
            tokio::select! {
                ((), ()) = async { tokio::join!(up(incoming, writer), down(reader, outgoing)) } => {}
                // The client has thrown the stream away, and the pod's end of it goes with it.
                () = broken.cancelled() => {}
            }
            drop(error.finish().await);
        }
        Err(text) => {
            tracing::debug!(port, text, "a connection is not forwarded");
            complain(error, text.into()).await;
            drop(outgoing.finish().await);
        }
    }
}

async fn complain(error: Outgoing, text: Bytes) {
    if error.send(text).await.is_ok() {
        drop(error.finish().await);
    }
}

async fn up(mut incoming: Incoming, mut pod: OwnedWriteHalf) {
    while let Some(bytes) = incoming.next().await {
        if pod.write_all(&bytes).await.is_err() {
            return;
        }
    }
    // It may have closed its side already.
    drop(pod.shutdown().await);
}

async fn down(mut pod: OwnedReadHalf, outgoing: Outgoing) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ);
        match pod.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {
                if outgoing.send(buffer.split().freeze()).await.is_err() {
                    return;
                }
            }
        }
    }
    drop(outgoing.finish().await);
}
