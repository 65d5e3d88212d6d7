//! The client's end of a connection, as small as a test needs it, and the decoder for the fuzz target.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{
        AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, Empty, Sink, duplex,
        empty, sink, split,
    },
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    frame::{self, Decoder, Encoder, Frame, ResetReason},
    headers::Headers,
    session::Session,
};
use crate::streaming::connection::Line;

/// Sends what a client sends and returns what it is answered. Reads only when it is asked to.
#[derive(Debug)]
pub struct SpdyClient<R, W> {
    reader: R,
    writer: W,
    decoder: Decoder,
    encoder: Encoder,
    last_stream: u32,
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// A stream is accepted.
    Accepted(u32),
    /// Bytes of a stream; the flag says that they are the last.
    Data(u32, Bytes, bool),
    /// A stream is broken off.
    Reset(u32),
    /// A ping comes back.
    Pong(u32),
    /// The server takes this many bytes more of a stream, or of the connection (0).
    Window(u32, u32),
    /// The server ends the connection.
    GoAway,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> SpdyClient<R, W> {
    /// A client after its HTTP upgrade.
    pub fn new(reader: R, writer: W) -> Self {
        Self {
            reader,
            writer,
            decoder: Decoder::new(),
            encoder: Encoder::new(),
            last_stream: 0,
        }
    }

    /// One half that only receives and one that only sends, for two tasks.
    pub fn split(self) -> (SpdyClient<R, Sink>, SpdyClient<Empty, W>) {
        let receiving = SpdyClient {
            reader: self.reader,
            writer: sink(),
            decoder: self.decoder,
            encoder: Encoder::new(),
            last_stream: 0,
        };
        let sending = SpdyClient {
            reader: empty(),
            writer: self.writer,
            decoder: Decoder::new(),
            encoder: self.encoder,
            last_stream: self.last_stream,
        };
        (receiving, sending)
    }

    /// Opens a stream; its id.
    ///
    /// # Errors
    /// When the server is gone.
    pub async fn open(&mut self, headers: &[(&str, &str)]) -> io::Result<u32> {
        let stream = if self.last_stream == 0 {
            1
        } else {
            self.last_stream + 2
        };
        self.last_stream = stream;
        let headers: Headers = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let mut bytes = BytesMut::new();
        self.encoder.syn_stream(stream, &headers, &mut bytes);
        self.raw(&bytes).await?;
        Ok(stream)
    }

    /// Sends bytes on a stream.
    ///
    /// # Errors
    /// When the server is gone.
    pub async fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) -> io::Result<()> {
        let mut frame = BytesMut::new();
        frame::data(stream, bytes.len(), fin, &mut frame);
        frame.extend_from_slice(bytes);
        self.raw(&frame).await
    }

    /// Breaks a stream off.
    ///
    /// # Errors
    /// When the server is gone.
    pub async fn reset(&mut self, stream: u32) -> io::Result<()> {
        let mut frame = BytesMut::new();
        frame::reset(stream, ResetReason::Cancel, &mut frame);
        self.raw(&frame).await
    }

    /// Sends a ping.
    ///
    /// # Errors
    /// When the server is gone.
    pub async fn ping(&mut self, id: u32) -> io::Result<()> {
        let mut frame = BytesMut::new();
        frame::ping(id, &mut frame);
        self.raw(&frame).await
    }

    /// Opens a window of the server's: it is bound to them from then on.
    ///
    /// # Errors
    /// When the server is gone.
    pub async fn window(&mut self, stream: u32, delta: u32) -> io::Result<()> {
        let mut frame = BytesMut::new();
        frame::window_update(stream, delta, &mut frame);
        self.raw(&frame).await
    }

    /// Sends any bytes.
    ///
    /// # Errors
    /// When the server is gone.
    pub async fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes).await?;
        self.writer.flush().await
    }

    /// What the server says next; `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// When it says nonsense, or the connection breaks.
    pub async fn next(&mut self) -> io::Result<Option<ClientEvent>> {
        loop {
            if let Some(frame) = self.decoder.next().map_err(io::Error::other)? {
                match frame {
                    Frame::SynReply { stream, .. } => return Ok(Some(ClientEvent::Accepted(stream))),
                    Frame::Data { stream, fin, bytes } => {
                        return Ok(Some(ClientEvent::Data(stream, bytes, fin)));
                    }
                    Frame::Reset { stream } => return Ok(Some(ClientEvent::Reset(stream))),
                    Frame::Ping { id } => return Ok(Some(ClientEvent::Pong(id))),
                    Frame::WindowUpdate { stream, delta } => {
                        return Ok(Some(ClientEvent::Window(stream, delta)));
                    }
                    Frame::GoAway => return Ok(Some(ClientEvent::GoAway)),
                    other => return Err(io::Error::other(format!("{other:?} from a server"))),
                }
            }
            let buffer = self.decoder.buffer();
            if self.reader.read_buf(buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// Any bytes, in pieces of any size, are frames or an error; what comes out is never more than went in, headers apart.
pub fn decode_frames(bytes: &[u8], piece: usize) {
    let mut decoder = Decoder::new();
    let mut data = 0;
    for piece in bytes.chunks(piece.max(1)) {
        decoder.buffer().extend_from_slice(piece);
        loop {
            match decoder.next() {
                Ok(Some(Frame::Data { bytes, .. })) => data += bytes.len(),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    assert!(data <= bytes.len(), "{data} bytes of data in {}", bytes.len());
}

/// A whole connection whose client sends any bytes, reads everything, and hangs up; its streams are echoed. It ends.
///
/// # Panics
/// When it does not end, or no runtime can be made.
pub fn converse(bytes: &[u8]) {
    let bytes = bytes.to_vec();
    in_no_time(async {
        let (client, server) = duplex(4096);
        let line = Line::new(CancellationToken::new());
        let client = hang_up_after(client, bytes);
        let (reader, writer) = split(server);
        echoed(reader, writer, &line).await;
        client.join_all().await;
    });
}

/// Runs what has to end by itself.
///
/// # Panics
/// When it does not, or no runtime can be made.
pub(in crate::streaming) fn in_no_time(conversation: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    // Paused time passes only when nothing can go on: this is the length of a deadlock, and not of a slow machine.
    let deadlock = std::time::Duration::from_secs(3600);
    let conversation = async { tokio::time::timeout(deadlock, conversation).await };
    runtime.block_on(conversation).expect("the conversation ends");
}

/// A client that sends these bytes and reads all that comes.
pub(in crate::streaming) fn hang_up_after(client: DuplexStream, bytes: Vec<u8>) -> JoinSet<()> {
    let (mut from_server, mut to_server) = split(client);
    let mut client = JoinSet::new();
    client.spawn(async move {
        // The server may hang up first.
        to_server.write_all(&bytes).await.ok();
        to_server.shutdown().await.ok();
    });
    client.spawn(async move {
        from_server.read_to_end(&mut Vec::new()).await.ok();
    });
    client
}

/// The server's side: every stream is echoed, until the client goes.
pub(in crate::streaming) async fn echoed(
    reader: impl AsyncRead + Unpin + Send + 'static,
    writer: impl AsyncWrite + Unpin + Send + 'static,
    line: &Line,
) {
    let mut session = Session::start(reader, writer, line);
    let _watch = worn_out(line);
    let mut handlers = JoinSet::new();
    while let Some(new) = session.accept().await {
        handlers.spawn(async move {
            let Some((mut incoming, outgoing)) = new.accept() else {
                return;
            };
            while let Some(bytes) = incoming.next().await {
                if outgoing.send(bytes).await.is_err() {
                    return;
                }
            }
            drop(outgoing.finish().await);
        });
    }
    drop(session);
    handlers.join_all().await;
}

/// A client that closed its own windows waits for ever: the server's limit ends that.
fn worn_out(line: &Line) -> JoinSet<()> {
    let mut watch = JoinSet::new();
    let watched = line.clone();
    watch.spawn(async move {
        watched.worn_out(std::time::Duration::from_secs(60), None).await;
        watched.closed.cancel();
    });
    watch
}
