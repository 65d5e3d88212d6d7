//! WebSocket connections: Kubernetes' channel protocols, and SPDY tunnelled through messages.
//!
//! The handshake is `http`'s; tungstenite does the framing, answers pings and limits sizes.

mod channels;
#[cfg(feature = "testing")]
pub(super) mod testing;
mod tunnel;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::protocol::{Role, WebSocketConfig},
};

pub(crate) use channels::{ChannelOutgoing, Channels, Codec};
pub(crate) use tunnel::tunnel;

/// Longest message that is taken; clients send 32 KiB at most.
const MAX_MESSAGE: usize = 1024 * 1024;

/// A connection after its handshake.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Takes over a connection that was upgraded.
pub(crate) async fn serve(upgraded: Upgraded) -> Socket {
    over(TokioIo::new(upgraded)).await
}

async fn over<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await
}
