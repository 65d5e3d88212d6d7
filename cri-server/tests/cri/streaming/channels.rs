//! A client of the WebSocket channels, and what it has heard.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use super::client::{exit_code, websocket};
use crate::support::PATIENCE;

pub(super) struct Channels {
    pub(super) socket: WebSocketStream<TcpStream>,
    pub(super) heard: [Vec<u8>; 5],
}

impl Channels {
    pub(super) async fn open(url: &str, protocol: &str) -> Self {
        Self {
            socket: websocket(url, protocol).await.unwrap(),
            heard: Default::default(),
        }
    }

    pub(super) async fn send(&mut self, channel: u8, bytes: &[u8]) {
        self.socket.send(binary(channel, bytes)).await.unwrap();
    }

    /// Reads until it is so, or to the end.
    pub(super) async fn until(&mut self, is_so: impl Fn(&[Vec<u8>; 5]) -> bool) {
        while !is_so(&self.heard) {
            match timeout(PATIENCE, self.socket.next()).await.unwrap() {
                Some(Ok(Message::Binary(bytes))) => {
                    self.heard[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
                }
                Some(Ok(Message::Text(text))) => {
                    let channel = usize::from(text.as_bytes()[0] - b'0');
                    let plain = BASE64.decode(&text.as_bytes()[1..]).unwrap();
                    self.heard[channel].extend_from_slice(&plain);
                }
                Some(Ok(Message::Close(_))) | None => return,
                Some(Ok(_)) => {}
                Some(Err(error)) => panic!("{error}"),
            }
        }
    }

    /// Reads to the end; the exit code that it tells.
    pub(super) async fn exit_code(&mut self) -> i32 {
        self.until(|_| false).await;
        exit_code(&serde_json::from_slice(&self.heard[3]).unwrap())
    }
}

pub(super) fn binary(channel: u8, bytes: &[u8]) -> Message {
    Message::Binary([&[channel], bytes].concat().into())
}
