//! A host full of fake Machines for tests: behind the real sockets, without KVM, root or a second process.
//!
//! [`FakeHost`] is what outlives the daemon: a test keeps it, drops its daemon and makes another one, which adopts the
//! Machines again. [`FakeLauncher`] takes the place of `VmmLauncher`; from there on the daemon uses its own code: it finds
//! `control.sock` and `vsock.sock` in the Machine's directory, gets a `Ready`, and talks to an `agent.v1.Agent` and the stdio
//! port through `CONNECT`. Containers are scripts (`script`), not programs. Nothing of this is in a release build.

mod agent;
mod forward;
mod machine;
mod output;
mod process;
mod relay;
mod script;
mod stdio;

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;

pub use self::machine::{COPIED, FakeMachine};
use crate::machine::{AdoptError, LaunchError, LaunchSpec, Launcher, Layout, Process, ShimSpec};

/// Where a fake host can be made to misbehave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultPoint {
    /// `Launcher::launch`.
    Launch,
    /// Between the start of the VMM and `Ready`: `Fail` is a guest kernel panic, `Stall` a guest that never gets ready.
    Boot,
    /// Likewise: `Fail` is a guest that KVM cannot run.
    Kvm,
    /// The start of a VMM whose guest goes on from a snapshot: `Fail` is a snapshot that is refused, `Stall` a guest that never
    /// answers.
    Restore,
    /// `Request::Snapshot` on the control socket: `Fail` is a full disk.
    Snapshot,
    /// A dial of a guest port: `Fail` closes, `Stall` does not answer.
    Dial,
    /// A request on the control socket: `Fail` refuses.
    Control,
    /// The call of this name ("CreateContainer") to the agent: `Fail` is an `AgentError` with ERROR_CODE_SYSTEM and EIO.
    Call(&'static str),
}

/// What happens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It goes wrong.
    Fail,
    /// It never ends.
    Stall,
    /// It goes well, half a second later.
    Late,
}

const LATE: Duration = Duration::from_millis(500);

/// The host: what is left when a daemon is killed.
#[derive(Debug, Clone, Default)]
pub struct FakeHost {
    shared: Arc<Shared>,
}

/// Starts and adopts the Machines of a [`FakeHost`].
#[derive(Debug, Clone)]
pub struct FakeLauncher {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    machines: Mutex<HashMap<PathBuf, Arc<FakeMachine>>>,
    faults: Mutex<HashMap<FaultPoint, (Fault, usize)>>,
    /// Of all snapshots that were made.
    origins: Mutex<HashSet<String>>,
    last_pid: AtomicU32,
}

impl FakeHost {
    /// An empty host.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A launcher of Machines on this host, for one daemon.
    #[must_use]
    pub fn launcher(&self) -> FakeLauncher {
        FakeLauncher {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Makes the next `times` passes of `point` go wrong on every Machine (`usize::MAX`: until [`Self::heal`]).
    pub fn inject(&self, point: FaultPoint, fault: Fault, times: usize) {
        lock(&self.shared.faults).insert(point, (fault, times));
    }

    /// Whether a fault that was injected there has not been met as often as it was to be.
    #[must_use]
    pub fn is_to_fail(&self, point: FaultPoint) -> bool {
        lock(&self.shared.faults).contains_key(&point)
    }

    /// Takes back every fault that was injected. What stalls goes on stalling.
    pub fn heal(&self) {
        lock(&self.shared.faults).clear();
    }

    /// The Machine of a sandbox, running or ended, by its id.
    #[must_use]
    pub fn machine(&self, id: &str) -> Option<Arc<FakeMachine>> {
        lock(&self.shared.machines)
            .values()
            .find(|machine| machine.id() == id)
            .cloned()
    }

    /// Ids of the sandboxes whose VMM runs, sorted.
    #[must_use]
    pub fn running(&self) -> Vec<String> {
        let machines = lock(&self.shared.machines);
        let running = machines
            .values()
            .filter(|machine| machine.process().try_exited().is_none());
        let mut ids: Vec<String> = running.map(|machine| machine.id().to_owned()).collect();
        ids.sort();
        ids
    }
}

impl Shared {
    /// Counts one pass of `point`.
    fn fault(&self, point: FaultPoint) -> Option<Fault> {
        let mut faults = lock(&self.faults);
        let (fault, times) = faults.get_mut(&point)?;
        let fault = *fault;
        *times -= 1;
        if *times == 0 {
            faults.remove(&point);
        }
        Some(fault)
    }

    /// Passes `point`: an error when it fails, never when it stalls.
    async fn pass(&self, point: FaultPoint) -> Result<(), Injected> {
        match self.fault(point) {
            None => Ok(()),
            Some(Fault::Fail) => Err(Injected),
            Some(Fault::Stall) => std::future::pending().await,
            Some(Fault::Late) => {
                tokio::time::sleep(LATE).await;
                Ok(())
            }
        }
    }

    fn find(&self, directory: &Path) -> Option<Arc<FakeMachine>> {
        lock(&self.machines).get(directory).cloned()
    }
}

/// A test wanted this to go wrong.
#[derive(Debug)]
struct Injected;

impl FakeLauncher {
    async fn start(
        &self,
        layout: &Layout,
        start: impl FnOnce(Arc<Shared>, u32) -> std::io::Result<Arc<FakeMachine>> + Send,
    ) -> Result<Process, LaunchError> {
        let step = |source| LaunchError::Step {
            id: layout.id().to_owned(),
            step: "start the fake",
            source,
        };
        self.shared
            .pass(FaultPoint::Launch)
            .await
            .map_err(|Injected| step(std::io::Error::other("a test wanted this")))?;
        // Above every pid that Linux gives, so that nothing real can be meant.
        let pid = (1 << 23) + self.shared.last_pid.fetch_add(1, Ordering::Relaxed);
        let machine = start(Arc::clone(&self.shared), pid).map_err(step)?;
        let process = machine.process();
        lock(&self.shared.machines).insert(layout.directory().to_owned(), machine);
        Ok(process)
    }
}

#[async_trait]
impl Launcher for FakeLauncher {
    async fn launch(&self, spec: LaunchSpec) -> Result<Process, LaunchError> {
        self.start(&spec.layout, |shared, pid| FakeMachine::start(shared, &spec, pid))
            .await
    }

    async fn launch_shim(&self, spec: ShimSpec) -> Result<Process, LaunchError> {
        self.start(&spec.layout, |shared, pid| {
            FakeMachine::start_shim(shared, &spec, pid)
        })
        .await
    }

    async fn adopt(&self, layout: &Layout) -> Result<Process, AdoptError> {
        let id = || layout.id().to_owned();
        match self.shared.find(layout.directory()) {
            None => Err(AdoptError::NeverStarted { id: id() }),
            Some(machine) => match machine.process() {
                process if process.try_exited().is_some() => Err(AdoptError::Gone { id: id() }),
                process => Ok(process),
            },
        }
    }
}

/// A test that panics with a lock held has failed already.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
