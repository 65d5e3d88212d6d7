//! Shares that exist in memory only: what was bound, and whether somebody serves it.

use std::{
    collections::BTreeMap,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{ShareError, Shares, View};
use crate::machine::{Layout, MachineExit, Process, ProcessControl};

/// Remembers what is shared. Clones are the same host: they outlive a daemon.
#[derive(Debug, Clone, Default)]
pub struct FakeShares(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    missing: bool,
    machines: BTreeMap<String, Machine>,
}

#[derive(Debug, Default)]
struct Machine {
    server: Option<Arc<Server>>,
    bound: BTreeMap<String, (PathBuf, View)>,
}

#[derive(Debug)]
struct Server {
    exit: watch::Sender<Option<MachineExit>>,
    /// The other end of what the VMM got.
    _socket: UnixStream,
}

impl ProcessControl for Server {
    fn kill(&self) -> io::Result<()> {
        self.exit.send_if_modified(|exit| {
            let first = exit.is_none();
            exit.get_or_insert(MachineExit::Signalled(libc::SIGKILL));
            first
        });
        Ok(())
    }

    fn set_oom_score_adj(&self, _: i32) -> io::Result<()> {
        Ok(())
    }
}

impl FakeShares {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is no program, or there is one again.
    pub fn set_missing(&self, missing: bool) {
        self.state().missing = missing;
    }

    /// What a Machine shares, by name.
    #[must_use]
    pub fn bound(&self, machine: &str) -> BTreeMap<String, (PathBuf, View)> {
        let state = self.state();
        let machine = state.machines.get(machine);
        machine.map(|machine| machine.bound.clone()).unwrap_or_default()
    }

    /// Machines of which something is left.
    #[must_use]
    pub fn machines(&self) -> Vec<String> {
        self.state().machines.keys().cloned().collect()
    }

    /// Ends the process that serves a Machine.
    pub fn kill(&self, machine: &str) {
        let server = self
            .state()
            .machines
            .get(machine)
            .and_then(|machine| machine.server.clone());
        if let Some(server) = server {
            drop(server.kill());
        }
    }
}

fn process(server: &Arc<Server>) -> Process {
    Process::new(4242, server.exit.subscribe(), Arc::clone(server) as _)
}

#[async_trait]
impl Shares for FakeShares {
    async fn serve(&self, layout: &Layout, _: Option<&Path>) -> Result<(Process, OwnedFd), ShareError> {
        let mut state = self.state();
        if state.missing {
            return Err(ShareError::Program {
                program: "/no/virtiofsd".into(),
            });
        }
        let (near, far) = UnixStream::pair().map_err(|source| ShareError::Step {
            id: layout.id().to_owned(),
            step: "make a socket",
            source,
        })?;
        let server = Arc::new(Server {
            exit: watch::Sender::new(None),
            _socket: near,
        });
        let machine = state.machines.entry(layout.id().to_owned()).or_default();
        machine.server = Some(Arc::clone(&server));
        Ok((process(&server), far.into()))
    }

    async fn adopt(&self, layout: &Layout) -> Result<Option<Process>, ShareError> {
        let state = self.state();
        let server = state
            .machines
            .get(layout.id())
            .and_then(|machine| machine.server.as_ref());
        let running = server.filter(|server| server.exit.borrow().is_none());
        Ok(running.map(process))
    }

    async fn bind(&self, layout: &Layout, name: &str, source: OwnedFd, view: View) -> Result<(), ShareError> {
        let path = std::fs::read_link(format!("/proc/self/fd/{}", source.as_raw_fd())).unwrap_or_default();
        let mut state = self.state();
        let machine = state.machines.entry(layout.id().to_owned()).or_default();
        machine.bound.insert(name.to_owned(), (path, view));
        Ok(())
    }

    async fn unbind(&self, layout: &Layout, name: &str) -> Result<(), ShareError> {
        if let Some(machine) = self.state().machines.get_mut(layout.id()) {
            machine.bound.remove(name);
        }
        Ok(())
    }

    async fn names(&self, layout: &Layout) -> Result<Vec<String>, ShareError> {
        Ok(self.bound(layout.id()).into_keys().collect())
    }

    async fn end(&self, layout: &Layout) -> Result<(), ShareError> {
        self.kill(layout.id());
        self.state().machines.remove(layout.id());
        Ok(())
    }
}
