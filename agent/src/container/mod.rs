//! Containers: from a request to a running process, and back to nothing.
//!
//! ```text
//!           create                start             init ends
//!  (none) ─────────► Created ─► Starting ─► Running ─────────► Exited
//!    ▲   fails: undone    └──────────┴── init ends ────────────►  │
//!    └───────────────────────── remove (any state) ◄──────────────┘
//! ```
//!
//! `plan` checks a request and says what to do (pure), `create`, `exec`, `update` and `remove` do it, `stage` talks to the process
//! that becomes the container's, `state` says what is allowed when, `registry` holds them all.

pub(crate) mod create;
pub(crate) mod exec;
pub(crate) mod lifecycle;
pub(crate) mod mount_plan;
pub(crate) mod pid_namespace;
pub(crate) mod plan;
pub(crate) mod process;
pub(crate) mod registry;
pub(crate) mod remove;
mod security;
pub(crate) mod stage;
pub(crate) mod state;
pub(crate) mod update;
mod volumes;
mod watch_oom;

use std::sync::{Arc, Mutex};

use proto::agent::v1::{ContainerState, Exit};
use tokio::sync::Mutex as AsyncMutex;

use crate::cgroup::Cgroup;
use crate::error::Failure;
use crate::init::order::Security;
use crate::lock::lock;
use crate::stats::writable::Writable;
use create::Holdings;
use exec::Execs;
use process::Process;
use registry::Member;
use stage::Gate;
use state::State;
pub(crate) use volumes::Volumes;

/// One container from the success of its creation to its removal.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) init: Arc<Process>,
    pub(crate) cgroup: Cgroup,
    /// What everything exec'd in it is confined by, too.
    security: Security,
    /// Where what it writes goes.
    pub(crate) writable: Arc<Writable>,
    state: Mutex<State<Gate>>,
    execs: Execs,
    /// Given back by its removal.
    holdings: AsyncMutex<Holdings>,
}

impl Container {
    /// For a watcher's snapshot.
    pub(crate) fn snapshot(&self) -> ContainerState {
        lock(&self.state).report(&self.id, self.init.pid())
    }

    /// Notes the end of the init process.
    fn ended(&self, exit: &Exit) {
        lock(&self.state).end(exit.clone());
    }

    pub(crate) fn is_running(&self) -> bool {
        lock(&self.state).is_running()
    }
}

impl Member for Container {
    fn id(&self) -> &str {
        &self.id
    }

    fn process(&self, exec_id: &str) -> Result<Arc<Process>, Failure> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        self.execs.get(&self.id, exec_id)
    }
}
