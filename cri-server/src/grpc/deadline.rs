//! The client's own deadline, the `grpc-timeout` header (gRPC over HTTP/2, "Timeout"). tonic keeps it too, and answers CANCELLED where
//! the protocol and clients want DEADLINE_EXCEEDED; so ours ends a little earlier: [`keep`] that of a call, and [`Kept`] that of a
//! request whose message has not come yet.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{HeaderMap, Request, Response};
use tokio::time::timeout;
use tonic::{Status, body::Body};
use tower::Service;

use crate::sandbox::RequestError;

/// tokio's timers count whole milliseconds; tonic's is set a moment before ours.
const EARLIER: Duration = Duration::from_millis(3);
/// After the call's, whose message says more.
const KEPT_EARLIER: Duration = Duration::from_millis(2);

/// How long the client waits; `None` when it does not say, or not as the protocol wants it.
pub(super) fn of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // The protocol's bound, so that nothing overflows.
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Drops `call` when the client stops waiting, as a client does that goes.
pub(super) async fn keep<A>(
    rpc: &'static str,
    deadline: Option<Duration>,
    call: impl Future<Output = Result<A, RequestError>>,
) -> Result<A, RequestError> {
    let Some(deadline) = deadline else {
        return call.await;
    };
    let ended = timeout(deadline.saturating_sub(EARLIER), call).await;
    ended.unwrap_or_else(|_| Err(RequestError::Deadline { rpc, deadline }))
}

/// A service of which each answer keeps its client's deadline, from the request's headers on.
#[derive(Debug, Clone)]
pub(super) struct Kept<S>(pub(super) S);

impl<S, B> Service<Request<B>> for Kept<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let deadline = of(request.headers());
        let answer = self.0.call(request);
        Box::pin(async move {
            let Some(deadline) = deadline else {
                return answer.await;
            };
            let ended = timeout(deadline.saturating_sub(KEPT_EARLIER), answer).await;
            ended.unwrap_or_else(|_| {
                let waited = deadline.as_secs_f32();
                let text = format!("no answer within the client's {waited} s");
                Ok(Status::deadline_exceeded(text).into_http())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending};

    use tonic::Code;
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    #[test]
    fn the_header_is_read_as_the_protocol_has_it() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            of(&headers)
        };
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("15S"), Some(Duration::from_secs(15)));
        assert_eq!(read("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        assert_eq!(read("0n"), Some(Duration::ZERO));
        for wrong in ["", "S", "5", "5s", "-5S", "+5S", "123456789S", "1 S"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
        assert_eq!(of(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn a_request_whose_message_does_not_come_ends_as_the_protocol_wants_it() {
        let waits = service_fn(|_: Request<()>| pending::<Result<Response<Body>, Infallible>>());
        for text in ["1m", "20m"] {
            let request = Request::builder().header("grpc-timeout", text);
            let answer = Kept(waits).oneshot(request.body(()).unwrap()).await.unwrap();
            let status = Status::from_header_map(answer.headers()).unwrap();
            assert_eq!(status.code(), Code::DeadlineExceeded);
        }
        let answers = service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(Body::default())));
        for text in ["10S", "forever"] {
            let request = Request::builder().header("grpc-timeout", text);
            let answer = Kept(answers).oneshot(request.body(()).unwrap()).await.unwrap();
            assert!(Status::from_header_map(answer.headers()).is_none());
        }
    }

    #[tokio::test]
    async fn a_call_that_takes_longer_is_told_so() {
        let never = std::future::pending::<Result<(), RequestError>>();
        let late = keep("PullImage", Some(Duration::from_millis(5)), never).await;
        let text = late.unwrap_err().to_string();
        assert!(text.contains("PullImage") && text.contains("0.005"), "{text}");
        let soon = async { Ok::<_, RequestError>(1) };
        assert_eq!(
            keep("Version", Some(Duration::from_secs(60)), soon)
                .await
                .unwrap(),
            1
        );
        assert_eq!(
            keep("Version", None, async { Ok::<_, RequestError>(2) })
                .await
                .unwrap(),
            2
        );
    }
}
