//! What every sandbox of this node shares: configuration, drivers, store, and the list of all sandboxes.
//!
//! Nothing here decides; handlers look sandboxes up, owner tasks use the drivers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    error::RequestError,
    events::Events,
    handle::SandboxHandle,
    turns::Turns,
    view::{ContainerView, SandboxView},
};
use crate::{
    config::Config,
    directory_watch::DirectoryWatch,
    image::ImageStore,
    machine::{Launcher, ScratchTemplate, Shares},
    metrics::Metrics,
    network::Network,
    stats::Samples,
    store::Store,
    streaming::Streaming,
    template::Templates,
};

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) images: Arc<ImageStore>,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) launcher: Arc<dyn Launcher>,
    pub(crate) shares: Arc<dyn Shares>,
    pub(crate) directories: Arc<DirectoryWatch>,
    pub(crate) scratch: ScratchTemplate,
    pub(crate) templates: Templates,
    pub(crate) turns: Turns,
    pub(crate) metrics: Metrics,
    pub(crate) streaming: Streaming,
    pub(crate) sandboxes: Registry,
    pub(crate) events: Events,
    /// Earlier measurements, to tell rates.
    pub(crate) samples: Samples,
    /// Of this node, as kubelet tells it; CNI's configuration is the operator's.
    pub(crate) pod_cidr: Mutex<String>,
    /// Every owner task, and whatever must outlive the request that began it.
    pub(crate) tasks: TaskTracker,
    /// The daemon stops; Machines do not.
    pub(crate) stop: CancellationToken,
}

/// All sandboxes by id.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    sandboxes: Mutex<BTreeMap<String, Arc<SandboxHandle>>>,
}

/// 128 random bits in hexadecimal. Half of the length that other runtimes use keeps socket paths short (unix(7)), and it
/// has the shape of a machine-id(5), which it is in the guest.
pub(crate) fn new_id() -> Result<String, RequestError> {
    let bytes = random_bytes::<16>()?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// From the kernel's generator.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], RequestError> {
    use std::io::Read as _;
    let mut bytes = [0; N];
    fs_err::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(RequestError::failed("read random bytes"))?;
    Ok(bytes)
}

impl Registry {
    /// Adds a sandbox unless another one has its name.
    pub(crate) fn reserve(&self, handle: Arc<SandboxHandle>) -> Result<(), RequestError> {
        let mut sandboxes = self.lock();
        // A failed start that could not be undone has no claim on its name, also after a restart.
        let holder = sandboxes
            .values()
            .filter(|_| handle.view().state.holds_name())
            .find(|other| other.name == handle.name && other.view().state.holds_name());
        if let Some(holder) = holder {
            return Err(RequestError::NameTaken {
                kind: "sandbox",
                name: handle.name.to_string(),
                holder: holder.id.clone(),
            });
        }
        sandboxes.insert(handle.id.clone(), handle);
        Ok(())
    }

    pub(crate) fn remove(&self, id: &str) {
        self.lock().remove(id);
    }

    /// What every sandbox shows now, ordered by id.
    pub(crate) fn views(&self) -> Vec<Arc<SandboxView>> {
        self.lock().values().map(|handle| handle.view()).collect()
    }

    /// By id, or a beginning of it that only one has.
    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<SandboxHandle>, RequestError> {
        let sandboxes = self.lock();
        let known = sandboxes.iter().map(|(known, handle)| (known.as_str(), handle));
        one("sandbox", id, known).cloned()
    }

    /// The same for a container, with its sandbox.
    pub(crate) fn container(
        &self,
        id: &str,
    ) -> Result<(Arc<SandboxHandle>, Arc<ContainerView>), RequestError> {
        let sandboxes = self.lock();
        let all: Vec<(Arc<SandboxHandle>, Arc<ContainerView>)> = sandboxes
            .values()
            .flat_map(|handle| {
                let view = handle.view();
                let containers = view.containers.clone();
                containers
                    .into_iter()
                    .map(|container| (Arc::clone(handle), container))
            })
            .collect();
        one("container", id, all.iter().map(|pair| (pair.1.id.as_str(), pair))).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<SandboxHandle>>> {
        // A panic with this lock held can only be one of the standard library's.
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one with this id, else the only one whose id begins so.
fn one<'a, T>(
    kind: &'static str,
    id: &str,
    matching: impl Iterator<Item = (&'a str, T)>,
) -> Result<T, RequestError> {
    let not_found = || RequestError::NotFound {
        kind,
        id: id.to_owned(),
    };
    if id.is_empty() {
        return Err(RequestError::invalid(format!("{kind} id"), "missing"));
    }
    let mut candidates: Vec<(&str, T)> = matching.filter(|(known, _)| known.starts_with(id)).collect();
    if let Some(exact) = candidates.iter().position(|(known, _)| *known == id) {
        return Ok(candidates.swap_remove(exact).1);
    }
    if candidates.len() > 1 {
        return Err(RequestError::Ambiguous {
            kind,
            prefix: id.to_owned(),
        });
    }
    candidates.pop().map(|(_, value)| value).ok_or_else(not_found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_or_a_beginning_that_only_one_has() {
        let find = |id| {
            one(
                "sandbox",
                id,
                [("abc", 1), ("abd", 2), ("x", 3), ("xy", 4)].into_iter(),
            )
        };
        assert_eq!(find("abc").unwrap(), 1);
        assert_eq!(find("abd").unwrap(), 2);
        assert_eq!(find("xy").unwrap(), 4);
        assert_eq!(find("x").unwrap(), 3);
        assert!(matches!(find("ab"), Err(RequestError::Ambiguous { .. })));
        assert!(matches!(find("zz"), Err(RequestError::NotFound { .. })));
        assert!(matches!(find(""), Err(RequestError::Invalid { .. })));
    }

    #[test]
    fn ids_are_of_32_hexadecimal_digits_and_differ() {
        let (one, other) = (new_id().unwrap(), new_id().unwrap());
        assert_ne!(one, other);
        assert!(one.len() == 32 && one.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
