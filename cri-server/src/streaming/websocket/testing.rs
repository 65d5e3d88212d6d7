//! A whole connection for the fuzz target: a client that sends any bytes.

use std::time::Duration;

use tokio::{
    io::{DuplexStream, duplex},
    task::JoinSet,
    time::timeout,
};
use tokio_tungstenite::WebSocketStream;
use tokio_util::sync::CancellationToken;

use super::{Channels, Codec, over, tunnel};
use crate::streaming::{
    connection::Line,
    spdy::testing::{echoed, hang_up_after, in_no_time},
};

/// What the channels are to a client of exec with a terminal: stdin and sizes come in.
const READABLE: [u8; 2] = [0, 4];

/// A connection after its handshake whose client sends any bytes, reads everything, and hangs up; what came is echoed. It ends.
///
/// # Panics
/// When it does not end, or no runtime can be made.
pub fn converse_websocket(kind: u8, bytes: &[u8]) {
    let codec = Codec {
        base64: kind & 1 != 0,
        close: kind & 2 != 0,
    };
    let tunnelled = kind & 4 != 0;
    in_no_time(async {
        let (client, server) = duplex(4096);
        let line = Line::new(CancellationToken::new());
        let client = hang_up_after(client, bytes.to_vec());
        let socket = over(server).await;
        if tunnelled {
            let (reader, writer) = tunnel(socket);
            echoed(reader, writer, &line).await;
        } else {
            echo(socket, codec, &line).await;
        }
        client.join_all().await;
    });
}

async fn echo(socket: WebSocketStream<DuplexStream>, codec: Codec, line: &Line) {
    let (channels, incoming) = Channels::start(socket, codec, &READABLE, line);
    let mut handlers = JoinSet::new();
    for (channel, mut incoming) in READABLE.into_iter().zip(incoming) {
        let outgoing = channels.outgoing(channel);
        handlers.spawn(async move {
            while let Some(bytes) = incoming.next().await {
                if outgoing.send(bytes).await.is_err() {
                    return;
                }
            }
        });
    }
    handlers.join_all().await;
    drop(timeout(Duration::from_secs(1), channels.close()).await);
    line.closed.cancel();
}
