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
    host::end_leftovers,
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
    /// The VMM or what serves its volumes could not be ended, or a host pod's mounts are left, so the directory has to stay: what
    /// runs is recorded in it, and what is mounted in it must not be removed.
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

    /// Of either kind, because an orphan's is not known.
    async fn remove_scratch(&self) -> io::Result<()> {
        let root = self.node.config.scratch();
        let disk = fs_err::tokio::remove_file(root.join(format!("{}.img", self.plan.id))).await;
        let layers = fs_err::tokio::remove_dir_all(root.join(&self.plan.id)).await;
        for removed in [disk, layers] {
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
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
        let cgroup = self.plan.cgroup.as_ref().map(|plan| &plan.cgroup);
        end_leftovers(&self.plan.layout, cgroup).await?;
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
            // A host pod's containers may still have their layers mounted from there.
            Acquired::Scratch if self.directory_stays.load(Ordering::Relaxed) => {
                return Err("its machine could not be ended".into());
            }
            Acquired::Scratch => self.remove_scratch().await?,
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
                return Err("its processes could not be ended, or its volumes are still there".into());
            }
            Acquired::Directory => {
                let layout = self.plan.layout.clone();
                tokio::task::spawn_blocking(move || layout.remove()).await??;
            }
        }
        Ok(())
    }
}
