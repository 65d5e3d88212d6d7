//! The CRI socket, and the lock that makes this daemon the only one of its state and run directories.
//!
//! The lock decides who is alive: with it held, a socket file at our path is stale and may be replaced.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;

/// Group members may connect, others not.
const MODE: u32 = 0o660;

/// Held as long as the daemon lives; the kernel releases it with the process.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: File,
}

/// Why the daemon cannot have its directories or its socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon has the directory.
    #[error("another clearpod uses {}", directory.display())]
    Locked {
        /// Which directory.
        directory: PathBuf,
    },
    /// What is at the socket's path is no socket.
    #[error("{} exists and is no socket", path.display())]
    Foreign {
        /// Which path.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// "lock", "bind", ...
        operation: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
}

impl DirectoryLock {
    /// Makes the directory and locks it.
    pub(crate) fn take(directory: &Path) -> Result<Self, SocketError> {
        let failed = |operation| {
            let path = directory.to_owned();
            move |source| SocketError::Io {
                operation,
                path,
                source,
            }
        };
        fs_err::create_dir_all(directory).map_err(failed("make"))?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join("lock"))
            .map_err(failed("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(std::fs::TryLockError::WouldBlock) => Err(SocketError::Locked {
                directory: directory.to_owned(),
            }),
            Err(std::fs::TryLockError::Error(source)) => Err(failed("lock")(source)),
        }
    }
}

/// Listens at `path`, replacing a socket that a dead daemon left there. The caller holds the lock.
pub(crate) fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |operation| {
        let path = path.to_owned();
        move |source| SocketError::Io {
            operation,
            path,
            source,
        }
    };
    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent).map_err(failed("make the directory of"))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            std::fs::remove_file(path).map_err(failed("remove the stale socket"))?;
        }
        Ok(_) => {
            return Err(SocketError::Foreign {
                path: path.to_owned(),
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at")(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed("bind"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))
        .map_err(failed("set the mode of"))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_daemon_and_a_dead_one_holds_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run");
        let first = DirectoryLock::take(&path).unwrap();
        assert!(matches!(
            DirectoryLock::take(&path),
            Err(SocketError::Locked { .. })
        ));
        drop(first);
        DirectoryLock::take(&path).unwrap();
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_foreign_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clearpod.sock");
        drop(bind(&path).unwrap());
        assert!(path.exists());
        let _listener = bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        let foreign = directory.path().join("file");
        fs_err::write(&foreign, "x").unwrap();
        assert!(matches!(bind(&foreign), Err(SocketError::Foreign { .. })));
        assert!(foreign.exists());
    }
}
