//! What a client types and how large its window is: for a process of the guest, whether exec'd or attached to.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proto::agent::v1::TerminalSize;
use serde::Deserialize;
use tokio::time::timeout;

use super::stream::Incoming;
use crate::{
    guest::GuestClient,
    sandbox::chain,
    stdio::{ProcessId, Stdin},
};

/// Longest size that is not whole yet; `{"Width":65535,"Height":65535}` is what clients send.
const MAX_SIZE: usize = 1024;
/// A terminal's end of file is a character (`VEOF` of termios(3)): its line discipline ends a read with it.
const END_OF_FILE: &[u8] = b"\x04";

/// How long a command is held back for the size of its terminal: many look at it once, at their beginning.
const FIRST_SIZE: Duration = Duration::from_millis(100);

/// As `remotecommand.TerminalSize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Size {
    width: u16,
    height: u16,
}

impl From<Size> for TerminalSize {
    fn from(size: Size) -> Self {
        Self {
            width: size.width.into(),
            height: size.height.into(),
        }
    }
}

/// Passes on what the client sends, and its end. Returns as well when the process takes no more.
pub(super) async fn type_in(mut stdin: Stdin, mut incoming: Incoming, terminal: bool) {
    while let Some(bytes) = incoming.next().await {
        if stdin.write(&bytes).await.is_err() {
            return;
        }
    }
    // The process may be gone, and then nobody misses the end.
    if terminal {
        drop(stdin.write(END_OF_FILE).await);
    } else {
        drop(stdin.close().await);
    }
}

/// Passes on what the client sends, and leaves the process's stdin as it is.
pub(super) async fn type_in_kept(mut stdin: Stdin, mut incoming: Incoming) {
    while let Some(bytes) = incoming.next().await {
        if stdin.write(&bytes).await.is_err() {
            return;
        }
    }
}

/// The sizes that a client sends.
#[derive(Debug)]
pub(super) struct Resizes {
    incoming: Option<Incoming>,
    sizes: Sizes,
}

impl Resizes {
    pub(super) fn new(incoming: Option<Incoming>) -> Self {
        Self {
            incoming,
            sizes: Sizes::default(),
        }
    }

    /// The size that the terminal begins with, from a client that sends it as soon as it can, as those do that have a terminal.
    pub(super) async fn first(&mut self) -> Option<Size> {
        timeout(FIRST_SIZE, self.next()).await.ok().flatten()
    }

    /// Tells the process's terminal every size that comes.
    pub(super) async fn pass_on(mut self, guest: &GuestClient, process: &ProcessId) {
        while let Some(Size { width, height }) = self.next().await {
            let resized = guest.resize_terminal(process, width.into(), height.into()).await;
            if let Err(error) = resized {
                tracing::debug!(%process, error = chain(&error), "the terminal keeps its size");
            }
        }
    }

    /// Between two sizes that come together nothing is drawn.
    async fn next(&mut self) -> Option<Size> {
        let incoming = self.incoming.as_mut()?;
        loop {
            if let Some(size) = self.sizes.push(&incoming.next().await?) {
                return Some(size);
            }
        }
    }
}

/// Sizes as JSON, one after the other, in pieces of any length.
#[derive(Debug, Default)]
struct Sizes {
    unfinished: BytesMut,
}

impl Sizes {
    /// The last size that is whole by now. What is no size is thrown away.
    fn push(&mut self, bytes: &Bytes) -> Option<Size> {
        self.unfinished.extend_from_slice(bytes);
        let mut last = None;
        let mut sizes = serde_json::Deserializer::from_slice(&self.unfinished).into_iter::<Size>();
        let read = loop {
            match sizes.next() {
                Some(Ok(size)) => last = Some(size),
                None => break self.unfinished.len(),
                Some(Err(error)) if error.is_eof() => break sizes.byte_offset(),
                Some(Err(_)) => break self.unfinished.len(),
            }
        };
        drop(self.unfinished.split_to(read));
        if self.unfinished.len() > MAX_SIZE {
            self.unfinished.clear();
        }
        last.filter(|size| size.width > 0 && size.height > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(pieces: &[&str]) -> Vec<(u16, u16)> {
        let mut sizes = Sizes::default();
        let pieces = pieces
            .iter()
            .map(|piece| Bytes::copy_from_slice(piece.as_bytes()));
        let sizes = pieces.filter_map(|piece| sizes.push(&piece));
        sizes.map(|size| (size.width, size.height)).collect()
    }

    #[test]
    fn sizes_come_in_any_pieces() {
        let one = r#"{"Width":80,"Height":24}"#;
        assert_eq!(sizes(&[one, "\n", one]), [(80, 24), (80, 24)]);
        assert_eq!(sizes(&[r#"{"Width":8"#, r#"0,"Height":24}"#]), [(80, 24)]);
        let two = format!("{one}\n{}", r#"{"Width":100,"Height":30}"#);
        assert_eq!(sizes(&[&two]), [(100, 30)]);
    }

    #[test]
    fn what_is_no_size_changes_nothing() {
        let good = r#"{"Width":80,"Height":24}"#;
        assert_eq!(sizes(&["nonsense", good]), [(80, 24)]);
        assert_eq!(sizes(&[r#"{"Width":0,"Height":0}"#, good]), [(80, 24)]);
        assert_eq!(sizes(&[r#"{"Width":70000,"Height":1}"#, good]), [(80, 24)]);
        let endless = format!("\"{}", "x".repeat(MAX_SIZE));
        assert_eq!(sizes(&[&endless, good]), [(80, 24)]);
    }
}
