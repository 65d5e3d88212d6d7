//! The owner task of one sandbox. Whatever can change it arrives here as one [`Input`], one after the other, so that there is
//! no lock order; long waits (the grace period of a stop) are deadlines of the loop and hold nothing up.
//!
//! After each input the task publishes a view. It ends when the sandbox is forgotten, or when the daemon stops, which leaves
//! the Machine running for the next daemon.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proto::cri::v1 as cri;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    awake::told,
    containers::Container,
    error::{RequestError, chain},
    handle::{Reply, Request, SandboxHandle, SandboxName},
    live::Live,
    node::Node,
    plan::SandboxPlan,
    state::{Input as StateInput, Step, decide},
    stop_container::Stopping,
    view::SandboxView,
};
use crate::{
    clock::now_ns,
    guest::{GuestClient, GuestEvent},
    machine::MachineExit,
    store::{ContainerRecord, SandboxRecord},
};

/// Requests that wait for the owner task; senders beyond that wait themselves.
const MAILBOX: usize = 64;
/// Events of the guest that wait; beyond that the guest's stream waits.
const GUEST_EVENTS: usize = 64;

/// Owns one sandbox.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(super) node: Arc<Node>,
    pub(super) plan: SandboxPlan,
    pub(super) request: Arc<cri::RunPodSandboxRequest>,
    pub(super) record: SandboxRecord,
    pub(super) containers: BTreeMap<String, Container>,
    /// Containers that were told to stop.
    pub(super) stopping: BTreeMap<String, Stopping>,
    pub(super) live: Option<Live>,
    view: watch::Sender<Arc<SandboxView>>,
    requests: mpsc::Receiver<Request>,
    guest_events: mpsc::Receiver<GuestEvent>,
    /// Follows the guest; ends with this value or with the Machine.
    watcher: JoinSet<()>,
    guest_sender: mpsc::Sender<GuestEvent>,
}

/// Where a sandbox comes from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// A client waits for it.
    New(Reply<String>),
    /// The store, after a restart of the daemon.
    Recovered,
}

/// Everything that can change a sandbox.
#[derive(Debug)]
enum Input {
    Request(Request),
    Guest(GuestEvent),
    MachineEnded(MachineExit),
    /// Who serves its volumes.
    ServerEnded(MachineExit),
    /// A stop's grace period or patience is over.
    Deadline,
}

/// Whether the task goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Continue,
    Forgotten,
}

impl Driver {
    /// The task, not yet running, and the handle to it.
    pub(crate) fn new(
        node: Arc<Node>,
        plan: SandboxPlan,
        request: cri::RunPodSandboxRequest,
        record: SandboxRecord,
    ) -> (Self, Arc<SandboxHandle>) {
        let (request_sender, requests) = mpsc::channel(MAILBOX);
        let (guest_sender, guest_events) = mpsc::channel(GUEST_EVENTS);
        let name = SandboxName::from(&request.config.clone().unwrap_or_default());
        let request = Arc::new(request);
        let first_view = Arc::new(view(&plan, &request, &record, None, &BTreeMap::new()));
        let (view_sender, view_receiver) = watch::channel(first_view);
        let stop = node.stop.clone();
        let handle = SandboxHandle::new(&record.id, name, request_sender, view_receiver, stop);
        let driver = Self {
            node,
            plan,
            request,
            record,
            containers: BTreeMap::new(),
            stopping: BTreeMap::new(),
            live: None,
            view: view_sender,
            requests,
            guest_events,
            watcher: JoinSet::new(),
            guest_sender,
        };
        (driver, Arc::new(handle))
    }

    /// Gives a recovered sandbox its containers.
    pub(crate) fn with_containers(
        mut self,
        containers: Vec<(ContainerRecord, cri::CreateContainerRequest)>,
    ) -> Self {
        let containers = containers.into_iter().map(|(record, request)| {
            let container = Container::new(record, request);
            (container.record.id.clone(), container)
        });
        self.containers = containers.collect();
        // Told to nobody: all of it has been before.
        self.view.send_replace(self.current_view());
        self
    }

    /// The task's whole life.
    pub(crate) async fn run(mut self, origin: Origin) {
        let flow = match origin {
            Origin::New(reply) => Box::pin(self.start(reply)).await,
            Origin::Recovered => {
                self.publish();
                // Before any request, so that a client that tries again does not find the name taken.
                self.unmake_half_made().await;
                Flow::Continue
            }
        };
        if flow == Flow::Continue {
            Box::pin(self.serve()).await;
        }
    }

    async fn serve(&mut self) {
        let stop = self.node.stop.clone();
        loop {
            self.publish();
            let deadline = self.next_deadline();
            let input = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                exit = ended(self.live.as_ref()) => Input::MachineEnded(exit),
                exit = server_ended(self.live.as_ref()) => Input::ServerEnded(exit),
                Some(event) = self.guest_events.recv() => Input::Guest(event),
                request = self.requests.recv() => match request {
                    Some(request) => Input::Request(request),
                    None => return,
                },
                () = until(deadline) => Input::Deadline,
            };
            if self.handle(input).await == Flow::Forgotten {
                return;
            }
        }
    }

    async fn handle(&mut self, input: Input) -> Flow {
        match input {
            Input::Request(Request::Stop(reply)) => {
                let result = self.stop().await;
                self.answer(reply, result);
            }
            Input::Request(Request::Remove(reply)) => {
                let result = self.remove().await;
                let forgotten = result.is_ok();
                self.answer(reply, result);
                if forgotten {
                    return Flow::Forgotten;
                }
            }
            Input::Request(Request::CreateContainer(request, reply)) => {
                let result = Box::pin(self.create_container(*request)).await;
                self.answer(reply, result);
            }
            Input::Request(Request::StartContainer(id, reply)) => {
                let result = self.start_container(&id).await;
                self.answer(reply, result);
            }
            Input::Request(Request::StopContainer(id, grace, reply)) => {
                self.stop_container(&id, grace, reply).await;
            }
            Input::Request(Request::RemoveContainer(id, reply)) => {
                let result = self.remove_container(&id).await;
                self.answer(reply, result);
            }
            Input::Request(Request::ReopenLog(id, reply)) => {
                let result = self.reopen_log(&id).await;
                self.answer(reply, result);
            }
            Input::Request(Request::UpdateContainer(id, change, reply)) => {
                let result = self.update_container(&id, &change).await;
                self.answer(reply, result);
            }
            Input::Request(Request::UpdateSandbox(request, reply)) => {
                let result = self.update_sandbox(&request).await;
                self.answer(reply, result);
            }
            Input::Request(Request::FollowOutput(id, reply)) => {
                let result = self.follow_output(&id);
                self.answer(reply, result);
            }
            Input::Guest(event) => self.guest_event(event).await,
            Input::MachineEnded(exit) => self.machine_ended(&told(&self.plan, exit)).await,
            Input::ServerEnded(exit) => self.server_ended(exit).await,
            Input::Deadline => self.deadlines_passed().await,
        }
        Flow::Continue
    }

    /// Answers a client after the view shows what it was told.
    pub(super) fn answer<T>(&self, reply: Reply<T>, result: Result<T, RequestError>) {
        self.publish();
        // The client may have gone.
        drop(reply.send(result));
    }

    /// Decides, stores the state that follows, and says what is to be done.
    pub(super) async fn transition(&mut self, input: StateInput) -> Result<Step, RequestError> {
        let (next, step) = decide(&self.record.state, input).map_err(|_| RequestError::WrongState {
            operation: format!("use sandbox {}", self.record.id),
            reason: "it is not ready".to_owned(),
        })?;
        if next != self.record.state {
            let previous = std::mem::replace(&mut self.record.state, next);
            if let Err(error) = self.node.store.put_sandbox(&self.record).await {
                self.record.state = previous;
                return Err(RequestError::failed("record the sandbox's state")(error));
            }
        }
        Ok(step)
    }

    /// Takes over a Machine that runs already.
    pub(crate) fn adopt(&mut self, live: Live) {
        self.live = Some(live);
        self.follow_guest();
    }

    pub(super) fn follow_guest(&mut self) {
        if let Some(live) = &self.live {
            let (guest, events) = (live.guest.clone(), self.guest_sender.clone());
            let id = self.record.id.clone();
            self.watcher.spawn(follow(guest, events, id));
        }
    }

    /// The Machine is gone: nobody asks its guest any more.
    pub(super) fn forget_machine(&mut self) {
        self.live = None;
        self.watcher.abort_all();
        while self.guest_events.try_recv().is_ok() {}
    }

    /// Shows what the sandbox is now, and tells what changed.
    pub(super) fn publish(&self) {
        let after = self.current_view();
        let before = self.view.send_replace(Arc::clone(&after));
        self.node.events.tell_changes(&before, &after, now_ns());
    }

    /// The sandbox is forgotten. Of one that nobody saw nothing is told.
    pub(super) fn publish_end(&self) {
        let was_seen = self.view.borrow().is_listed();
        self.publish();
        if was_seen {
            self.node.events.tell_deleted(&self.current_view(), now_ns());
        }
    }

    fn current_view(&self) -> Arc<SandboxView> {
        Arc::new(view(
            &self.plan,
            &self.request,
            &self.record,
            self.live.as_ref(),
            &self.containers,
        ))
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.stopping.values().map(Stopping::deadline).min()
    }
}

fn view(
    plan: &SandboxPlan,
    request: &Arc<cri::RunPodSandboxRequest>,
    record: &SandboxRecord,
    live: Option<&Live>,
    containers: &BTreeMap<String, Container>,
) -> SandboxView {
    let mut containers: Vec<_> = containers
        .values()
        .filter(|container| container.is_listed())
        .map(Container::view)
        .collect();
    containers.sort_by_key(|container| container.created_at);
    SandboxView {
        id: record.id.clone(),
        request: Arc::clone(request),
        created_at: record.created_at,
        state: record.state.clone(),
        ips: record
            .attachment
            .as_ref()
            .map(|attachment| attachment.ips.clone())
            .unwrap_or_default(),
        timings: record.timings.clone(),
        console: record.console.clone(),
        machine: live.map(|live| live.view(plan)),
        containers,
    }
}

/// Never returns without a Machine.
async fn ended(live: Option<&Live>) -> MachineExit {
    match live {
        Some(live) => live.process.exited().await,
        None => std::future::pending().await,
    }
}

/// Never returns without a Machine that shares something.
async fn server_ended(live: Option<&Live>) -> MachineExit {
    match live {
        Some(live) => live.server_exit().await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Passes the guest's events on until the task is aborted; a lost connection is made again, with a snapshot first.
async fn follow(guest: GuestClient, events: mpsc::Sender<GuestEvent>, sandbox: String) {
    let mut watch = guest.watch();
    loop {
        match watch.next().await {
            Ok(event) => {
                if events.send(event).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(sandbox, error = chain(&error), "watching the guest again");
                // The watch itself pauses between tries; this yields in case it does not.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
}
