//! How each thing that a sandbox holds of the host is given back. Idempotent, and from names alone: it works after a crash
//! at any point of the start, when nothing but the record is left.

use std::{
    error::Error,
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_trait::async_trait;

use super::{node::Node, plan::SandboxPlan, state::Acquired};
use crate::{
    machine::AdoptError,
    undo::{Left, Undo, unwind},
};

/// For a killed VMM to be gone. The kernel frees the guest's memory meanwhile.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// For a cgroup's last process to leave it.
const CGROUP_PATIENCE: Duration = Duration::from_secs(2);

/// Gives back what one sandbox holds.
pub(super) struct Ledger<'a> {
    node: &'a Node,
    plan: &'a SandboxPlan,
    /// The VMM or what serves its volumes could not be ended, so its directory, where that is recorded, has to stay.
    directory_stays: AtomicBool,
}

impl<'a> Ledger<'a> {
    pub(super) fn new(node: &'a Node, plan: &'a SandboxPlan) -> Self {
        Self {
            node,
            plan,
            directory_stays: AtomicBool::new(false),
        }
    }

    /// Gives back `held`, the newest first; returns what could not be.
    pub(super) async fn give_back(&self, held: &[Acquired]) -> Vec<Left<Acquired>> {
        unwind(self, held).await
    }

    async fn end_machine(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.directory_stays.store(true, Ordering::Relaxed);
        match self.node.launcher.adopt(&self.plan.layout).await {
            Ok(process) => {
                process.kill()?;
                tokio::time::timeout(KILL_PATIENCE, process.exited())
                    .await
                    .map_err(|_| format!("VMM process {} does not end", process.pid()))?;
            }
            Err(AdoptError::Gone { .. } | AdoptError::NeverStarted { .. }) => {}
            Err(error @ AdoptError::Unknown { .. }) => return Err(error.into()),
        }
        self.directory_stays.store(false, Ordering::Relaxed);
        Ok(())
    }
}

#[async_trait]
impl Undo for Ledger<'_> {
    type Step = Acquired;

    async fn undo(&self, step: Acquired) -> Result<(), Box<dyn Error + Send + Sync>> {
        match step {
            Acquired::Machine => self.end_machine().await?,
            Acquired::Network => self.node.network.detach(&self.plan.id).await?,
            Acquired::Scratch => match fs_err::tokio::remove_file(&self.plan.scratch).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            },
            Acquired::Cgroup => {
                if let Some(plan) = &self.plan.cgroup {
                    let cgroup = plan.cgroup.clone();
                    tokio::task::spawn_blocking(move || {
                        cgroup.kill()?;
                        cgroup.remove(CGROUP_PATIENCE)
                    })
                    .await??;
                }
            }
            Acquired::Shares => {
                let ended = self.node.shares.end(&self.plan.layout).await;
                if ended.is_err() {
                    self.directory_stays.store(true, Ordering::Relaxed);
                }
                ended?;
            }
            Acquired::Directory if self.directory_stays.load(Ordering::Relaxed) => {
                return Err("its VMM could not be ended, or its volumes are still there".into());
            }
            Acquired::Directory => {
                let layout = self.plan.layout.clone();
                tokio::task::spawn_blocking(move || layout.remove()).await??;
            }
        }
        Ok(())
    }
}
