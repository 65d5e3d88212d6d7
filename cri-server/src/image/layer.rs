//! One layer on its way from the registry to a finished blob.
//!
//! Two halves joined by a small queue: the async half downloads, a blocking thread hashes, decompresses and unpacks what
//! arrives. Nothing is published before both digests (of the bytes as sent, and of the tar in them) were right; until
//! then there is only a temporary file, which is deleted with the thread that owns it or at the next start.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Buf as _, Bytes};
use flate2::bufread::MultiGzDecoder;
use tokio::sync::mpsc;

use super::{
    catalog::{CatalogError, LayerRecord},
    config::Limits,
    digest::{Digest, Hasher},
    erofs::{self, Blob, Tree},
    error::LayerError,
    layer_tree::{append_failed, read_layer},
    registry::BlobSink,
    shelf::Shelf,
    tar::Archive,
};

/// Pieces between download and unpacking; a piece is what one read of a connection gives (at most some 100 KiB).
const QUEUE: usize = 16;

/// What is expected of a layer.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// Of the bytes that the registry sends.
    pub(crate) digest: Digest,
    /// Of the tar in them.
    pub(crate) diff_id: Digest,
}

/// Why a layer did not become a blob.
#[derive(Debug)]
pub(crate) enum UnpackFault {
    Digest {
        what: &'static str,
        expected: Digest,
        actual: Digest,
    },
    NoSpace {
        path: PathBuf,
        source: io::Error,
    },
    Layer(LayerError),
    Catalog(CatalogError),
}

impl From<LayerError> for UnpackFault {
    fn from(error: LayerError) -> Self {
        Self::Layer(error)
    }
}

enum Piece {
    Bytes(Bytes),
    /// All were sent. A queue that ends without it was cut.
    End,
}

/// The end of the queue that the download fills.
#[derive(Debug)]
pub(crate) struct Feed {
    queue: mpsc::Sender<Piece>,
}

impl Feed {
    /// Tells the unpacker that the layer is complete. Without this it throws everything away.
    pub(crate) async fn end(self) {
        // A closed queue means that the unpacker failed; its own result tells why.
        drop(self.queue.send(Piece::End).await);
    }
}

impl BlobSink for Feed {
    async fn accept(&mut self, bytes: Bytes) -> bool {
        self.queue.send(Piece::Bytes(bytes)).await.is_ok()
    }
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::End => f.write_str("End"),
        }
    }
}

/// The end of the queue that a blocking thread empties with [`unpack`].
#[derive(Debug)]
pub(crate) struct Intake {
    queue: mpsc::Receiver<Piece>,
    current: Bytes,
    hasher: Hasher,
    ended: bool,
}

pub(crate) fn queue() -> (Feed, Intake) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let intake = Intake {
        queue: receiver,
        current: Bytes::new(),
        hasher: Hasher::default(),
        ended: false,
    };
    (Feed { queue: sender }, intake)
}

impl Read for Intake {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self
                .ended
                .then_some(Piece::End)
                .or_else(|| self.queue.blocking_recv())
            {
                Some(Piece::Bytes(bytes)) => {
                    self.hasher.update(&bytes);
                    self.current = bytes;
                }
                Some(Piece::End) => {
                    self.ended = true;
                    return Ok(0);
                }
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        let length = into.len().min(self.current.len());
        self.current.copy_to_slice(&mut into[..length]);
        Ok(length)
    }
}

/// Unpacks what arrives, publishes the blob and records it. Blocking.
pub(crate) fn unpack(
    shelf: &Arc<Shelf>,
    expected: &Expected,
    mut intake: Intake,
    temporary: &Path,
) -> Result<LayerRecord, UnpackFault> {
    let temporary = TemporaryFile::new(temporary);
    let outcome = write_blob(shelf, expected, &mut intake, &temporary);
    // Damaged bytes show first as nonsense in the tar: if the download ends and its digest is wrong, that is the news.
    if matches!(
        outcome,
        Err(UnpackFault::Layer(
            LayerError::Entry { .. } | LayerError::Stream { .. }
        ))
    ) {
        let complete = io::copy(&mut intake, &mut io::sink()).is_ok();
        if !complete {
            return Err(LayerError::Aborted.into());
        }
    }
    let outcome = match outcome {
        Err(UnpackFault::Layer(LayerError::Entry { .. } | LayerError::Stream { .. })) | Ok(_) => {
            check("digest", &expected.digest, intake.hasher.finish())?;
            outcome
        }
        other => other,
    };
    let (record, actual) = outcome.map_err(|fault| name_lack_of_space(fault, temporary.path))?;
    check("diff_id", &expected.diff_id, actual)?;
    publish(shelf, &expected.diff_id, temporary.path, &record)?;
    temporary.published();
    Ok(record)
}

fn check(what: &'static str, expected: &Digest, actual: Digest) -> Result<(), UnpackFault> {
    if *expected == actual {
        Ok(())
    } else {
        Err(UnpackFault::Digest {
            what,
            expected: expected.clone(),
            actual,
        })
    }
}

/// Everything but the verdict: the blob in its temporary file, and the digest of the tar.
fn write_blob(
    shelf: &Shelf,
    expected: &Expected,
    intake: &mut Intake,
    temporary: &TemporaryFile<'_>,
) -> Result<(LayerRecord, Digest), UnpackFault> {
    let limits = &shelf.config.limits;
    let mut blob = Blob::new(temporary.create()?);
    let (tree, actual) = read_tar(intake, &mut blob, limits)?;
    io::copy(intake, &mut io::sink()).map_err(|source| LayerError::Stream { source })?;
    let size = erofs::finish(blob, &tree, uuid(&expected.diff_id)).map_err(append_failed)?;
    Ok((
        LayerRecord {
            size,
            implied_dirs: tree.implied_directories(),
        },
        actual,
    ))
}

fn read_tar(intake: &mut Intake, blob: &mut Blob, limits: &Limits) -> Result<(Tree, Digest), LayerError> {
    let stream = |source| LayerError::Stream { source };
    let plain = decompress(intake).map_err(stream)?;
    let mut archive = Archive::new(HashingReader {
        source: plain,
        hasher: Hasher::default(),
    });
    let tree = read_layer(&mut archive, blob, limits)?;
    let mut rest = archive.into_source();
    // Behind a tar's end there is only padding to whole records; more is somebody's bomb.
    let padding = io::copy(&mut rest.by_ref().take(MAX_TRAILER + 1), &mut io::sink()).map_err(stream)?;
    if padding > MAX_TRAILER {
        return Err(LayerError::TooMuch {
            what: "bytes behind the tar's end",
            limit: MAX_TRAILER,
        });
    }
    Ok((tree, rest.hasher.finish()))
}

const MAX_TRAILER: u64 = 16 << 20;

/// The first half of the diff id: equal layers are equal blobs, and `blkid` tells which one it sees.
pub(crate) fn uuid(diff_id: &Digest) -> [u8; 16] {
    let mut uuid = [0; 16];
    for (byte, digits) in uuid.iter_mut().zip(diff_id.hex().as_bytes().chunks(2)) {
        let text = std::str::from_utf8(digits).unwrap_or("0");
        *byte = u8::from_str_radix(text, 16).unwrap_or(0);
    }
    uuid
}

/// Durable under its final name first, recorded second: a kill in between leaves a file that the next start deletes.
pub(crate) fn publish(
    shelf: &Arc<Shelf>,
    diff_id: &Digest,
    temporary: &Path,
    record: &LayerRecord,
) -> Result<(), UnpackFault> {
    let path = shelf.layer_path(&diff_id.to_string());
    fs_err::rename(temporary, &path)
        .and_then(|()| match path.parent() {
            Some(folder) => fs_err::File::open(folder)?.sync_all(),
            None => Ok(()),
        })
        .map_err(|source| LayerError::Io {
            operation: "publish",
            path,
            source,
        })?;
    shelf.record_layer(diff_id, record).map_err(UnpackFault::Catalog)
}

/// ENOSPC and EDQUOT are the operator's to solve, so they are told apart.
pub(crate) fn name_lack_of_space(fault: UnpackFault, path: &Path) -> UnpackFault {
    match fault {
        UnpackFault::Layer(LayerError::Write { source } | LayerError::Io { source, .. })
            if matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) =>
        {
            UnpackFault::NoSpace {
                path: path.to_owned(),
                source,
            }
        }
        other => other,
    }
}

/// Deletes a temporary file unless it got its final name.
#[derive(Debug)]
pub(crate) struct TemporaryFile<'a> {
    path: &'a Path,
}

impl<'a> TemporaryFile<'a> {
    pub(crate) fn new(path: &'a Path) -> Self {
        Self { path }
    }

    pub(crate) fn published(self) {
        std::mem::forget(self);
    }

    /// Creates the file, which must not exist.
    pub(crate) fn create(&self) -> Result<fs_err::File, LayerError> {
        fs_err::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(self.path)
            .map_err(|source| LayerError::Io {
                operation: "create",
                path: self.path.to_owned(),
                source,
            })
    }
}

impl Drop for TemporaryFile<'_> {
    fn drop(&mut self) {
        if let Err(error) = fs_err::remove_file(self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "a temporary file stays until the next start");
        }
    }
}

/// Digest of the tar while it is read.
struct HashingReader<R> {
    source: R,
    hasher: Hasher,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let got = self.source.read(into)?;
        self.hasher.update(&into[..got]);
        Ok(got)
    }
}

/// Sees from the first bytes how a layer is compressed (RFC 1952 §2.3.1, RFC 8878 §3.1.1).
fn decompress<'a>(intake: &'a mut Intake) -> io::Result<Box<dyn Read + 'a>> {
    const GZIP: [u8; 2] = [0x1f, 0x8b];
    const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
    const BUFFER: usize = 64 * 1024;
    let mut magic = Vec::with_capacity(4);
    intake.by_ref().take(4).read_to_end(&mut magic)?;
    let start = magic.clone();
    let whole = Read::chain(io::Cursor::new(start), intake);
    if magic.starts_with(&GZIP) {
        return Ok(Box::new(MultiGzDecoder::new(io::BufReader::with_capacity(
            BUFFER, whole,
        ))));
    }
    if magic.starts_with(&ZSTD) {
        return Ok(Box::new(zstd::stream::read::Decoder::new(whole)?));
    }
    Ok(Box::new(io::BufReader::with_capacity(BUFFER, whole)))
}
