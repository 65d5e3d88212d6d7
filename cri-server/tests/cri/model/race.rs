//! Several clients at once, over the same few pods, while Machines die: what must hold whoever comes first.
//!
//! Answers are among those that the call may have; states go one way; every change is told once and in order; afterwards all of
//! it can be removed, and nothing is left.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use cri_server::guest::fake::{Fault, FaultPoint};
use proptest::{prelude::*, sample::Index};
use proto::cri::v1::{self as cri, ContainerEventType as Kind};
use tokio::task::JoinSet;
use tonic::{Code, Status, Streaming};

use super::{Step, UNKNOWN, among, create, for_all, kill_machine, run_pod, runtime, steps};
use crate::support::{TestNode, eventually};

const CLIENTS: usize = 4;

/// A pod or container that was seen, and in which states.
type Seen = BTreeMap<String, BTreeSet<i32>>;

/// What the clients share.
struct Shared {
    node: TestNode,
    pods: Mutex<Vec<String>>,
    containers: Mutex<Vec<String>>,
    logs: AtomicUsize,
}

#[test]
fn whoever_comes_first() {
    let clients = prop::collection::vec(steps(12), CLIENTS);
    for_all(8, &clients, |clients| {
        let runtime = runtime();
        runtime.block_on(race(clients));
    });
}

async fn race(clients: Vec<Vec<Step>>) {
    let shared = Arc::new(Shared {
        node: TestNode::start().await,
        pods: Mutex::default(),
        containers: Mutex::default(),
        logs: AtomicUsize::new(0),
    });
    let mut told = JoinSet::new();
    let events = events(&shared.node).await;
    told.spawn(collect(events));
    let mut running = JoinSet::new();
    for steps in clients {
        let shared = Arc::clone(&shared);
        running.spawn(async move {
            for step in steps {
                shared.step(&step).await;
            }
        });
    }
    let watched = watch(&shared, running).await;
    let shared = Arc::into_inner(shared).expect("the clients have ended");
    let mut node = shared.node;
    let containers = shared.containers.into_inner().unwrap();
    let different: BTreeSet<&String> = containers.iter().collect();
    assert_eq!(different.len(), containers.len(), "an id was given out twice");
    let pods = shared.pods.into_inner().unwrap();
    for pod in &pods {
        node.remove_pod(pod).await.unwrap();
    }
    eventually("what failed to start is gone", async || {
        node.pods().await.is_empty()
    })
    .await;
    assert_eq!(node.containers().await, Vec::new());
    node.assert_nothing_is_left();
    // Ends the stream of events, too.
    node.restart_daemon().await;
    assert!(node.pods().await.is_empty() && node.containers().await.is_empty());
    node.assert_nothing_is_left();
    for events in told.join_all().await {
        in_order(&events);
        let told: BTreeSet<&String> = events.keys().collect();
        let unknown: Vec<&String> = watched.keys().filter(|id| !told.contains(id)).collect();
        assert!(unknown.is_empty(), "listed and never told: {unknown:?}");
    }
}

impl Shared {
    async fn step(&self, step: &Step) {
        let node = &self.node;
        match step {
            Step::RunPod { name, fault } => {
                let ran = run_pod(node, *name, *fault).await;
                // Faults hit whoever passes first; a pod may lose its Machine while it starts.
                allowed(step, &ran, &[Code::AlreadyExists, Code::Internal]);
                self.pods.lock().unwrap().extend(ran);
            }
            Step::StopPod(index) => allowed(step, &node.stop_pod(&self.pod(index)).await, &[]),
            Step::RemovePod(index) => allowed(step, &node.remove_pod(&self.pod(index)).await, &[]),
            Step::KillMachine(index) => kill_machine(node, &self.pod(index)),
            Step::Create {
                pod,
                name,
                command,
                fails,
            } => {
                self.fail(*fails, "CreateContainer");
                let log = self.logs.fetch_add(1, Ordering::Relaxed).to_string();
                let created = create(node, &self.pod(pod), *name, *command, &log).await;
                let codes = [Code::NotFound, Code::FailedPrecondition, Code::AlreadyExists];
                allowed(step, &created, &[&codes[..], &BROKEN].concat());
                self.containers.lock().unwrap().extend(created);
            }
            Step::Start { container, fails } => {
                self.fail(*fails, "StartContainer");
                let started = node.start_container(&self.container(container)).await;
                let codes = [Code::NotFound, Code::FailedPrecondition, Code::InvalidArgument];
                allowed(step, &started, &[&codes[..], &BROKEN].concat());
            }
            Step::Stop { container, grace } => {
                let stopped = node
                    .stop_container(&self.container(container), (*grace).into())
                    .await;
                allowed(step, &stopped, &BROKEN);
            }
            Step::Remove { container, fails } => {
                self.fail(*fails, "RemoveContainer");
                let removed = node.remove_container(&self.container(container)).await;
                allowed(step, &removed, &BROKEN);
            }
        }
    }

    fn fail(&self, fails: bool, call: &'static str) {
        if fails {
            self.node.host.inject(FaultPoint::Call(call), Fault::Fail, 1);
        }
    }

    fn pod(&self, index: &Index) -> String {
        one_of(&self.pods, index)
    }

    fn container(&self, index: &Index) -> String {
        one_of(&self.containers, index)
    }
}

fn one_of(ids: &Mutex<Vec<String>>, index: &Index) -> String {
    let ids = ids.lock().unwrap();
    let id = ids.get(among(index, ids.len())).cloned();
    id.unwrap_or_else(|| UNKNOWN.to_owned())
}

/// What a guest that dies in the midst of a call, or was told to fail it, comes to.
const BROKEN: [Code; 3] = [Code::Internal, Code::Unavailable, Code::FailedPrecondition];

fn allowed<T>(step: &Step, answer: &Result<T, Status>, codes: &[Code]) {
    if let Err(status) = answer {
        assert!(codes.contains(&status.code()), "{step:?}: {status:?}");
    }
}

/// Lists until the clients have ended; what was seen. States go one way, and what is gone stays gone.
async fn watch(shared: &Shared, mut running: JoinSet<()>) -> Seen {
    let (mut seen, mut last) = (Seen::new(), BTreeMap::new());
    loop {
        let ended = tokio::select! {
            ended = running.join_next() => Some(ended),
            () = tokio::time::sleep(std::time::Duration::from_millis(5)) => None,
        };
        let pods = shared
            .node
            .pods()
            .await
            .into_iter()
            .map(|pod| (pod.id, pod.state));
        // Of containers, the states' numbers are their order; of pods as well.
        let listed: BTreeMap<String, i32> = pods
            .chain(
                shared
                    .node
                    .containers()
                    .await
                    .into_iter()
                    .map(|one| (one.id, one.state)),
            )
            .collect();
        for (id, state) in &listed {
            if let Some(before) = last.get(id) {
                assert!(before <= state, "{id} went from {before} to {state}");
            } else {
                assert!(!seen.contains_key(id), "{id} is there again");
            }
            seen.entry(id.clone()).or_default().insert(*state);
        }
        last = listed;
        match ended {
            Some(Some(client)) => client.unwrap(),
            Some(None) => return seen,
            None => {}
        }
    }
}

async fn events(node: &TestNode) -> Streaming<cri::ContainerEventResponse> {
    let request = cri::GetEventsRequest {};
    let answer = node.runtime.clone().get_container_events(request).await;
    answer.unwrap().into_inner()
}

/// Kinds by id, in order, until the daemon ends.
async fn collect(mut events: Streaming<cri::ContainerEventResponse>) -> BTreeMap<String, Vec<Kind>> {
    let mut told: BTreeMap<String, Vec<Kind>> = BTreeMap::new();
    while let Ok(Some(event)) = events.message().await {
        let kind = event.container_event_type();
        told.entry(event.container_id).or_default().push(kind);
    }
    told
}

/// Each once, from the first to the last; a start is followed by an end.
fn in_order(told: &BTreeMap<String, Vec<Kind>>) {
    use Kind::{
        ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
        ContainerStoppedEvent as Stopped,
    };
    for (id, kinds) in told {
        let whole: [&[Kind]; 3] = [
            &[Created, Started, Stopped, Deleted],
            &[Created, Stopped, Deleted],
            &[Created, Deleted],
        ];
        assert!(whole.contains(&kinds.as_slice()), "of {id} was told: {kinds:?}");
    }
}
