//! A network without kernel objects, for in-process tests of everything above it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use super::{Attachment, Network, NetworkError, NetworkStatus, PodNetwork, Prepared};

const LATE: Duration = Duration::from_millis(500);

/// What the fake does when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Behaviour {
    #[default]
    Works,
    /// Fails as a plugin that says no.
    Fails,
    /// The same, after half a second.
    FailsLate,
    /// Never answers.
    Hangs,
}

#[derive(Debug, Default)]
struct State {
    prepare: Behaviour,
    attach: Behaviour,
    detach: Behaviour,
    not_ready: Option<String>,
    namespace: Option<PathBuf>,
    /// Sandboxes with a namespace; true once attached.
    pods: BTreeMap<String, bool>,
    next_host: u8,
}

/// Remembers which pods have a network.
#[derive(Debug, Default)]
pub struct FakeNetwork(Mutex<State>);

impl FakeNetwork {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn on_prepare(&self, behaviour: Behaviour) {
        self.state().prepare = behaviour;
    }

    pub fn on_attach(&self, behaviour: Behaviour) {
        self.state().attach = behaviour;
    }

    pub fn on_detach(&self, behaviour: Behaviour) {
        self.state().detach = behaviour;
    }

    /// `None`: ready.
    pub fn set_not_ready(&self, message: Option<String>) {
        self.state().not_ready = message;
    }

    /// A real namespace for pods without a Machine, which are real in some tests.
    pub fn set_namespace(&self, path: PathBuf) {
        self.state().namespace = Some(path);
    }

    /// Sandboxes of which something is left.
    #[must_use]
    pub fn pods(&self) -> Vec<String> {
        self.state().pods.keys().cloned().collect()
    }

    async fn act(&self, behaviour: Behaviour, command: &'static str) -> Result<(), NetworkError> {
        if behaviour == Behaviour::FailsLate {
            tokio::time::sleep(LATE).await;
        }
        match behaviour {
            Behaviour::Works => Ok(()),
            Behaviour::Fails | Behaviour::FailsLate => {
                let (plugin, message) = ("fake".to_owned(), "told to fail".to_owned());
                Err(NetworkError::Plugin {
                    plugin,
                    command,
                    code: 999,
                    message,
                })
            }
            Behaviour::Hangs => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Network for FakeNetwork {
    async fn prepare(&self, sandbox_id: &str) -> Result<Prepared, NetworkError> {
        let behaviour = self.state().prepare;
        self.act(behaviour, "prepare").await?;
        let null =
            fs_err::File::open("/dev/null").map_err(|error| NetworkError::system("open /dev/null", error))?;
        self.state().pods.insert(sandbox_id.to_owned(), false);
        Ok(Prepared {
            namespace: PathBuf::from(format!("/fake/{sandbox_id}")),
            tap: null.into_parts().0.into(),
        })
    }

    async fn attach(&self, pod: &PodNetwork) -> Result<Attachment, NetworkError> {
        let behaviour = self.state().attach;
        self.act(behaviour, "ADD").await?;
        let mut state = self.state();
        state.next_host = state.next_host.wrapping_add(1);
        let host = state.next_host;
        state.pods.insert(pod.sandbox_id.clone(), true);
        Ok(Attachment {
            mac: format!("02:00:00:00:00:{host:02x}"),
            mtu: 1500,
            addresses: vec![format!("10.88.0.{host}/16")],
            ips: vec![[10, 88, 0, host].into()],
            ..Attachment::default()
        })
    }

    async fn prepare_plain(&self, sandbox_id: &str) -> Result<PathBuf, NetworkError> {
        let made_up = self.prepare(sandbox_id).await?.namespace;
        Ok(self.state().namespace.clone().unwrap_or(made_up))
    }

    async fn attach_plain(&self, pod: &PodNetwork) -> Result<Attachment, NetworkError> {
        self.attach(pod).await
    }

    async fn detach(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        let behaviour = self.state().detach;
        self.act(behaviour, "DEL").await?;
        self.state().pods.remove(sandbox_id);
        Ok(())
    }

    async fn leftovers(&self) -> Result<Vec<String>, NetworkError> {
        Ok(self.pods())
    }

    fn status(&self) -> NetworkStatus {
        match &self.state().not_ready {
            None => NetworkStatus::Ready,
            Some(message) => NetworkStatus::NotReady {
                reason: "FakeNotReady",
                message: message.clone(),
            },
        }
    }
}
