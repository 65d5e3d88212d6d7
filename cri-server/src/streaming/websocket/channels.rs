//! `channel.k8s.io` and its later versions: each message begins with the number of the channel that its bytes belong to.
//!
//! Version 5 has a message of its own, channel 255, by which the client ends a channel; in older versions nothing but the
//! connection's end does. A channel whose handler does not keep up stops the reading of the whole connection.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_tungstenite::tungstenite::{
    Error, Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};
use tokio_util::sync::CancellationToken;

use crate::streaming::{
    connection::Line,
    stream::{Gone, Incoming, Outgoing},
};

/// Bytes of one message that we send, before it is encoded.
const MAX_DATA: usize = 32 * 1024;
/// Messages of one channel that wait for its handler; each is at most `MAX_MESSAGE` long, and 32 KiB from every known client.
const CHANNEL_MESSAGES: usize = 4;
/// Messages of all channels that wait for the client.
const QUEUED_MESSAGES: usize = 8;
/// The channel of version 5 that says which channel has ended.
const CLOSE: u8 = 255;

/// How bytes are put into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Codec {
    /// Text messages: the channel's digit, then base64.
    pub(crate) base64: bool,
    /// Version 5: the client may end a channel.
    pub(crate) close: bool,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Channels {
    codec: Codec,
    queue: mpsc::Sender<Message>,
    closed: CancellationToken,
    written: CancellationToken,
    /// Reader and writer, stopped with this value.
    _tasks: JoinSet<()>,
}

/// Bytes to the client on one channel.
#[derive(Debug)]
pub(crate) struct ChannelOutgoing {
    channel: u8,
    codec: Codec,
    queue: mpsc::Sender<Message>,
    closed: CancellationToken,
}

impl Channels {
    /// Takes over a connection; the client's bytes on the `readable` channels come back in their order, those on others are
    /// thrown away.
    pub(crate) fn start(
        socket: impl Stream<Item = Result<Message, Error>> + Sink<Message, Error = Error> + Send + 'static,
        codec: Codec,
        readable: &[u8],
        line: &Line,
    ) -> (Self, Vec<Incoming>) {
        let (sink, stream) = socket.split();
        let (queue, queued) = mpsc::channel(QUEUED_MESSAGES);
        let mut senders = BTreeMap::new();
        let mut incoming = Vec::new();
        for channel in readable {
            let (sender, receiver) = mpsc::channel(CHANNEL_MESSAGES);
            senders.insert(*channel, sender);
            incoming.push(Incoming::new(receiver, None));
        }
        let written = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let reading = line.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = read(stream, codec, senders, &reading) => {}
                () = reading.closed.cancelled() => {}
            }
            reading.closed.cancel();
        });
        let (writing, writer_end) = (line.clone(), written.clone());
        tasks.spawn(async move {
            if let Err(error) = write(sink, queued, &writing).await {
                tracing::debug!(%error, "the client does not take messages any more");
                writing.closed.cancel();
            }
            writer_end.cancel();
        });
        let channels = Self {
            codec,
            queue,
            closed: line.closed.clone(),
            written,
            _tasks: tasks,
        };
        (channels, incoming)
    }

    /// The way to the client on one channel.
    pub(crate) fn outgoing(&self, channel: u8) -> Outgoing {
        Outgoing::Channel(ChannelOutgoing {
            channel,
            codec: self.codec,
            queue: self.queue.clone(),
            closed: self.closed.clone(),
        })
    }

    /// Says goodbye after everything that was sent, and waits until it is written.
    pub(crate) async fn close(&self) {
        let last = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        drop(self.queue.send(Message::Close(Some(last))).await);
        self.written.cancelled().await;
    }
}

impl ChannelOutgoing {
    pub(crate) async fn send(&self, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(MAX_DATA));
            self.queue(&piece).await?;
        }
        Ok(())
    }

    /// A message without bytes: shows that the connection works.
    pub(crate) async fn greet(&self) -> Result<(), Gone> {
        self.queue(&[]).await
    }

    pub(crate) fn broken(&self) -> CancellationToken {
        self.closed.clone()
    }

    async fn queue(&self, bytes: &[u8]) -> Result<(), Gone> {
        let message = encode(self.codec, self.channel, bytes);
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(Gone),
            sent = self.queue.send(message) => sent.map_err(|_| Gone),
        }
    }
}

fn encode(codec: Codec, channel: u8, bytes: &[u8]) -> Message {
    if codec.base64 {
        let digit = char::from(b'0'.saturating_add(channel));
        return Message::Text(format!("{digit}{}", BASE64.encode(bytes)).into());
    }
    let mut message = BytesMut::with_capacity(1 + bytes.len());
    message.put_u8(channel);
    message.put_slice(bytes);
    Message::Binary(message.freeze())
}

/// What a message says.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Data(u8, Bytes),
    /// The client ends this channel.
    Ended(u8),
    /// A ping, a pong, an empty message.
    Nothing,
    Goodbye,
    /// Not base64.
    Nonsense,
}

fn decode(codec: Codec, message: Message) -> Said {
    let mut bytes = match message {
        Message::Binary(bytes) => bytes,
        Message::Text(text) => Bytes::from(text),
        Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return Said::Nothing,
        Message::Close(_) => return Said::Goodbye,
    };
    if bytes.is_empty() {
        return Said::Nothing;
    }
    let channel = bytes.split_to(1).first().copied().unwrap_or_default();
    if channel == CLOSE && codec.close {
        return bytes.first().map_or(Said::Nothing, |ended| Said::Ended(*ended));
    }
    if !codec.base64 {
        return Said::Data(channel, bytes);
    }
    match (channel.checked_sub(b'0'), BASE64.decode(&bytes)) {
        (Some(channel), Ok(plain)) => Said::Data(channel, plain.into()),
        _ => Said::Nonsense,
    }
}

async fn read(
    mut stream: impl Stream<Item = Result<Message, Error>> + Unpin,
    codec: Codec,
    mut channels: BTreeMap<u8, mpsc::Sender<Bytes>>,
    line: &Line,
) {
    while let Some(received) = stream.next().await {
        let message = match received {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(%error, "the streaming connection broke");
                return;
            }
        };
        line.touch();
        match decode(codec, message) {
            Said::Data(_, bytes) if bytes.is_empty() => {}
            Said::Data(channel, bytes) => {
                let Some(sender) = channels.get(&channel) else {
                    continue;
                };
                tokio::select! {
                    sent = sender.send(bytes) => {
                        if sent.is_err() {
                            // The handler wants no more of it.
                            channels.remove(&channel);
                        }
                    }
                    () = line.hung_up() => return,
                }
            }
            Said::Ended(channel) => {
                channels.remove(&channel);
            }
            Said::Nothing => {}
            Said::Goodbye => return,
            Said::Nonsense => {
                tracing::warn!("a streaming client sent a message that is not base64");
                return;
            }
        }
    }
}

async fn write(
    mut sink: impl Sink<Message, Error = Error> + Unpin,
    mut queued: mpsc::Receiver<Message>,
    line: &Line,
) -> Result<(), Error> {
    loop {
        let message = tokio::select! {
            message = queued.recv() => message,
            () = line.closed.cancelled() => None,
        };
        let Some(message) = message else {
            return Ok(());
        };
        let last = message.is_close();
        tokio::select! {
            sent = sink.send(message) => sent?,
            () = line.closed.cancelled() => return Ok(()),
        }
        line.touch();
        if last {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: Codec = Codec {
        base64: false,
        close: false,
    };
    const V5: Codec = Codec { close: true, ..V4 };
    const V4_BASE64: Codec = Codec { base64: true, ..V4 };

    fn binary(bytes: &'static [u8]) -> Message {
        Message::Binary(Bytes::from_static(bytes))
    }

    #[test]
    fn messages_name_their_channel() {
        for codec in [V4, V5, V4_BASE64] {
            let message = encode(codec, 2, b"error\0\xff");
            assert_eq!(
                decode(codec, message),
                Said::Data(2, Bytes::from_static(b"error\0\xff"))
            );
        }
        assert_eq!(encode(V4_BASE64, 1, b"foo"), Message::Text("1Zm9v".into()));
    }

    #[test]
    fn only_version_5_ends_channels() {
        assert_eq!(decode(V5, binary(&[255, 0])), Said::Ended(0));
        assert_eq!(decode(V5, binary(&[255])), Said::Nothing);
        assert_eq!(
            decode(V4, binary(&[255, 0])),
            Said::Data(255, Bytes::from_static(&[0]))
        );
    }

    #[test]
    fn what_is_no_message_is_told_apart() {
        assert_eq!(decode(V4, binary(b"")), Said::Nothing);
        assert_eq!(decode(V4, Message::Close(None)), Said::Goodbye);
        assert_eq!(decode(V4_BASE64, binary(b"0%%")), Said::Nonsense);
        assert_eq!(decode(V4_BASE64, binary(b"\0Zm9v")), Said::Nonsense);
    }
}
