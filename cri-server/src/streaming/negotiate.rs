//! Which protocol, and which version of it, a streaming client and we both speak. Pure: headers in, an answer out.

use hyper::{
    Response, StatusCode,
    header::{self, HeaderMap, HeaderName},
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::tickets::Kind;

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
pub(super) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const FORWARD_WEBSOCKET: [&str; 3] = [TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];

/// What was agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Upgrade {
    /// Empty: the client names no version.
    Spdy(&'static str),
    WebSocket {
        protocol: &'static str,
        accept: String,
    },
}

/// Why there is no upgrade.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    status: StatusCode,
    text: String,
    accepted: &'static [&'static str],
}

/// What the client and we both speak.
pub(super) fn negotiate(kind: Kind, headers: &HeaderMap) -> Result<Upgrade, Refusal> {
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
    pub(super) fn response(&self) -> Response<String> {
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
    pub(super) fn response(self) -> Response<String> {
        let mut response = Response::builder().status(self.status);
        for accepted in self.accepted {
            response = response.header(ACCEPTED_PROTOCOLS, *accepted);
        }
        response.body(self.text + "\n").unwrap_or_default()
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
