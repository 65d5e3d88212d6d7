//! Network namespaces: made, entered and removed. network_namespaces(7).
//!
//! A thread that changes its namespace is a thread of its own with a name and ends right after: no tokio worker is ever
//! in another network than the node's.

use std::{
    io,
    path::{Path, PathBuf},
    thread,
};

use fs_err::File;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use tokio::sync::oneshot;

use super::NetworkError;

/// Runs `work` on a thread of its own and waits for its end without blocking the runtime.
async fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (send, receive) = oneshot::channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        // The receiver is only gone when the caller was cancelled; then nobody wants the answer.
        drop(send.send(work()));
    })?;
    receive
        .await
        .map_err(|_| io::Error::other("the thread ended without an answer"))?
}

/// Makes a namespace and binds it to `path`, which must not exist.
pub(super) async fn create(path: PathBuf) -> Result<(), NetworkError> {
    let operation = format!("make network namespace {}", path.display());
    on_thread("netns-create", move || {
        if let Some(dir) = path.parent() {
            fs_err::create_dir_all(dir)?;
        }
        fs_err::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)?;
        let bound = unshare(CloneFlags::CLONE_NEWNET).and_then(|()| {
            let own = Path::new("/proc/thread-self/ns/net");
            mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        });
        if let Err(errno) = bound {
            fs_err::remove_file(&path)?;
            return Err(errno.into());
        }
        Ok(())
    })
    .await
    .map_err(|source| NetworkError::system(operation, source))
}

/// Runs `work` inside of the namespace.
pub(super) async fn inside<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, NetworkError> {
    let operation = format!("work in network namespace {}", path.display());
    let path = path.to_owned();
    on_thread("netns-inside", move || {
        setns(File::open(&path)?, CloneFlags::CLONE_NEWNET)?;
        work()
    })
    .await
    .map_err(|source| NetworkError::system(operation, source))
}

/// Removes the binding; the namespace goes with its last user. No such file is fine.
pub(super) fn remove(path: &Path) -> Result<(), NetworkError> {
    let operation = || format!("remove network namespace {}", path.display());
    match umount2(path, MntFlags::MNT_DETACH) {
        // EINVAL: the file is there and nothing is bound to it.
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(errno) => return Err(NetworkError::system(operation(), errno)),
    }
    match fs_err::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(NetworkError::system(operation(), error))
        }
        _ => Ok(()),
    }
}
