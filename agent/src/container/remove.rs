//! The story of a container's end: nothing of it is left, whatever state it was in.

use std::io;

use proto::agent::v1::ErrorCode;

use crate::cgroup::Cgroup;
use crate::container::Container;
use crate::container::create::Holdings;
use crate::container::exec;
use crate::error::{Context as _, Failure};
use crate::pod::Pod;

/// Kills what still runs, gives back what the container held, forgets it.
///
/// # Errors
/// `NotFound`, `WrongState`; what could not be ended or given back: the container then still exists and can be removed
/// again.
pub(crate) async fn remove(pod: &Pod, id: &str) -> Result<(), Failure> {
    let container = pod.containers.begin_remove(id)?;
    let removed = end_and_release(pod, &container).await;
    match removed {
        Ok(()) => pod.containers.forget(id),
        Err(_) => pod.containers.created(container),
    }
    removed
}

async fn end_and_release(pod: &Pod, container: &Container) -> Result<(), Failure> {
    container.cgroup.kill()?;
    exec::end(&container.init).await?;
    for process in container.execs.all() {
        exec::end(&process).await?;
    }
    let mut held = container.holdings.lock().await;
    match release(pod, &mut held).await.pop() {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// Gives back newest first. What fails stays in `holdings`, and the rest goes on.
pub(super) async fn release(pod: &Pod, holdings: &mut Holdings) -> Vec<Failure> {
    let mut failures = Vec::new();
    if let Some(path) = holdings.cgroup.take()
        && let Err(failure) = Cgroup::at(path.clone()).remove().await
    {
        holdings.cgroup = Some(path);
        failures.push(failure);
    }
    let mut kept = Vec::new();
    while let Some(held) = holdings.volumes.pop() {
        if let Err(failure) = pod.volumes.release(&pod.disks, &held).await {
            kept.push(held);
            failures.push(failure);
        }
    }
    kept.reverse();
    holdings.volumes = kept;
    if let Some(directory) = holdings.scratch.take() {
        let removed = directory.clone();
        let result = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&removed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        });
        let result = result.await.map_err(io::Error::other).and_then(|removed| removed);
        if let Err(failure) = result.context(ErrorCode::System, || format!("remove {}", directory.display()))
        {
            holdings.scratch = Some(directory);
            failures.push(failure);
        }
    }
    let mut kept = Vec::new();
    while let Some(lease) = holdings.layers.pop() {
        if let Err(failure) = pod.disks.release(&lease).await {
            kept.push(lease);
            failures.push(failure);
        }
    }
    kept.reverse();
    holdings.layers = kept;
    failures
}
