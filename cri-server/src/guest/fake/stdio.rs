//! The stdio port of a fake guest: `proto::stdio` from the agent's side.

use std::{io, sync::Arc};

use proto::stdio::{FrameHeader, HELLO_FIXED_LEN, Hello, HelloFixed, MAX_FRAME, Role, Status, Stream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{agent::FakeAgent, output::Chunk, process::FakeProcess};

/// Serves one connection to the end.
pub(super) async fn serve<C: AsyncRead + AsyncWrite>(agent: &FakeAgent, connection: C) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(connection);
    let hello = read_hello(&mut reader).await?;
    let Some(process) = agent.process(&hello.container_id, &hello.exec_id) else {
        return writer.write_all(&[Status::NotFound.encode()]).await;
    };
    match hello.role {
        Role::Stdin | Role::StdinKept if !process.wants_stdin => {
            writer.write_all(&[Status::NoStdin.encode()]).await
        }
        Role::Stdin | Role::StdinKept => {
            let sender = process.connect_stdin(hello.role == Role::StdinKept).await;
            writer.write_all(&[Status::Ok.encode()]).await?;
            let mut buffer = vec![0; 4096];
            loop {
                let read = reader.read(&mut buffer).await?;
                let bytes = buffer.get(..read).unwrap_or_default().to_vec();
                if bytes.is_empty() || sender.send(bytes).await.is_err() {
                    return Ok(());
                }
            }
        }
        Role::Output => match process.output.open(hello.offset) {
            None => writer.write_all(&[Status::OffsetGone.encode()]).await,
            Some(generation) => {
                writer.write_all(&[Status::Ok.encode()]).await?;
                tokio::select! {
                    sent = send(&process, generation, hello.offset, &mut writer) => sent?,
                    acknowledged = acknowledgements(&process, &mut reader) => return acknowledged,
                }
                // The last acknowledgements may come after the end.
                acknowledgements(&process, &mut reader).await
            }
        },
    }
}

async fn read_hello(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Hello> {
    let mut fixed = [0; HELLO_FIXED_LEN];
    reader.read_exact(&mut fixed).await?;
    let fixed = HelloFixed::decode(&fixed).map_err(io::Error::other)?;
    let mut ids = vec![0; fixed.ids_len()];
    reader.read_exact(&mut ids).await?;
    fixed.with_ids(&ids).map_err(io::Error::other)
}

async fn send(
    process: &Arc<FakeProcess>,
    generation: u64,
    mut offset: u64,
    writer: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let header = |stream, len: usize| FrameHeader {
        stream,
        len: u32::try_from(len).unwrap_or(u32::MAX),
    };
    loop {
        match process.output.read(generation, offset, MAX_FRAME).await {
            Chunk::Data(stream, bytes) => {
                writer.write_all(&header(stream, bytes.len()).encode()).await?;
                writer.write_all(&bytes).await?;
                offset += bytes.len() as u64;
            }
            Chunk::End => {
                for stream in [Stream::Stdout, Stream::Stderr] {
                    writer.write_all(&header(stream, 0).encode()).await?;
                }
                return writer.shutdown().await;
            }
            Chunk::Replaced => return Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }
}

async fn acknowledgements(
    process: &Arc<FakeProcess>,
    reader: &mut (impl AsyncRead + Unpin),
) -> io::Result<()> {
    loop {
        match reader.read_u64_le().await {
            Ok(offset) => process.output.acknowledge(offset),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
