//! The HTTP/1.1 request that every streaming connection begins with: which URL, and the upgrade to what `negotiate` agrees on.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    server::conn::http1,
    service::service_fn,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, sync::OwnedSemaphorePermit, time::timeout};

use super::{
    attach,
    connection::Line,
    exec,
    negotiate::{TUNNEL, Upgrade, negotiate},
    port_forward,
    remote_command::Client,
    spdy::Session,
    tickets::{Kind, Purpose},
    websocket,
};
use crate::sandbox::Node;

/// For a client to send its request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// For the answer to an upgrade to reach the client.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);
/// For a client to hang up after everything was said.
const LINGER: Duration = Duration::from_secs(5);

/// One connection from its accept to its end.
pub(super) async fn serve(node: Arc<Node>, stream: TcpStream, permit: OwnedSemaphorePermit) {
    let line = match Line::over(&stream, node.stop.child_token()) {
        Ok(line) => line,
        Err(error) => {
            tracing::warn!(%error, "a streaming connection cannot be watched");
            return;
        }
    };
    let permit = Arc::new(permit);
    let service = service_fn(|request| {
        let answer = answer(&node, &line, &permit, request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_DEADLINE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::select! {
        served = connection => {
            if let Err(error) = served {
                tracing::debug!(%error, "a streaming request broke");
            }
        }
        () = node.stop.cancelled() => {}
    }
}

fn answer(
    node: &Arc<Node>,
    line: &Line,
    permit: &Arc<OwnedSemaphorePermit>,
    mut request: Request<Incoming>,
) -> Response<String> {
    let kind_and_ticket = request
        .uri()
        .path()
        .strip_prefix('/')
        .and_then(|path| path.split_once('/'))
        .and_then(|(kind, ticket)| Some((Kind::of_path(kind)?, ticket.to_owned())));
    let Some((kind, ticket)) = kind_and_ticket else {
        return plain(StatusCode::NOT_FOUND, "no such path\n");
    };
    if ![Method::GET, Method::POST].contains(request.method()) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "GET or POST\n");
    }
    let upgrade = match negotiate(kind, request.headers()) {
        Ok(upgrade) => upgrade,
        Err(refusal) => return refusal.response(),
    };
    // Only then, so that a client may try another protocol.
    let Some(purpose) = node.streaming.tickets.redeem(kind, &ticket, Instant::now()) else {
        return plain(
            StatusCode::NOT_FOUND,
            "this URL was used before, has expired, or never was\n",
        );
    };
    if let (Purpose::PortForward { ports, .. }, Upgrade::WebSocket { protocol, .. }) = (&purpose, &upgrade)
        && ports.is_empty()
        && *protocol != TUNNEL
    {
        return plain(StatusCode::BAD_REQUEST, "port: missing\n");
    }
    let upgraded = hyper::upgrade::on(&mut request);
    let session = Upgrading {
        node: Arc::clone(node),
        line: line.clone(),
        purpose,
        upgrade: upgrade.clone(),
        _permit: Arc::clone(permit),
    };
    node.tasks.spawn(session.run(upgraded));
    upgrade.response()
}

fn plain(status: StatusCode, text: &str) -> Response<String> {
    let mut response = Response::new(text.to_owned());
    *response.status_mut() = status;
    response
}

/// A connection whose upgrade is on its way.
struct Upgrading {
    node: Arc<Node>,
    line: Line,
    purpose: Purpose,
    upgrade: Upgrade,
    /// One of the connections that there may be.
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Upgrading {
    async fn run(self, upgraded: OnUpgrade) {
        match timeout(UPGRADE_DEADLINE, upgraded).await {
            Ok(Ok(upgraded)) => Box::pin(self.session(upgraded)).await,
            Ok(Err(error)) => tracing::debug!(%error, "a streaming connection was not upgraded"),
            Err(_) => tracing::debug!("the upgrade of a streaming connection took too long"),
        }
        self.line.closed.cancel();
    }

    /// What was agreed on, as long as client and limits let it last.
    async fn session(&self, upgraded: Upgraded) {
        let config = &self.node.config.streaming;
        let limits = async {
            let reason = self.line.worn_out(config.idle(), config.longest()).await;
            tracing::info!(reason, "a streaming connection is ended");
            self.line.closed.cancel();
            // What it began is ended in order.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = self.serve(upgraded) => {}
            () = limits => {}
        }
    }

    async fn serve(&self, upgraded: Upgraded) {
        match &self.purpose {
            Purpose::PortForward { sandbox_id, ports } => {
                self.forward(sandbox_id, ports, upgraded).await;
            }
            Purpose::Exec { wanted, .. } | Purpose::Attach { wanted, .. } => {
                let client = match &self.upgrade {
                    Upgrade::Spdy(protocol) => {
                        let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
                        let session = Session::start(reader, writer, &self.line);
                        let within = self.node.config.streaming.creation();
                        Client::over_spdy(session, protocol, *wanted, &self.line, within).await
                    }
                    Upgrade::WebSocket { protocol, .. } => {
                        let socket = websocket::serve(upgraded).await;
                        Client::over_websocket(socket, protocol, *wanted, &self.line).await
                    }
                };
                if let Some(client) = client {
                    self.command(client).await;
                }
            }
        }
    }

    async fn command(&self, mut client: Client) {
        let outcome = match &self.purpose {
            Purpose::Exec {
                container_id,
                command,
                wanted,
            } => exec::run(&self.node, container_id, command, *wanted, &mut client).await,
            Purpose::Attach { container_id, wanted } => {
                attach::run(&self.node, container_id, *wanted, &mut client).await
            }
            Purpose::PortForward { .. } => return,
        };
        client.finish(outcome, LINGER).await;
    }

    async fn forward(&self, sandbox_id: &str, ports: &[u16], upgraded: Upgraded) {
        let forwarder = port_forward::Forwarder::new(&self.node, sandbox_id, &self.line);
        match &self.upgrade {
            Upgrade::Spdy(_) => {
                let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
                forwarder
                    .over_spdy(Session::start(reader, writer, &self.line))
                    .await;
            }
            Upgrade::WebSocket { protocol: TUNNEL, .. } => {
                let (reader, writer) = websocket::tunnel(websocket::serve(upgraded).await);
                forwarder
                    .over_spdy(Session::start(reader, writer, &self.line))
                    .await;
            }
            Upgrade::WebSocket { protocol, .. } => {
                let socket = websocket::serve(upgraded).await;
                forwarder.over_websocket(socket, protocol, ports, LINGER).await;
            }
        }
    }
}
