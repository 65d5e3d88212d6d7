//! Moves bytes between two streams until both have ended, and can be made to stand still. One relay per connection to a fake
//! guest, so that a test can cut and stall connections whoever serves them.

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::watch,
};

/// Relays until both directions have ended or one broke.
pub(super) async fn relay<A, B>(left: A, right: B, stalled: watch::Receiver<bool>)
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (left_reader, left_writer) = tokio::io::split(left);
    let (right_reader, right_writer) = tokio::io::split(right);
    let there = pump(left_reader, right_writer, stalled.clone());
    let back = pump(right_reader, left_writer, stalled);
    // A broken direction ends the other one, as a closed vsock connection does.
    drop(tokio::try_join!(there, back));
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut stalled: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        // The sender lives as long as the Machine.
        if stalled.wait_for(|stalled| !stalled).await.is_err() {
            return Ok(());
        }
        match buffer.get(..read) {
            Some([]) | None => return to.shutdown().await,
            Some(bytes) => to.write_all(bytes).await?,
        }
    }
}
