//! Unix sockets whose paths may be longer than `sockaddr_un` holds, and descriptors sent over them. No protocol.
//!
//! unix(7) limits a socket's path to 107 bytes; a state directory that the operator chose plus a sandbox id can exceed
//! that. Such a path is reached through a descriptor of its directory: `/proc/self/fd/<n>/<name>`.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
};

/// Longest path that fits into `sun_path` with its terminating zero.
const MAX_PATH: usize = 107;
/// Most descriptors in one message of ours.
pub(crate) const MAX_DESCRIPTORS: usize = 4;

/// A path that fits, and what keeps it valid.
struct Address {
    path: PathBuf,
    _directory: Option<OwnedFd>,
}

fn address(path: &Path) -> io::Result<Address> {
    if path.as_os_str().len() <= MAX_PATH {
        return Ok(Address {
            path: path.to_owned(),
            _directory: None,
        });
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let directory = rustix::fs::open(
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    Ok(Address {
        path: Path::new("/proc/self/fd")
            .join(directory.as_raw_fd().to_string())
            .join(name),
        _directory: Some(directory),
    })
}

/// Connects to the socket at `path`.
pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = address(path)?;
    UnixStream::connect(&address.path).await
}

/// Listens at `path`, where nothing may be yet.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    let address = address(path)?;
    UnixListener::bind(&address.path)
}

/// Sends the first bytes of `bytes` with `descriptors` (at most [`MAX_DESCRIPTORS`]) attached; returns how many bytes went.
pub(crate) async fn send_with_descriptors(
    stream: &UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(io::Error::from(io::ErrorKind::InvalidInput));
            }
            Ok(sendmsg(
                stream,
                &[IoSlice::new(bytes)],
                &mut control,
                SendFlags::NOSIGNAL,
            )?)
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_path_longer_than_sun_path_is_listened_on_and_reached() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(120));
        fs_err::create_dir(&deep).unwrap();
        let path = deep.join("vsock.sock");
        let listener = listen(&path).unwrap();
        let (connected, accepted) = tokio::join!(connect(&path), listener.accept());
        connected.unwrap();
        accepted.unwrap();
        assert!(path.exists());
    }
}
