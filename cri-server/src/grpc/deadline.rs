//! The client's own deadline, the `grpc-timeout` header (gRPC over HTTP/2, "Timeout"). tonic keeps it too, and answers CANCELLED where
//! the protocol and clients want DEADLINE_EXCEEDED; so ours ends a little earlier.

use std::{future::Future, time::Duration};

use tonic::metadata::MetadataMap;

use crate::sandbox::RequestError;

/// tokio's timers count whole milliseconds; tonic's is set a moment before ours.
const EARLIER: Duration = Duration::from_millis(3);

/// How long the client waits; `None` when it does not say, or not as the protocol wants it.
pub(super) fn of(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
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
    let ended = tokio::time::timeout(deadline.saturating_sub(EARLIER), call).await;
    ended.unwrap_or_else(|_| Err(RequestError::Deadline { rpc, deadline }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_read_as_the_protocol_has_it() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            of(&metadata)
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
        assert_eq!(of(&MetadataMap::new()), None);
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
