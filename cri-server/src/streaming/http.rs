//! The HTTP/1.1 request that every streaming connection begins with: which URL, which protocol, and the upgrade to it.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderMap, HeaderName},
    server::conn::http1,
    service::service_fn,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, sync::OwnedSemaphorePermit, time::timeout};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{
    attach,
    connection::Line,
    exec, port_forward,
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

const SPDY: &str = "SPDY/3.1";
const WEBSOCKET: &str = "websocket";
const PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// Newest first; the client's order counts.
const COMMAND_SPDY: [&str; 4] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
];
const COMMAND_WEBSOCKET: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
const FORWARD_SPDY: [&str; 1] = ["portforward.k8s.io"];
/// A whole SPDY connection inside of a WebSocket.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const FORWARD_WEBSOCKET: [&str; 3] = [TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];

/// What was agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Upgrade {
    /// Empty: the client names no version.
    Spdy(&'static str),
    WebSocket {
        protocol: &'static str,
        accept: String,
    },
}

/// Why there is no upgrade.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    status: StatusCode,
    text: String,
    accepted: &'static [&'static str],
}

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

/// What the client and we both speak.
fn negotiate(kind: Kind, headers: &HeaderMap) -> Result<Upgrade, Refusal> {
    let upgrade = values(headers, &header::UPGRADE);
    let wants_upgrade = values(headers, &header::CONNECTION)
        .iter()
        .any(|value| value.eq_ignore_ascii_case("upgrade"));
    let asks_for = |protocol: &str| upgrade.iter().any(|value| value.eq_ignore_ascii_case(protocol));
    let (spdy, websocket): (&[&str], &[&str]) = match kind {
        Kind::Exec | Kind::Attach => (&COMMAND_SPDY, &COMMAND_WEBSOCKET),
        Kind::PortForward => (&FORWARD_SPDY, &FORWARD_WEBSOCKET),
    };
    if wants_upgrade && asks_for(WEBSOCKET) {
        let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or_else(|| Refusal {
            status: StatusCode::BAD_REQUEST,
            text: "Sec-WebSocket-Key: missing".to_owned(),
            accepted: &[],
        })?;
        let wanted = values(headers, &header::SEC_WEBSOCKET_PROTOCOL);
        let protocol = if wanted.is_empty() {
            ""
        } else {
            agree(&wanted, websocket)?
        };
        return Ok(Upgrade::WebSocket {
            protocol,
            accept: derive_accept_key(key.as_bytes()),
        });
    }
    if wants_upgrade && asks_for(SPDY) {
        let wanted = values(headers, &PROTOCOL);
        // Port-forward has one version only, and its oldest clients do not name it.
        if wanted.is_empty() && kind == Kind::PortForward {
            return Ok(Upgrade::Spdy(""));
        }
        return agree(&wanted, spdy).map(Upgrade::Spdy);
    }
    Err(Refusal {
        status: StatusCode::BAD_REQUEST,
        text: format!("this URL is for an upgrade to {SPDY} or {WEBSOCKET}"),
        accepted: &[],
    })
}

fn agree(wanted: &[&str], known: &'static [&'static str]) -> Result<&'static str, Refusal> {
    let agreed = wanted
        .iter()
        .find_map(|wanted| known.iter().find(|known| *known == wanted));
    agreed.copied().ok_or_else(|| Refusal {
        status: StatusCode::FORBIDDEN,
        text: format!("unable to negotiate protocol: client supports {wanted:?}, server accepts {known:?}"),
        accepted: known,
    })
}

/// The values of a header, whether it is one line or several.
fn values<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Vec<&'h str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
        .collect()
}

impl Upgrade {
    fn response(&self) -> Response<String> {
        let response = Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::CONNECTION, "Upgrade");
        let response = match self {
            Self::Spdy("") => response.header(header::UPGRADE, SPDY),
            Self::Spdy(protocol) => response.header(header::UPGRADE, SPDY).header(PROTOCOL, *protocol),
            Self::WebSocket { protocol, accept } => {
                let response = response
                    .header(header::UPGRADE, WEBSOCKET)
                    .header(header::SEC_WEBSOCKET_ACCEPT, accept);
                if protocol.is_empty() {
                    response
                } else {
                    response.header(header::SEC_WEBSOCKET_PROTOCOL, *protocol)
                }
            }
        };
        response.body(String::new()).unwrap_or_default()
    }
}

impl Refusal {
    fn response(self) -> Response<String> {
        let mut response = Response::builder().status(self.status);
        for accepted in self.accepted {
            response = response.header(ACCEPTED_PROTOCOLS, *accepted);
        }
        response.body(self.text + "\n").unwrap_or_default()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    fn spdy(versions: &[&'static str]) -> HeaderMap {
        let upgrade = [(header::CONNECTION, "Upgrade"), (header::UPGRADE, "SPDY/3.1")];
        let versions = versions.iter().map(|version| (PROTOCOL, *version));
        headers(&upgrade.into_iter().chain(versions).collect::<Vec<_>>())
    }

    #[test]
    fn the_clients_first_known_version_is_agreed_on() {
        for (versions, agreed) in [
            (
                &["v4.channel.k8s.io", "v5.channel.k8s.io"][..],
                "v4.channel.k8s.io",
            ),
            (&["v9.channel.k8s.io", "v3.channel.k8s.io"], "v3.channel.k8s.io"),
            (&["v9.channel.k8s.io, v2.channel.k8s.io"], "v2.channel.k8s.io"),
        ] {
            assert_eq!(negotiate(Kind::Exec, &spdy(versions)), Ok(Upgrade::Spdy(agreed)));
        }
        assert_eq!(
            negotiate(Kind::PortForward, &spdy(&[])),
            Ok(Upgrade::Spdy("")),
            "port-forward's oldest clients"
        );
    }

    #[test]
    fn a_client_without_a_known_version_is_told_which_there_are() {
        for versions in [&["v9.channel.k8s.io"][..], &[]] {
            let refusal = negotiate(Kind::Attach, &spdy(versions)).unwrap_err();
            let response = refusal.response();
            assert_eq!(response.status(), StatusCode::FORBIDDEN);
            let accepted = values(response.headers(), &ACCEPTED_PROTOCOLS);
            assert_eq!(accepted, COMMAND_SPDY);
        }
    }

    /// The key and its answer are the example of RFC 6455.
    #[test]
    fn a_websocket_is_answered_as_its_standard_says() {
        let mut headers = headers(&[
            (header::CONNECTION, "keep-alive, Upgrade"),
            (header::UPGRADE, "WebSocket"),
            (header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
            (
                header::SEC_WEBSOCKET_PROTOCOL,
                "v6.channel.k8s.io, v5.channel.k8s.io",
            ),
        ]);
        let response = negotiate(Kind::Exec, &headers).unwrap().response();
        let value = |name: HeaderName| response.headers().get(name).unwrap().to_str().unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(
            value(header::SEC_WEBSOCKET_ACCEPT),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(value(header::SEC_WEBSOCKET_PROTOCOL), "v5.channel.k8s.io");
        headers.remove(header::SEC_WEBSOCKET_KEY);
        assert_eq!(
            negotiate(Kind::Exec, &headers).unwrap_err().status,
            StatusCode::BAD_REQUEST
        );
    }

    #[test]
    fn a_request_without_upgrade_is_refused() {
        let refusal = negotiate(Kind::Exec, &HeaderMap::new()).unwrap_err();
        assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
        let only_named = headers(&[(header::UPGRADE, "SPDY/3.1")]);
        assert!(negotiate(Kind::Exec, &only_named).is_err());
    }
}
