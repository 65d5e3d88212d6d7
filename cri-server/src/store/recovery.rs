//! What is made of the store when the daemon starts.
//!
//! Assumptions: the last daemon may have been killed between any two instructions. Machines have run on and may have ended
//! since; containers may have ended in them. Everything that a daemon acquired was recorded before; whatever carries our
//! names and is in no record belongs to nobody, because one daemon at a time holds the lock of this state directory.
//! Records that this version cannot read, and their Machines, are left alone.
//!
//! Sandboxes are recovered side by side and none can keep the node from starting: one that cannot be taken over is not
//! ready, and Stop and Remove finish it.

use std::{collections::BTreeSet, sync::Arc};

use proto::cri::v1 as cri;
use tokio::task::JoinSet;

use super::{ContainerRecord, Loaded, SandboxRecord, StoreError};
use crate::{
    machine::Layout,
    sandbox::{Node, SandboxState, chain, recover, remove_orphan},
};

/// Brings every sandbox of the store back to life and removes what belongs to nobody.
pub(crate) async fn recover_all(node: &Arc<Node>) -> Result<(), StoreError> {
    let store = node.store.clone();
    let Loaded {
        sandboxes,
        mut containers,
        unreadable,
    } = tokio::task::spawn_blocking(move || store.load())
        .await
        .map_err(|_| StoreError::Stopping)??;
    let mut known: BTreeSet<String> = unreadable;
    let mut tasks = JoinSet::new();
    for (record, request) in sandboxes {
        known.insert(record.id.clone());
        let (own, others): (Vec<_>, Vec<_>) = containers
            .into_iter()
            .partition(|(container, _)| container.sandbox_id == record.id);
        containers = others;
        tasks.spawn(recover_one(Arc::clone(node), record, request, own));
    }
    tasks.join_all().await;
    for (container, _) in containers {
        if !known.contains(&container.sandbox_id) {
            tracing::warn!(container = container.id, "its sandbox is unknown: forgetting it");
            node.store.forget_container(&container.id).await?;
        }
    }
    remove_orphans(node, &known).await;
    Ok(())
}

/// Every sandbox that is recorded, readable or not.
pub(crate) async fn known_sandboxes(node: &Arc<Node>) -> Result<BTreeSet<String>, StoreError> {
    let store = node.store.clone();
    let loaded = tokio::task::spawn_blocking(move || store.load())
        .await
        .map_err(|_| StoreError::Stopping)??;
    let readable = loaded.sandboxes.into_iter().map(|(record, _)| record.id);
    Ok(readable.chain(loaded.unreadable).collect())
}

async fn recover_one(
    node: Arc<Node>,
    record: SandboxRecord,
    request: cri::RunPodSandboxRequest,
    containers: Vec<(ContainerRecord, cri::CreateContainerRequest)>,
) {
    let id = record.id.clone();
    let was_starting = matches!(record.state, SandboxState::Starting { .. });
    match recover(&node, record, request, containers).await {
        Ok(()) if was_starting => tracing::info!(sandbox = id, "a start that was cut short is undone"),
        Ok(()) => tracing::info!(sandbox = id, "sandbox recovered"),
        Err(error) => tracing::error!(sandbox = id, error = chain(&error), "sandbox not recovered"),
    }
}

/// Machines, networks and scratch disks with our names and no record. Failures are told and tried again at the next start.
pub(crate) async fn remove_orphans(node: &Arc<Node>, known: &BTreeSet<String>) {
    let mut orphans = BTreeSet::new();
    match Layout::list(&node.config.machines()) {
        Ok(layouts) => orphans.extend(layouts.iter().map(|layout| layout.id().to_owned())),
        Err(error) => tracing::error!(error = chain(&error), "cannot look for left machines"),
    }
    match node.network.leftovers().await {
        Ok(ids) => orphans.extend(ids),
        Err(error) => tracing::error!(error = chain(&error), "cannot look for left pod networks"),
    }
    orphans.extend(scratch_disks(node));
    for id in orphans.difference(known) {
        tracing::warn!(sandbox = id, "left by nobody's sandbox: removing it");
        for left in remove_orphan(node, id).await {
            tracing::error!(sandbox = id, left, "could not be removed");
        }
    }
    let images = Arc::clone(&node.images);
    match tokio::task::spawn_blocking(move || images.collect_garbage()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(error = chain(&error), "cannot collect unused image layers"),
        Err(error) => tracing::error!(%error, "cannot collect unused image layers"),
    }
}

/// Ids of sandboxes whose scratch disk or directory of writable layers is there.
fn scratch_disks(node: &Node) -> Vec<String> {
    let Ok(entries) = fs_err::read_dir(node.config.scratch()) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let id = name.strip_suffix(".img").unwrap_or(&name);
            let ours = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
            ours.then(|| id.to_owned())
        })
        .collect()
}
