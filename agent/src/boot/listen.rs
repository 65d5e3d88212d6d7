//! Listens on vsock ports for the agent's whole life.

use std::io;
use std::time::Duration;

use proto::agent::v1::ErrorCode;
use tokio::net::UnixStream;

use crate::error::{Context as _, Failure};
use crate::server::AgentHandle;
use crate::sys::{readiness, vsock};

/// After an accept that failed for lack of something: time for it to become free.
const PAUSE: Duration = Duration::from_millis(50);

/// Hands every connection of the host on `port` to `serve`.
///
/// # Errors
/// `System` when the port cannot be listened on.
pub(super) fn serve(
    agent: &AgentHandle,
    port: u32,
    serve: impl Fn(UnixStream) + Send + 'static,
) -> Result<(), Failure> {
    let listener = vsock::listen(port)
        .and_then(readiness::register)
        .context(ErrorCode::System, || format!("listen on vsock port {port}"))?;
    agent.spawn(async move {
        loop {
            let Ok(mut ready) = listener.readable().await else {
                return;
            };
            match vsock::accept(listener.get_ref()) {
                Ok(Some(stream)) => match UnixStream::from_std(stream) {
                    Ok(stream) => serve(stream),
                    Err(error) => tracing::warn!(port, %error, "connection cannot be served"),
                },
                Ok(None) => tracing::warn!(port, "refused a connection that does not come from the host"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => {
                    tracing::warn!(port, %error, "accept failed");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
    Ok(())
}
