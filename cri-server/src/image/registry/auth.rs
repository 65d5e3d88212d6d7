//! Getting past a 401: reading the challenge, asking the token server, remembering what worked.
//!
//! Spec: RFC 9110 §11.6.1 for the header, distribution project, "Token Authentication Specification" for the exchange.
//! Secrets are kept in values that are never formatted; errors name the server and the reason only.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{
    Client, RequestBuilder, Response, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE},
};
use serde::Deserialize;

use super::{super::record::RegistryAuth, transfer::read_limited};

const MAX_TOKEN_ANSWER: u64 = 1 << 20;
/// What a token server may call us; it shows in audit logs.
const CLIENT_ID: &str = "clearpod";

/// What is sent with each request to one server.
#[derive(Clone, Default)]
pub(super) enum Authorization {
    #[default]
    None,
    Basic {
        username: String,
        password: String,
    },
    Bearer(String),
}

impl Authorization {
    pub(super) fn apply(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::None => request,
            Self::Basic { username, password } => request.basic_auth(username, Some(password)),
            Self::Bearer(token) => request.bearer_auth(token),
        }
    }
}

/// The pull's secret, decoded.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Credentials {
    login: Option<(String, String)>,
    identity_token: Option<String>,
    registry_token: Option<String>,
}

impl Credentials {
    /// Decodes CRI's `AuthConfig`. The error is a reason without the secret.
    pub(super) fn parse(auth: &RegistryAuth) -> Result<Self, &'static str> {
        let given = |text: &String| (!text.is_empty()).then(|| text.clone());
        let login = if auth.username.is_empty() && auth.password.is_empty() && !auth.auth.is_empty() {
            let decoded = STANDARD
                .decode(auth.auth.trim())
                .map_err(|_| "`auth` is not base64")?;
            let text = String::from_utf8(decoded).map_err(|_| "`auth` is not UTF-8")?;
            let (username, password) = text.split_once(':').ok_or("`auth` has no colon")?;
            Some((username.to_owned(), password.trim_end_matches('\0').to_owned()))
        } else if auth.username.is_empty() && auth.password.is_empty() {
            None
        } else {
            Some((auth.username.clone(), auth.password.clone()))
        };
        Ok(Self {
            login,
            identity_token: given(&auth.identity_token),
            registry_token: given(&auth.registry_token),
        })
    }

    /// What can be sent without being asked: a token that the caller already has.
    pub(super) fn up_front(&self) -> Authorization {
        self.registry_token
            .clone()
            .map_or(Authorization::None, Authorization::Bearer)
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Why a 401 could not be answered.
#[derive(Debug)]
pub(super) enum AuthFailure {
    /// The registry or its token server does not let us in.
    Refused(String),
    /// The exchange itself failed; trying again may help.
    Exchange {
        url: String,
        source: Option<reqwest::Error>,
        detail: String,
    },
}

/// Answers the challenges in a 401 for pulling from `repository`.
pub(super) async fn answer(
    client: &Client,
    response: &Response,
    repository: &str,
    credentials: &Credentials,
) -> Result<Authorization, AuthFailure> {
    let challenges = parse_challenges(response.headers());
    if let Some(bearer) = challenges.iter().find(|challenge| challenge.scheme == "bearer") {
        return fetch_token(client, response.url(), bearer, repository, credentials).await;
    }
    if challenges.iter().any(|challenge| challenge.scheme == "basic") {
        return match &credentials.login {
            Some((username, password)) => Ok(Authorization::Basic {
                username: username.clone(),
                password: password.clone(),
            }),
            None => Err(AuthFailure::Refused(
                "the registry asks for a user name and a password".to_owned(),
            )),
        };
    }
    Err(AuthFailure::Refused(
        "the registry offers no way to authenticate that is supported".to_owned(),
    ))
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

async fn fetch_token(
    client: &Client,
    registry: &Url,
    challenge: &Challenge,
    repository: &str,
    credentials: &Credentials,
) -> Result<Authorization, AuthFailure> {
    let refused = |reason: &str| AuthFailure::Refused(reason.to_owned());
    let realm = challenge
        .parameter("realm")
        .ok_or_else(|| refused("the challenge names no token server"))?;
    let mut url = Url::parse(realm).map_err(|_| refused("the challenge's token server is not a URL"))?;
    if registry.scheme() == "https" && url.scheme() != "https" && !credentials.is_empty() {
        return Err(refused(
            "the token server is not https: credentials were not sent",
        ));
    }
    let scope = format!("repository:{repository}:pull");
    let service = challenge.parameter("service").unwrap_or_default();
    let shown = url.to_string();
    let request = match &credentials.identity_token {
        Some(refresh) => {
            let fields = [
                ("grant_type", "refresh_token"),
                ("service", service),
                ("scope", &scope),
                ("client_id", CLIENT_ID),
                ("refresh_token", refresh),
            ];
            client
                .post(url)
                .header(
                    CONTENT_TYPE,
                    HeaderValue::from_static("application/x-www-form-urlencoded"),
                )
                .body(form(&fields))
        }
        None => {
            url.query_pairs_mut().append_pair("scope", &scope);
            if !service.is_empty() {
                url.query_pairs_mut().append_pair("service", service);
            }
            let request = client.get(url);
            match &credentials.login {
                Some((username, password)) => request.basic_auth(username, Some(password)),
                None => request,
            }
        }
    };
    exchange(request, shown).await
}

async fn exchange(request: RequestBuilder, url: String) -> Result<Authorization, AuthFailure> {
    let failed = |source: Option<reqwest::Error>, detail: String| AuthFailure::Exchange {
        url: url.clone(),
        source: source.map(reqwest::Error::without_url),
        detail,
    };
    let answer = request
        .send()
        .await
        .map_err(|error| failed(Some(error), "could not be reached".to_owned()))?;
    let status = answer.status();
    if matches!(
        status,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST
    ) {
        return Err(AuthFailure::Refused(format!(
            "the token server answered {status}"
        )));
    }
    if !status.is_success() {
        return Err(failed(None, format!("answered {status}")));
    }
    let body = read_limited(answer, MAX_TOKEN_ANSWER)
        .await
        .map_err(|_| failed(None, "sent an incomplete or oversized answer".to_owned()))?;
    // No parser text: it may quote the token.
    let parsed: TokenAnswer =
        serde_json::from_slice(&body).map_err(|_| failed(None, "sent no JSON with a token".to_owned()))?;
    match (parsed.token.is_empty(), parsed.access_token.is_empty()) {
        (false, _) => Ok(Authorization::Bearer(parsed.token)),
        (true, false) => Ok(Authorization::Bearer(parsed.access_token)),
        (true, true) => Err(failed(None, "sent an empty token".to_owned())),
    }
}

/// `application/x-www-form-urlencoded`, by way of the encoder that URLs have.
fn form(fields: &[(&str, &str)]) -> String {
    Url::parse_with_params("http://form.invalid/", fields)
        .ok()
        .and_then(|url| url.query().map(str::to_owned))
        .unwrap_or_default()
}

#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    /// Lower case.
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

fn parse_challenges(headers: &HeaderMap) -> Vec<Challenge> {
    headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(parse_challenge_list)
        .collect()
}

/// Splits `Bearer realm="…",service="…", Basic realm="…"`. What is malformed is left out.
fn parse_challenge_list(text: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    for item in split_outside_quotes(text) {
        let item = item.trim();
        let before_equals = item.split('=').next().unwrap_or(item).trim();
        let (scheme, rest) = match before_equals.split_once(' ') {
            Some((scheme, _)) => (Some(scheme), item[scheme.len()..].trim()),
            None if !item.contains('=') && !item.is_empty() => (Some(item), ""),
            None => (None, item),
        };
        if let Some(scheme) = scheme {
            challenges.push(Challenge {
                scheme: scheme.to_ascii_lowercase(),
                parameters: Vec::new(),
            });
        }
        if let (Some(challenge), Some((key, value))) = (challenges.last_mut(), rest.split_once('=')) {
            challenge
                .parameters
                .push((key.trim().to_ascii_lowercase(), unquote(value.trim())));
        }
    }
    challenges
}

fn split_outside_quotes(text: &str) -> Vec<&str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c: char| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        c == ',' && !quoted
    })
    .collect()
}

fn unquote(value: &str) -> String {
    let Some(quoted) = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')) else {
        return value.to_owned();
    };
    let mut escaped = false;
    quoted
        .chars()
        .filter(|c| {
            escaped = *c == '\\' && !escaped;
            !escaped
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_split_with_commas_inside_quotes() {
        let header = r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:a:pull,push", Basic realm="x""#;
        let found = parse_challenge_list(header);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0].scheme, "bearer");
        assert_eq!(found[0].parameter("realm"), Some("https://auth.example/token"));
        assert_eq!(found[0].parameter("scope"), Some("repository:a:pull,push"));
        assert_eq!(
            (found[1].scheme.as_str(), found[1].parameter("realm")),
            ("basic", Some("x"))
        );
        assert_eq!(parse_challenge_list("Negotiate")[0].scheme, "negotiate");
        assert!(parse_challenge_list("").is_empty());
        assert_eq!(unquote(r#""a\"b\\c""#), r#"a"b\c"#);
    }

    #[test]
    fn the_auth_field_is_decoded_when_it_is_alone() {
        let auth = RegistryAuth {
            auth: STANDARD.encode("joe:se:cret"),
            ..RegistryAuth::default()
        };
        let credentials = Credentials::parse(&auth).expect("valid");
        assert_eq!(credentials.login, Some(("joe".into(), "se:cret".into())));
        for bad in ["%%%".to_owned(), STANDARD.encode("joe")] {
            assert!(
                Credentials::parse(&RegistryAuth {
                    auth: bad,
                    ..RegistryAuth::default()
                })
                .is_err()
            );
        }
        assert!(
            Credentials::parse(&RegistryAuth::default())
                .expect("empty")
                .is_empty()
        );
    }
}
