//! One SPDY connection: a task that reads, a task that writes, and the streams that the client opens.

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    error::SpdyError,
    frame::{self, Decoder, Encoder, Frame, GoAwayReason, ResetReason},
    headers::Headers,
    state::Shared,
    stream::{Credit, Outbound, SpdyOutgoing},
};
use crate::streaming::{
    connection::Line,
    stream::{Incoming, Outgoing},
};

/// Bytes read at once.
const READ: usize = 32 * 1024;
/// Pieces of a stream, each at most [`READ`], that wait for its handler.
const STREAM_PIECES: usize = 16;
/// Data frames of all streams that wait for the client.
const QUEUED_FRAMES: usize = 8;
/// Streams that wait to be accepted.
const NEW_STREAMS: usize = 16;
/// For a client that broke the protocol to be told.
const LAST_WORD: Duration = Duration::from_secs(1);

/// The server's end of a connection.
#[derive(Debug)]
pub(crate) struct Session {
    new_streams: mpsc::Receiver<NewStream>,
    shared: Arc<Shared>,
    queue: mpsc::Sender<Outbound>,
    written: CancellationToken,
    /// Reader and writer, stopped with this value.
    _tasks: JoinSet<()>,
}

/// A stream that the client wants. Dropped, it is refused.
#[derive(Debug)]
pub(crate) struct NewStream {
    pub(crate) id: u32,
    pub(crate) headers: Headers,
    shared: Arc<Shared>,
    halves: Option<(Incoming, SpdyOutgoing)>,
}

impl Session {
    /// Takes over a connection that was upgraded.
    pub(crate) fn start(
        reader: impl AsyncRead + Unpin + Send + 'static,
        writer: impl AsyncWrite + Unpin + Send + 'static,
        line: &Line,
    ) -> Self {
        let shared = Arc::new(Shared::new(line.closed.clone()));
        let (queue, queued) = mpsc::channel(QUEUED_FRAMES);
        let (new_sender, new_streams) = mpsc::channel(NEW_STREAMS);
        let written = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let receiving = Reader {
            shared: Arc::clone(&shared),
            queue: queue.clone(),
            new_streams: new_sender,
            line: line.clone(),
        };
        let (shared_to_read, reader_end) = (Arc::clone(&shared), written.clone());
        tasks.spawn(async move {
            receiving.run(reader, &reader_end).await;
            shared_to_read.end();
        });
        let (shared_to_write, writer_end) = (Arc::clone(&shared), written.clone());
        let line = line.clone();
        tasks.spawn(async move {
            if let Err(error) = write(writer, queued, &shared_to_write, &line).await {
                tracing::debug!(%error, "the client does not take bytes any more");
                shared_to_write.closed.cancel();
            }
            writer_end.cancel();
        });
        Self {
            new_streams,
            shared,
            queue,
            written,
            _tasks: tasks,
        }
    }

    /// The next stream that the client opens; `None` when the connection is over. Cancel-safe.
    pub(crate) async fn accept(&mut self) -> Option<NewStream> {
        self.new_streams.recv().await
    }

    /// Every further stream is refused.
    pub(crate) fn refuse_more(&mut self) {
        self.new_streams.close();
        while self.new_streams.try_recv().is_ok() {}
    }

    /// Says goodbye after everything that was sent, and waits until it is written. What the client still sends is thrown away
    /// as long as this value lives: unread bytes would make the kernel reset the connection under the client's last ones.
    pub(crate) async fn close(&mut self) {
        self.refuse_more();
        // Behind all data.
        let last = Outbound {
            stream: 0,
            bytes: Bytes::new(),
            fin: true,
        };
        drop(self.queue.send(last).await);
        self.written.cancelled().await;
    }
}

impl NewStream {
    /// Says so to the client.
    pub(crate) fn accept(mut self) -> Option<(Incoming, Outgoing)> {
        self.shared.reply(self.id);
        let (incoming, outgoing) = self.halves.take()?;
        Some((incoming, Outgoing::Spdy(outgoing)))
    }

    /// The header `name`, in lower case.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

impl Drop for NewStream {
    fn drop(&mut self) {
        if self.halves.is_some() {
            drop(self.shared.reset(self.id, ResetReason::Refused));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.end();
    }
}

/// Takes frames from the client.
struct Reader {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Outbound>,
    new_streams: mpsc::Sender<NewStream>,
    line: Line,
}

/// The connection is over, in order or not.
enum End {
    /// The client has hung up, or said goodbye.
    Gone,
    Broken(SpdyError),
}

impl Reader {
    async fn run(&self, reader: impl AsyncRead + Unpin, written: &CancellationToken) {
        let end = tokio::select! {
            end = self.read(reader) => end,
            () = self.shared.closed.cancelled() => return,
        };
        if let End::Broken(error) = end {
            tracing::warn!(%error, "a streaming client breaks the protocol");
            self.shared.go_away(GoAwayReason::ProtocolError);
            // It may not read.
            drop(timeout(LAST_WORD, written.cancelled()).await);
        }
    }

    async fn read(&self, mut reader: impl AsyncRead + Unpin) -> End {
        let mut decoder = Decoder::new();
        loop {
            loop {
                match decoder.next() {
                    Ok(Some(frame)) => {
                        if let Err(end) = self.frame(frame).await {
                            return end;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return End::Broken(error),
                }
            }
            let buffer = decoder.buffer();
            buffer.reserve(READ);
            match reader.read_buf(buffer).await {
                Ok(0) => return End::Gone,
                Err(error) => {
                    tracing::debug!(%error, "the streaming connection broke");
                    return End::Gone;
                }
                Ok(_) => self.line.touch(),
            }
        }
    }

    async fn frame(&self, frame: Frame) -> Result<(), End> {
        self.shared.check_answers().map_err(End::Broken)?;
        match frame {
            Frame::SynStream { stream, fin, headers } => self.opened(stream, fin, headers).await?,
            Frame::Data { stream, fin, bytes } => {
                self.data(stream, bytes).await?;
                if fin {
                    self.shared.inbound_ended(stream);
                }
            }
            Frame::Headers { stream, fin } => {
                if fin {
                    self.shared.inbound_ended(stream);
                }
            }
            Frame::Reset { stream } => self.shared.was_reset(stream),
            Frame::Ping { id } => {
                // The even ones would be answers to pings of ours, which we do not send.
                if !id.is_multiple_of(2) {
                    self.shared.ping(id);
                }
            }
            Frame::WindowUpdate { stream, delta } => {
                self.shared.window_update(stream, delta).map_err(End::Broken)?;
            }
            Frame::Settings { initial_window } => {
                if let Some(initial) = initial_window {
                    self.shared.initial_window(initial);
                }
            }
            // We open no streams.
            Frame::SynReply { .. } => {}
            Frame::GoAway => return Err(End::Gone),
        }
        Ok(())
    }

    async fn opened(&self, stream: u32, fin: bool, headers: Headers) -> Result<(), End> {
        let (sender, receiver) = mpsc::channel(STREAM_PIECES);
        let Some(reset) = self.shared.open(stream, sender).map_err(End::Broken)? else {
            return Ok(());
        };
        if fin {
            self.shared.inbound_ended(stream);
        }
        let credit = Credit {
            stream,
            shared: Arc::clone(&self.shared),
        };
        let outgoing = SpdyOutgoing {
            stream,
            shared: Arc::clone(&self.shared),
            queue: self.queue.clone(),
            reset,
            finished: false,
        };
        let new = NewStream {
            id: stream,
            headers,
            shared: Arc::clone(&self.shared),
            halves: Some((Incoming::new(receiver, Some(credit)), outgoing)),
        };
        tokio::select! {
            // A handler that takes no more refuses it by that.
            sent = self.new_streams.send(new) => drop(sent),
            () = self.line.hung_up() => return Err(End::Gone),
        }
        Ok(())
    }

    /// Hands bytes to their stream; waits while its handler has enough, and nothing else is read meanwhile.
    async fn data(&self, stream: u32, bytes: Bytes) -> Result<(), End> {
        let length = bytes.len();
        if length == 0 {
            return Ok(());
        }
        let Some((inbound, reset)) = self.shared.inbound(stream) else {
            if !self.shared.knows(stream) {
                self.shared
                    .reset(stream, ResetReason::InvalidStream)
                    .map_err(End::Broken)?;
            }
            self.shared.took(stream, length);
            return Ok(());
        };
        tokio::select! {
            sent = inbound.send(bytes) => {
                if sent.is_err() {
                    // The handler wants no more of it.
                    self.shared.took(stream, length);
                }
            }
            () = reset.cancelled() => self.shared.took(stream, length),
            () = self.line.hung_up() => return Err(End::Gone),
        }
        Ok(())
    }
}

/// Sends answers before data, and data as it comes, until the end is to be said.
async fn write(
    mut writer: impl AsyncWrite + Unpin,
    mut queued: mpsc::Receiver<Outbound>,
    shared: &Shared,
    line: &Line,
) -> io::Result<()> {
    let mut encoder = Encoder::new();
    let mut buffer = BytesMut::new();
    loop {
        let mut last = shared.take_control(&mut encoder, &mut buffer);
        if buffer.is_empty() {
            tokio::select! {
                () = shared.work.notified() => continue,
                () = shared.closed.cancelled() => return Ok(()),
                outbound = queued.recv() => match outbound {
                    None => return Ok(()),
                    Some(Outbound { stream: 0, .. }) => {
                        shared.go_away(GoAwayReason::Done);
                        continue;
                    }
                    Some(Outbound { stream, bytes, fin }) => {
                        // A stream's acceptance may have come with its first bytes, and goes before them.
                        last = shared.take_control(&mut encoder, &mut buffer);
                        frame::data(stream, bytes.len(), fin, &mut buffer);
                        buffer.extend_from_slice(&bytes);
                    }
                },
            }
        }
        tokio::select! {
            written = writer.write_all(&buffer) => written?,
            () = shared.closed.cancelled() => return Ok(()),
        }
        buffer.clear();
        writer.flush().await?;
        line.touch();
        if last {
            return writer.shutdown().await;
        }
    }
}

#[cfg(test)]
mod tests;
