//! The streaming server: Exec, Attach and PortForward give out URLs, and clients (kubelet for kubectl, or crictl) come here
//! with them, over SPDY/3.1 or WebSocket.
//!
//! | module | what |
//! |---|---|
//! | `tickets` | what an URL stands for |
//! | `http`, `negotiate` | the request and its upgrade |
//! | `connection`, `stream` | a client and its streams, whichever protocol carries them |
//! | `spdy`, `websocket` | the two protocols |
//! | `remote_command` | the streams of exec and attach, and how they end |
//! | `exec`, `attach`, `port_forward` | what is done with them |
//!
//! Bound to loopback: whoever has an URL may use it. Every connection is a task of the node's and ends with the daemon. Memory
//! is bounded on both ways: a client that does not read slows the guest down, a guest that does not read slows the client down.

mod attach;
mod connection;
mod exec;
mod http;
mod negotiate;
mod port_forward;
mod remote_command;
mod spdy;
mod stream;
mod terminal;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tickets;
mod websocket;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use rustix::net::sockopt;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

use self::tickets::Tickets;
use crate::{
    config::StreamingConfig,
    sandbox::{Node, RequestError},
};

pub(crate) use attach::check as check_attach;
pub(crate) use remote_command::Wanted;
pub(crate) use tickets::Purpose;

/// Connections at a time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 2048;
/// Silence of a client's kernel after which it is asked whether it knows the connection.
const ASK_AFTER: Duration = Duration::from_secs(15);
/// After an accept that failed for lack of something: time for it to become free.
const PAUSE: Duration = Duration::from_millis(50);

/// The server as the rest of the daemon sees it: where URLs come from.
#[derive(Debug)]
pub(crate) struct Streaming {
    tickets: Tickets,
    address: OnceLock<SocketAddr>,
}

impl Streaming {
    pub(crate) fn new(config: &StreamingConfig) -> Self {
        Self {
            tickets: Tickets::new(config.token()),
            address: OnceLock::new(),
        }
    }

    /// An URL that stands for `purpose`.
    pub(crate) fn url(&self, purpose: Purpose) -> Result<String, RequestError> {
        let address = self.address.get().ok_or(RequestError::Unavailable {
            doing: "starting its streaming server",
        })?;
        let path = purpose.kind().path();
        let ticket = self.tickets.issue(purpose, Instant::now())?;
        Ok(format!("http://{address}/{path}/{ticket}"))
    }
}

/// Takes the address; URLs can be given out from then on.
pub(crate) async fn bind(node: &Node) -> std::io::Result<TcpListener> {
    let config = &node.config.streaming;
    let listener = TcpListener::bind((config.address, config.port)).await?;
    let bound = listener.local_addr()?;
    // Once in a daemon's life.
    let address = node.streaming.address.get_or_init(|| bound);
    tracing::info!(%address, "streaming server");
    Ok(listener)
}

/// Serves connections until the daemon stops; each is a task of the node's.
pub(crate) async fn serve(node: Arc<Node>, listener: TcpListener) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let stop = node.stop.clone();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &connections) => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, permit)) => {
                node.tasks.spawn(http::serve(Arc::clone(&node), stream, permit));
            }
            Err(error) => {
                tracing::warn!(%error, "a streaming connection cannot be accepted");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections)
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // Keystrokes and their echo are not to wait for one another.
    stream.set_nodelay(true)?;
    keep_asking(&stream)?;
    Ok((stream, permit))
}

/// A client's end stays behind bytes that it has sent and nobody takes, as those of a process that does not read its stdin. Its
/// kernel gives such a connection up after a while and says so, but only when it is asked.
fn keep_asking(stream: &TcpStream) -> std::io::Result<()> {
    sockopt::set_tcp_keepidle(stream, ASK_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, ASK_AFTER)?;
    sockopt::set_socket_keepalive(stream, true)?;
    Ok(())
}
