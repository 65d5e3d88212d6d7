//! All containers by id, those that are being made or removed included, so that an id means one thing at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use proto::agent::v1::ErrorCode;
use proto::stdio::MAX_ID;

use crate::container::process::Process;
use crate::error::Failure;
use crate::lock::lock;
use crate::stdio::connection::Processes;
use crate::stdio::process::ProcessStdio;

/// A container as the registry sees it: one of the guest, or of a host pod.
pub(crate) trait Member {
    /// Its id.
    fn id(&self) -> &str;

    /// The init process, or the exec'd one.
    ///
    /// # Errors
    /// `NotFound`.
    fn process(&self, exec_id: &str) -> Result<Arc<Process>, Failure>;
}

/// The containers of the pod.
#[derive(Debug)]
pub(crate) struct Registry<C> {
    slots: Mutex<BTreeMap<String, Slot<C>>>,
}

#[derive(Debug)]
enum Slot<C> {
    Creating,
    Present(Arc<C>),
    Removing,
}

impl<C> Default for Registry<C> {
    fn default() -> Self {
        Self {
            slots: Mutex::default(),
        }
    }
}

impl<C: Member> Registry<C> {
    /// Takes the id for a creation, which ends in [`Self::created`] or [`Self::forget`].
    ///
    /// # Errors
    /// `AlreadyExists`, `InvalidArgument` for an id that is no file name.
    pub(crate) fn reserve(&self, id: &str) -> Result<(), Failure> {
        check_id("container_id", id)?;
        let mut slots = lock(&self.slots);
        if slots.contains_key(id) {
            return Err(Failure::new(
                ErrorCode::AlreadyExists,
                format!("container {id} exists"),
            ));
        }
        slots.insert(id.to_owned(), Slot::Creating);
        Ok(())
    }

    pub(crate) fn created(&self, container: Arc<C>) {
        lock(&self.slots).insert(container.id().to_owned(), Slot::Present(container));
    }

    pub(crate) fn forget(&self, id: &str) {
        lock(&self.slots).remove(id);
    }

    /// # Errors
    /// `NotFound`; `WrongState` while it is being made or removed.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<C>, Failure> {
        match lock(&self.slots).get(id) {
            Some(Slot::Present(container)) => Ok(container.clone()),
            Some(Slot::Creating) => Err(busy(id, "created")),
            Some(Slot::Removing) => Err(busy(id, "removed")),
            None => Err(Failure::new(ErrorCode::NotFound, format!("no container {id:?}"))),
        }
    }

    /// Takes a container out for its removal, which ends in [`Self::forget`] or, to be tried again, [`Self::created`].
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn begin_remove(&self, id: &str) -> Result<Arc<C>, Failure> {
        let container = self.get(id)?;
        lock(&self.slots).insert(id.to_owned(), Slot::Removing);
        Ok(container)
    }

    pub(crate) fn all(&self) -> Vec<Arc<C>> {
        let slots = lock(&self.slots);
        let present = slots.values().filter_map(|slot| match slot {
            Slot::Present(container) => Some(container.clone()),
            Slot::Creating | Slot::Removing => None,
        });
        present.collect()
    }
}

impl<C: Member> Processes for Registry<C> {
    fn stdio(&self, container_id: &str, exec_id: &str) -> Option<Arc<ProcessStdio>> {
        let process = self
            .get(container_id)
            .and_then(|container| container.process(exec_id));
        process.ok().map(|process| process.stdio.clone())
    }
}

fn busy(id: &str, what: &str) -> Failure {
    Failure::new(ErrorCode::WrongState, format!("container {id} is being {what}"))
}

/// Ids become names of cgroups and directories.
///
/// # Errors
/// `InvalidArgument` naming `field`.
pub(crate) fn check_id(field: &str, id: &str) -> Result<(), Failure> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let first = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && id.len() <= MAX_ID && id.bytes().all(plain) {
        Ok(())
    } else {
        Err(Failure::invalid(format!(
            "{field}: {id:?} is no id (letters, digits, '.', '_', '-', at most {MAX_ID})"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_from_reservation_to_end() {
        let registry = Registry::<crate::container::Container>::default();
        registry.reserve("c1").unwrap();
        assert_eq!(
            registry.reserve("c1").unwrap_err().code(),
            ErrorCode::AlreadyExists
        );
        assert_eq!(registry.get("c1").unwrap_err().code(), ErrorCode::WrongState);
        registry.forget("c1");
        assert_eq!(registry.get("c1").unwrap_err().code(), ErrorCode::NotFound);
    }

    #[test]
    fn ids_are_file_names() {
        for wrong in [
            "",
            ".",
            "..",
            "a/b",
            ".hidden",
            "a b",
            "é",
            &"x".repeat(MAX_ID + 1),
        ] {
            assert!(check_id("container_id", wrong).is_err(), "{wrong:?}");
        }
        check_id("container_id", "app-1_0.2").unwrap();
    }
}
