//! One connection of the daemon on the stdio port: hello, status, then one of the two roles.
//!
//! The daemon is trusted, but the bytes are checked all the same: a hello has a deadline and a limited size, an
//! acknowledgement beyond what was written ends the connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use proto::stdio::{FrameHeader, HELLO_FIXED_LEN, Hello, HelloFixed, Role, Status, Stream};
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::log::Next;
use super::process::ProcessStdio;

/// From accept to the end of the hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of stdin taken at once.
const STDIN_CHUNK: usize = 16 * 1024;

/// Finds a process's streams by container and exec id.
pub(crate) trait Processes {
    /// `None`: no such process.
    fn stdio(&self, container_id: &str, exec_id: &str) -> Option<Arc<ProcessStdio>>;
}

/// Serves one connection until either side ends it.
///
/// # Errors
/// What reading and writing the connection answer; a hello that is none.
pub(crate) async fn serve<C>(connection: C, processes: &impl Processes) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite,
{
    let (mut from_daemon, mut to_daemon) = tokio::io::split(connection);
    let hello = tokio::time::timeout(HELLO_DEADLINE, read_hello(&mut from_daemon)).await??;
    let Some(stdio) = processes.stdio(&hello.container_id, &hello.exec_id) else {
        return refuse(&mut to_daemon, Status::NotFound).await;
    };
    match hello.role {
        Role::Output => match stdio.attach_output(hello.offset) {
            Ok(replaced) => {
                to_daemon.write_all(&[Status::Ok.encode()]).await?;
                output(&stdio, hello.offset, replaced, from_daemon, to_daemon).await
            }
            Err(_) => refuse(&mut to_daemon, Status::OffsetGone).await,
        },
        Role::Stdin | Role::StdinKept => match stdio.attach_stdin() {
            Some((replaced, Some(stdin))) => {
                to_daemon.write_all(&[Status::Ok.encode()]).await?;
                tokio::select! {
                    done = input(&stdio, &stdin, from_daemon, hello.role == Role::StdinKept) => done,
                    () = replaced.cancelled() => Ok(()),
                }
            }
            // Closed before: accepted and at its end, as writing to a process that closed its stdin would be.
            Some((_, None)) => refuse(&mut to_daemon, Status::Ok).await,
            None => refuse(&mut to_daemon, Status::NoStdin).await,
        },
    }
}

async fn refuse(to_daemon: &mut (impl AsyncWrite + Unpin), status: Status) -> io::Result<()> {
    to_daemon.write_all(&[status.encode()]).await?;
    to_daemon.shutdown().await
}

async fn read_hello(from_daemon: &mut (impl AsyncRead + Unpin)) -> io::Result<Hello> {
    let mut fixed = [0; HELLO_FIXED_LEN];
    from_daemon.read_exact(&mut fixed).await?;
    let fixed = HelloFixed::decode(&fixed).map_err(io::Error::other)?;
    let mut ids = vec![0; fixed.ids_len()];
    from_daemon.read_exact(&mut ids).await?;
    fixed.with_ids(&ids).map_err(io::Error::other)
}

async fn output(
    stdio: &ProcessStdio,
    offset: u64,
    replaced: CancellationToken,
    from_daemon: impl AsyncRead + Unpin,
    to_daemon: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let send = async {
        send_frames(stdio, offset, to_daemon).await?;
        // All was sent: what is left are acknowledgements, until the daemon closes.
        std::future::pending().await
    };
    // Side by side, because a daemon that stops reading must still be able to acknowledge.
    tokio::select! {
        failed = send => failed,
        done = receive_acknowledgements(stdio, from_daemon) => done,
        () = replaced.cancelled() => Ok(()),
    }
}

async fn send_frames(
    stdio: &ProcessStdio,
    mut offset: u64,
    mut to_daemon: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    loop {
        let next = stdio
            .next(offset)
            .await
            .map_err(|_| io::Error::other("the daemon acknowledged ahead"))?;
        match next {
            Next::Bytes(stream, bytes) => {
                write_frame(&mut to_daemon, stream, &bytes).await?;
                offset += bytes.len() as u64;
            }
            Next::Wait => {}
            Next::Finished => {
                for stream in stdio.streams() {
                    write_frame(&mut to_daemon, stream, &[]).await?;
                }
                return to_daemon.shutdown().await;
            }
        }
    }
}

async fn write_frame(
    to_daemon: &mut (impl AsyncWrite + Unpin),
    stream: Stream,
    bytes: &[u8],
) -> io::Result<()> {
    let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut frame = FrameHeader { stream, len }.encode().to_vec();
    frame.extend_from_slice(bytes);
    to_daemon.write_all(&frame).await
}

async fn receive_acknowledgements(
    stdio: &ProcessStdio,
    mut from_daemon: impl AsyncRead + Unpin,
) -> io::Result<()> {
    let mut offset = [0; size_of::<u64>()];
    loop {
        match from_daemon.read_exact(&mut offset).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        stdio
            .acknowledge(u64::from_le_bytes(offset))
            .map_err(|_| io::Error::other("acknowledgement of bytes that were never written"))?;
    }
}

async fn input(
    stdio: &ProcessStdio,
    stdin: &tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>,
    mut from_daemon: impl AsyncRead + Unpin,
    kept: bool,
) -> io::Result<()> {
    let mut buffer = vec![0; STDIN_CHUNK];
    loop {
        let got = from_daemon.read(&mut buffer).await?;
        if got == 0 {
            if !kept {
                stdio.close_stdin();
            }
            return Ok(());
        }
        let mut rest = buffer.get(..got).unwrap_or_default();
        while !rest.is_empty() {
            let mut ready = stdin.writable().await?;
            match rustix::io::write(stdin.get_ref(), rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                // The process closed its stdin: nobody will ever read this.
                Err(_) => return Ok(()),
            }
        }
    }
}
