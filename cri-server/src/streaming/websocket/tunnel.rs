//! A byte stream in both directions over a WebSocket's binary messages, whose boundaries mean nothing: how kubectl and crictl
//! carry the SPDY connection of a port-forward.

use std::io;

use bytes::Bytes;
use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

/// Both directions of `socket`. A message of another kind than binary carries no bytes; the close message is the end.
pub(crate) fn tunnel(
    socket: impl Stream<Item = Result<Message, Error>> + Sink<Message, Error = Error> + Send + 'static,
) -> (impl AsyncRead + Unpin + Send, impl AsyncWrite + Unpin + Send) {
    let (sink, stream) = socket.split();
    let pieces = stream
        .take_while(|received| std::future::ready(!matches!(received, Ok(Message::Close(_)))))
        .map(|received| match received {
            Ok(Message::Binary(bytes)) => Ok(bytes),
            Ok(_) => Ok(Bytes::new()),
            Err(error) => Err(io::Error::other(error)),
        })
        // An empty piece would read as the end.
        .filter(|piece| std::future::ready(!piece.as_ref().is_ok_and(Bytes::is_empty)));
    let messages = sink
        .sink_map_err(io::Error::other)
        .with(|bytes: Bytes| std::future::ready(Ok::<_, io::Error>(Message::Binary(bytes))));
    (
        StreamReader::new(Box::pin(pieces)),
        SinkWriter::new(CopyToBytes::new(Box::pin(messages))),
    )
}
