//! One HTTP exchange: deadlines, size limits, and which faults are worth another try.

use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde::Deserialize;

use super::super::error::RegistryFault;

/// Bytes of an error answer that are looked at.
const MAX_ERROR_BODY: u64 = 16 * 1024;
/// Characters of a server's own words that go into our error.
const MAX_DETAIL: usize = 300;

/// How one exchange with one server ended badly.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The server does not have it.
    NotFound,
    /// The server does not let us have it.
    Denied(String),
    /// May be better in a moment: connection, time-out, 429, 5xx.
    Transient(RegistryFault),
    /// Will not get better.
    Final(RegistryFault),
}

/// Why a body could not be read as a whole.
#[derive(Debug)]
pub(super) enum BodyFault {
    TooLarge(u64),
    Cut(reqwest::Error),
}

/// A whole body of at most `limit` bytes.
pub(super) async fn read_limited(mut response: Response, limit: u64) -> Result<Vec<u8>, BodyFault> {
    if let Some(announced) = response.content_length().filter(|length| *length > limit) {
        return Err(BodyFault::TooLarge(announced));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(BodyFault::Cut)? {
        if body.len() as u64 + chunk.len() as u64 > limit {
            return Err(BodyFault::TooLarge(body.len() as u64 + chunk.len() as u64));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Turns a status that is no success into trouble, with what the server says about it.
pub(super) async fn trouble(response: Response, idle: Duration) -> Trouble {
    let status = response.status();
    let url = response.url().to_string();
    let body = tokio::time::timeout(idle, read_limited(response, MAX_ERROR_BODY)).await;
    let detail = body
        .ok()
        .and_then(Result::ok)
        .map(|body| explain(&body))
        .unwrap_or_default();
    match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => Trouble::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Trouble::Denied(if detail.is_empty() {
            format!("{url} answered {status}")
        } else {
            detail
        }),
        _ => {
            let fault = RegistryFault::Status {
                url,
                status: status.as_u16(),
                detail,
            };
            let passing = status.is_server_error()
                || matches!(
                    status,
                    StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                );
            if passing {
                Trouble::Transient(fault)
            } else {
                Trouble::Final(fault)
            }
        }
    }
}

/// A request that got no answer. Certificates and redirects do not improve by trying again.
pub(super) fn unanswered(url: &str, error: reqwest::Error) -> Trouble {
    let lasting = error.is_builder() || error.is_redirect();
    let fault = RegistryFault::Unreachable {
        url: url.to_owned(),
        source: error.without_url(),
    };
    if lasting {
        Trouble::Final(fault)
    } else {
        Trouble::Transient(fault)
    }
}

#[derive(Deserialize)]
struct ErrorAnswer {
    errors: Vec<ErrorItem>,
}

#[derive(Deserialize)]
struct ErrorItem {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The registry's own words, printable and short.
fn explain(body: &[u8]) -> String {
    let Ok(answer) = serde_json::from_slice::<ErrorAnswer>(body) else {
        return String::new();
    };
    let text = answer
        .errors
        .iter()
        .map(|error| format!("{} {}", error.code, error.message))
        .collect::<Vec<_>>()
        .join("; ");
    text.chars()
        .filter(|c| !c.is_control())
        .take(MAX_DETAIL)
        .collect()
}
