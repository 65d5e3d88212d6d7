//! The upstream program `virtiofsd`, one per Machine that shares something.
//!
//! It sandboxes itself: a mount namespace whose root is the shared directory, a PID and a network namespace of its own, a
//! seccomp filter. Its namespace is a slave of ours, so that volumes which are bound later appear in it.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use async_trait::async_trait;

use super::{ShareError, Shares, View, binds};
use crate::{
    machine::{
        layout::Layout,
        monitor::Monitors,
        process::{Identity, Process, record},
    },
    sys::{spawn, unix_socket},
};

/// For a killed process to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Starts `virtiofsd`.
#[derive(Debug)]
pub struct Virtiofsd {
    program: PathBuf,
    monitors: Monitors,
}

impl Virtiofsd {
    /// Shares through the program at this path, which is looked for when it is needed.
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            monitors: Monitors::default(),
        }
    }

    /// Whether the program is there.
    ///
    /// # Errors
    /// [`ShareError::Program`]
    pub fn check(program: &Path) -> Result<(), ShareError> {
        match std::fs::metadata(program) {
            Ok(file) if file.is_file() && file.permissions().mode() & 0o111 != 0 => Ok(()),
            _ => Err(ShareError::Program {
                program: program.to_owned(),
            }),
        }
    }
}

fn step(layout: &Layout, step: &'static str) -> impl FnOnce(io::Error) -> ShareError {
    let id = layout.id().to_owned();
    move |source| ShareError::Step { id, step, source }
}

/// Runs what blocks where blocking is allowed.
async fn blocking<T: Send + 'static>(
    layout: &Layout,
    name: &'static str,
    work: impl FnOnce(&Layout) -> io::Result<T> + Send + 'static,
) -> Result<T, ShareError> {
    let of = layout.clone();
    tokio::task::spawn_blocking(move || work(&of))
        .await
        .map_err(io::Error::other)
        .and_then(|done| done)
        .map_err(step(layout, name))
}

#[async_trait]
impl Shares for Virtiofsd {
    async fn serve(&self, layout: &Layout, cgroup: Option<&Path>) -> Result<(Process, OwnedFd), ShareError> {
        Self::check(&self.program)?;
        let path = layout.shares_socket();
        // Of a daemon that was killed here.
        drop(std::fs::remove_file(&path));
        let listener = unix_socket::listen(&path)
            .and_then(tokio::net::UnixListener::into_std)
            .and_then(|listener| listener.set_nonblocking(false).map(|()| OwnedFd::from(listener)))
            .map_err(step(layout, "listen for virtiofsd"))?;
        let socket = unix_socket::connect(&path)
            .await
            .and_then(tokio::net::UnixStream::into_std)
            .map_err(step(layout, "connect to virtiofsd"))?;
        drop(std::fs::remove_file(&path));
        let (program, cgroup) = (self.program.clone(), cgroup.map(Path::to_owned));
        let identity = blocking(layout, "start virtiofsd", move |layout| {
            start(&program, layout, listener, cgroup.as_deref())
        })
        .await?;
        let process = self
            .monitors
            .watch(&identity)
            .and_then(|process| process.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)))
            .map_err(step(layout, "watch virtiofsd"))?;
        Ok((process, OwnedFd::from(socket)))
    }

    async fn adopt(&self, layout: &Layout) -> Result<Option<Process>, ShareError> {
        let find = || match Identity::load(&layout.shares_process())? {
            Some(identity) => self.monitors.watch(&identity),
            None => Ok(None),
        };
        find().map_err(step(layout, "find virtiofsd"))
    }

    async fn bind(&self, layout: &Layout, name: &str, source: OwnedFd, view: View) -> Result<(), ShareError> {
        let name = name.to_owned();
        let tree = blocking(layout, "clone a volume", move |_| binds::clone_tree(source)).await?;
        let tree = match view.id_map {
            Some(map) => blocking(layout, "map ids", move |_| Ok(binds::map_ids(tree, map)))
                .await?
                .map_err(|source| ShareError::IdMap { source })?,
            None => tree,
        };
        blocking(layout, "bind a volume", move |layout| {
            let shared = layout.shared();
            binds::prepare(&shared)?;
            binds::bind(&shared, &name, &tree, view.propagation)
        })
        .await
    }

    async fn unbind(&self, layout: &Layout, name: &str) -> Result<(), ShareError> {
        let name = name.to_owned();
        blocking(layout, "unbind a volume", move |layout| {
            binds::unbind(&layout.shared(), &name)
        })
        .await
    }

    async fn names(&self, layout: &Layout) -> Result<Vec<String>, ShareError> {
        blocking(layout, "list the volumes", |layout| {
            binds::names(&layout.shared())
        })
        .await
    }

    async fn end(&self, layout: &Layout) -> Result<(), ShareError> {
        if let Some(process) = self.adopt(layout).await? {
            process.kill().map_err(step(layout, "kill virtiofsd"))?;
            let ended = tokio::time::timeout(KILL_PATIENCE, process.exited()).await;
            ended
                .map_err(io::Error::from)
                .map_err(step(layout, "wait for virtiofsd"))?;
        }
        blocking(layout, "unbind the volumes", |layout| {
            binds::remove(&layout.shared())
        })
        .await
    }
}

fn start(program: &Path, layout: &Layout, listener: OwnedFd, cgroup: Option<&Path>) -> io::Result<Identity> {
    binds::prepare(&layout.shared())?;
    let log = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(layout.shares_log())?;
    let cgroup_procs = cgroup
        .map(|cgroup| File::options().write(true).open(cgroup.join("cgroup.procs")))
        .transpose()?;
    let mut command = Command::new(program);
    command
        .arg(format!("--fd={}", listener.as_raw_fd()))
        .arg("--shared-dir")
        .arg(layout.shared())
        .args(["--sandbox=namespace", "--seccomp=kill", "--announce-submounts"])
        // What one side writes the other sees within a second, and at once when it opens the file anew.
        .args(["--cache=auto", "--log-level=warn"])
        // Not the Machine's directory: by that the VMM is found.
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    spawn::detach(&mut command, cgroup_procs, vec![listener]);
    let mut child = command.spawn()?;
    record(&mut child, &layout.shares_process())
}

#[cfg(test)]
mod tests;
