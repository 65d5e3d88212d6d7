//! CRI's rules as a state machine that knows nothing of the daemon: what each call must answer, and what lists show then. Pure.

use std::collections::BTreeMap;

use proto::cri::v1 as cri;
use tonic::Code;

/// As by SIGKILL.
const KILLED: i32 = 137;
const TERMINATED: i32 = 143;
/// Of a command that does not exist, and of a start that failed for another reason.
const NOT_FOUND: i32 = 127;
const NOT_STARTED: i32 = 128;

/// What a container does once it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Sleeps,
    /// And takes no notice of SIGTERM.
    Stubborn,
    Exits(u8),
    Missing,
}

/// A pod's or a container's place in the order of their creation.
pub(super) type Number = usize;

/// All that was ever made.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) pods: Vec<Pod>,
    pub(super) containers: Vec<Container>,
}

#[derive(Debug)]
pub(super) struct Pod {
    /// The daemon's choice.
    pub(super) id: String,
    name: u8,
    pub(super) state: PodState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PodState {
    Ready,
    NotReady,
    Gone,
}

#[derive(Debug)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) pod: Number,
    name: u8,
    pub(super) command: Command,
    pub(super) state: ContainerState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContainerState {
    Created,
    Running,
    Exited(i32),
    Gone,
}

/// What a call must answer.
pub(super) type Answer = Result<(), Code>;

impl World {
    /// `fails`: the host or the guest does.
    pub(super) fn run_pod(&mut self, name: u8, fails: bool) -> Answer {
        let holds = |pod: &Pod| pod.name == name && pod.state != PodState::Gone;
        if self.pods.iter().any(holds) {
            return Err(Code::AlreadyExists);
        }
        if fails {
            return Err(Code::Internal);
        }
        self.pods.push(Pod {
            id: String::new(),
            name,
            state: PodState::Ready,
        });
        Ok(())
    }

    /// Never refused, whatever it is about.
    pub(super) fn stop_pod(&mut self, pod: Number) -> Answer {
        self.machine_ends(pod);
        Ok(())
    }

    /// Containers go with it.
    pub(super) fn remove_pod(&mut self, pod: Number) -> Answer {
        if let Some(pod) = self.pods.get_mut(pod) {
            pod.state = PodState::Gone;
        }
        for container in self.of_pod(pod) {
            container.state = ContainerState::Gone;
        }
        Ok(())
    }

    /// By whatever hand. What was not started never will be.
    pub(super) fn machine_ends(&mut self, pod: Number) {
        let Some(found) = self.pods.get_mut(pod) else {
            return;
        };
        if found.state != PodState::Ready {
            return;
        }
        found.state = PodState::NotReady;
        for container in self.of_pod(pod) {
            if let ContainerState::Created | ContainerState::Running = container.state {
                container.state = ContainerState::Exited(KILLED);
            }
        }
    }

    pub(super) fn create(&mut self, pod: Number, name: u8, command: Command, fails: bool) -> Answer {
        self.needs_ready(pod)?;
        if self.of_pod(pod).any(|container| container.name == name) {
            return Err(Code::AlreadyExists);
        }
        if fails {
            return Err(Code::Internal);
        }
        self.containers.push(Container {
            id: String::new(),
            pod,
            name,
            command,
            state: ContainerState::Created,
        });
        Ok(())
    }

    /// Once only, and an attempt that fails was the one.
    pub(super) fn start(&mut self, container: Number, fails: bool) -> Answer {
        let found = self.container(container).ok_or(Code::NotFound)?;
        let (pod, state, command) = (found.pod, found.state, found.command);
        self.needs_ready(pod)?;
        if state != ContainerState::Created {
            return Err(Code::FailedPrecondition);
        }
        let (state, answer) = match command {
            _ if fails => (ContainerState::Exited(NOT_STARTED), Err(Code::Internal)),
            Command::Missing => (ContainerState::Exited(NOT_FOUND), Err(Code::InvalidArgument)),
            Command::Exits(code) => (ContainerState::Exited(code.into()), Ok(())),
            Command::Sleeps | Command::Stubborn => (ContainerState::Running, Ok(())),
        };
        self.containers[container].state = state;
        answer
    }

    /// Never refused; what does not run is left as it is.
    pub(super) fn stop(&mut self, container: Number, grace: u8) -> Answer {
        if let Some(found) = self.container(container)
            && found.state == ContainerState::Running
        {
            let polite = grace > 0 && found.command == Command::Sleeps;
            found.state = ContainerState::Exited(if polite { TERMINATED } else { KILLED });
        }
        Ok(())
    }

    /// What runs is killed. `fails`: the guest does not forget it, if there is one to ask.
    pub(super) fn remove(&mut self, container: Number, fails: bool) -> Answer {
        let Some(found) = self.container(container) else {
            return Ok(());
        };
        let pod = found.pod;
        if found.state == ContainerState::Running {
            found.state = ContainerState::Exited(KILLED);
        }
        if fails && self.needs_ready(pod).is_ok() {
            return Err(Code::Internal);
        }
        self.containers[container].state = ContainerState::Gone;
        Ok(())
    }

    /// What ListPodSandbox shows.
    pub(super) fn listed_pods(&self) -> BTreeMap<String, cri::PodSandboxState> {
        let pods = self.pods.iter().filter_map(|pod| {
            let state = match pod.state {
                PodState::Ready => cri::PodSandboxState::SandboxReady,
                PodState::NotReady => cri::PodSandboxState::SandboxNotready,
                PodState::Gone => return None,
            };
            Some((pod.id.clone(), state))
        });
        pods.collect()
    }

    /// What ListContainers shows.
    pub(super) fn listed_containers(&self) -> BTreeMap<String, cri::ContainerState> {
        let containers = self.containers.iter().filter_map(|container| {
            let state = match container.state {
                ContainerState::Created => cri::ContainerState::ContainerCreated,
                ContainerState::Running => cri::ContainerState::ContainerRunning,
                ContainerState::Exited(_) => cri::ContainerState::ContainerExited,
                ContainerState::Gone => return None,
            };
            Some((container.id.clone(), state))
        });
        containers.collect()
    }

    /// Of the pod of a container.
    pub(super) fn name_of(&self, container: Number) -> String {
        format!("pod-{}", self.pods[self.containers[container].pod].name)
    }

    /// One that is there.
    fn container(&mut self, container: Number) -> Option<&mut Container> {
        let found = self.containers.get_mut(container)?;
        (found.state != ContainerState::Gone).then_some(found)
    }

    fn of_pod(&mut self, pod: Number) -> impl Iterator<Item = &mut Container> {
        let containers = self.containers.iter_mut();
        containers.filter(move |container| container.pod == pod && container.state != ContainerState::Gone)
    }

    fn needs_ready(&self, pod: Number) -> Answer {
        match self.pods.get(pod).map(|pod| pod.state) {
            Some(PodState::Ready) => Ok(()),
            Some(PodState::NotReady) => Err(Code::FailedPrecondition),
            Some(PodState::Gone) | None => Err(Code::NotFound),
        }
    }
}
