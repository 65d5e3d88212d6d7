//! The PID namespace that containers of a pod share: a stage that does nothing but be its PID 1 and reap.

use std::os::fd::{BorrowedFd, OwnedFd};

use proto::agent::v1::ErrorCode;
use tokio::sync::Mutex;

use crate::container::stage::{self, Gate, PidNamespace, Place};
use crate::error::{Context as _, Failure};
use crate::init::order::Order;
use crate::reaper::{Child, Reaper};

/// Made when a container first asks for it.
#[derive(Debug, Default)]
pub(crate) struct SharedPidNamespace(Mutex<Option<Held>>);

/// Kept for as long as the pod: its end would end every process of the namespace.
#[derive(Debug)]
struct Held {
    child: Child,
    _gate: Gate,
}

/// PID 1 of the namespace.
#[derive(Debug)]
pub(crate) struct Holder {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

impl SharedPidNamespace {
    /// Its PID 1, which is started from `executable` (this binary) if it does not run yet.
    ///
    /// # Errors
    /// As [`stage::launch`].
    pub(crate) async fn holder(
        &self,
        reaper: &Reaper,
        executable: BorrowedFd<'_>,
    ) -> Result<Holder, Failure> {
        let mut slot = self.0.lock().await;
        let held = match slot.take() {
            Some(held) => held,
            None => {
                let place = Place {
                    executable,
                    cgroup: None,
                    pid_namespace: PidNamespace::New,
                };
                let ready = stage::launch(reaper, &place, &Order::HoldPidNamespace, &[]).await?;
                Held {
                    child: ready.child,
                    _gate: ready.gate,
                }
            }
        };
        let pid = held.child.pid;
        let pidfd = held.child.pidfd.try_clone();
        *slot = Some(held);
        let pidfd = pidfd.context(ErrorCode::System, || {
            "duplicate the pidfd of the pod's init".to_owned()
        })?;
        Ok(Holder { pid, pidfd })
    }
}
