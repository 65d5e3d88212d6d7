//! The agent of a fake guest: `agent.v1.Agent` over scripted containers, and a record of what the daemon asked for.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
};

use prost::Message as _;
use proto::agent::v1::{
    self, AgentError, ErrorCode,
    agent_server::{Agent, AgentServer},
};
use tokio::{
    io::DuplexStream,
    sync::{broadcast, mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{BroadcastStream, ReceiverStream},
};
use tonic::{Code, Request, Response, Status, transport::Server};

use super::{
    FaultPoint, Injected, Shared, lock,
    process::{FakeProcess, State},
    script::{self, Surroundings},
};
use crate::{clock::now_ns, guest::ready::PROTOCOL_VERSION};

/// What the fake guest's agent knows; a test reads it through the methods.
#[derive(Debug)]
pub struct FakeAgent {
    host: Arc<Shared>,
    state: Mutex<Guest>,
    events: broadcast::Sender<v1::WatchEvent>,
    shut_down: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Guest {
    configured: Option<v1::ConfigureSandboxRequest>,
    went_on: Option<v1::GoOnRequest>,
    /// By which its clock is wrong.
    clock_ahead_ns: i64,
    containers: BTreeMap<String, Container>,
    updates: Vec<v1::UpdateContainerRequest>,
    /// What the daemon wanted to be online.
    processors: u32,
    execs_begun: usize,
    sandbox_stats: v1::CgroupStats,
    interfaces: Vec<v1::InterfaceStats>,
    file_updates: Vec<v1::FilesSource>,
    running: JoinSet<()>,
}

#[derive(Debug)]
struct Container {
    request: v1::CreateContainerRequest,
    init: Arc<FakeProcess>,
    stats: v1::ContainerStats,
    /// As the cgroup has them.
    limits: v1::Resources,
    execs: BTreeMap<String, Arc<FakeProcess>>,
}

impl FakeAgent {
    pub(super) fn new(host: Arc<Shared>) -> Self {
        Self {
            host,
            state: Mutex::default(),
            events: broadcast::Sender::new(256),
            shut_down: watch::Sender::new(false),
        }
    }

    /// What the sandbox was configured with.
    #[must_use]
    pub fn configured(&self) -> Option<v1::ConfigureSandboxRequest> {
        lock(&self.state).configured.clone()
    }

    /// What it was told to go on with.
    #[must_use]
    pub fn went_on(&self) -> Option<v1::GoOnRequest> {
        lock(&self.state).went_on.clone()
    }

    /// Makes its clock wrong by this.
    pub fn set_clock_ahead(&self, ns: i64) {
        lock(&self.state).clock_ahead_ns = ns;
    }

    /// By which its clock is wrong.
    #[must_use]
    pub fn clock_ahead_ns(&self) -> i64 {
        lock(&self.state).clock_ahead_ns
    }

    /// What a container was created with.
    #[must_use]
    pub fn container(&self, container_id: &str) -> Option<v1::CreateContainerRequest> {
        lock(&self.state)
            .containers
            .get(container_id)
            .map(|container| container.request.clone())
    }

    /// Ids of the containers that the guest knows, sorted.
    #[must_use]
    pub fn containers(&self) -> Vec<String> {
        lock(&self.state).containers.keys().cloned().collect()
    }

    /// Ids of the exec'd processes that a container still has, sorted.
    #[must_use]
    pub fn execs(&self, container_id: &str) -> Vec<String> {
        let state = lock(&self.state);
        let execs = state
            .containers
            .get(container_id)
            .map(|container| container.execs.keys().cloned().collect());
        execs.unwrap_or_default()
    }

    /// Signals that a container's init process was sent, in order.
    #[must_use]
    pub fn signals(&self, container_id: &str) -> Vec<i32> {
        self.process(container_id, "")
            .map(|process| process.signals())
            .unwrap_or_default()
    }

    /// How many bytes a process has written so far; an empty exec id is the container's init process.
    #[must_use]
    pub fn written(&self, container_id: &str, exec_id: &str) -> u64 {
        self.process(container_id, exec_id)
            .map_or(0, |process| process.output.written())
    }

    /// Sizes that a process's terminal was given, in order; an empty exec id is the container's init process.
    #[must_use]
    pub fn sizes(&self, container_id: &str, exec_id: &str) -> Vec<(u32, u32)> {
        self.process(container_id, exec_id)
            .map(|process| process.sizes())
            .unwrap_or_default()
    }

    /// Limits that containers were given after their creation, in order.
    #[must_use]
    pub fn updates(&self) -> Vec<v1::UpdateContainerRequest> {
        lock(&self.state).updates.clone()
    }

    /// How many processes have been exec'd, in all containers.
    #[must_use]
    pub fn execs_begun(&self) -> usize {
        lock(&self.state).execs_begun
    }

    /// Most processors that the daemon wanted to be online; 0 when it never said.
    #[must_use]
    pub fn processors(&self) -> u32 {
        lock(&self.state).processors
    }

    /// What the guest says of the whole sandbox from now on.
    pub fn set_sandbox_stats(&self, stats: v1::CgroupStats, interfaces: Vec<v1::InterfaceStats>) {
        let mut state = lock(&self.state);
        state.sandbox_stats = stats;
        state.interfaces = interfaces;
    }

    /// What it says of a container from now on; the id is the container's own unless there is one.
    pub fn set_stats(&self, container_id: &str, mut stats: v1::ContainerStats) {
        if stats.container_id.is_empty() {
            stats.container_id = container_id.to_owned();
        }
        if let Some(container) = lock(&self.state).containers.get_mut(container_id) {
            container.stats = stats;
        }
    }

    /// Generations of volumes of files that came after the first, in order.
    #[must_use]
    pub fn file_updates(&self) -> Vec<v1::FilesSource> {
        lock(&self.state).file_updates.clone()
    }

    /// Whether the guest was asked to shut down.
    #[must_use]
    pub fn is_shut_down(&self) -> bool {
        *self.shut_down.borrow()
    }

    /// Says that a process of the container was killed for memory; the container goes on.
    pub fn report_oom(&self, container_id: &str) {
        let event = v1::watch_event::Event::Oom(v1::ContainerOom {
            container_id: container_id.to_owned(),
        });
        self.tell(event);
    }

    /// Returns when the guest was asked to shut down.
    pub(super) async fn shutdown_asked(&self) {
        // The sender is in `self`.
        drop(self.shut_down.subscribe().wait_for(|asked| *asked).await);
    }

    /// The Machine has ended, and nothing runs any more.
    pub(super) fn stop(&self) {
        lock(&self.state).running.abort_all();
    }

    pub(super) fn process(&self, container_id: &str, exec_id: &str) -> Option<Arc<FakeProcess>> {
        let state = lock(&self.state);
        let container = state.containers.get(container_id)?;
        if exec_id.is_empty() {
            Some(Arc::clone(&container.init))
        } else {
            container.execs.get(exec_id).cloned()
        }
    }

    /// Serves the connections that come, until the Machine ends.
    pub(super) async fn serve(self: Arc<Self>, incoming: mpsc::Receiver<io::Result<DuplexStream>>) {
        let service = AgentServer::new(Service(self)).max_decoding_message_size(64 * 1024 * 1024);
        let served = Server::builder()
            .add_service(service)
            .serve_with_incoming(ReceiverStream::new(incoming));
        if let Err(error) = served.await {
            tracing::error!(%error, "the fake agent has stopped");
        }
    }

    async fn gate(&self, call: &'static str) -> Result<(), Status> {
        match self.host.pass(FaultPoint::Call(call)).await {
            Ok(()) => Ok(()),
            Err(Injected) => Err(refusal(ErrorCode::System, "a test wanted this", libc::EIO)),
        }
    }

    async fn exec(&self, request: v1::ExecRequest) -> Result<Response<v1::ExecResponse>, Status> {
        self.gate("Exec").await?;
        let init = self.find(&request.container_id, "")?;
        if !matches!(init.state(), State::Running { .. }) {
            return Err(refusal(ErrorCode::WrongState, "the container does not run", 0));
        }
        let process = request.process.unwrap_or_default();
        let steps = script::parse(&process.args, &self.surroundings(&process))
            .map_err(|errno| refusal(ErrorCode::Exec, &format!("execute {:?}", process.args), errno))?;
        let exec = Arc::new(FakeProcess::new(steps, &process));
        let mut state = lock(&self.state);
        let container = state.containers.get_mut(&request.container_id);
        let container = container.ok_or_else(|| no_container(&request.container_id))?;
        if container.execs.contains_key(&request.exec_id) {
            return Err(refusal(ErrorCode::AlreadyExists, "the exec id is in use", 0));
        }
        container.execs.insert(request.exec_id, Arc::clone(&exec));
        state.execs_begun += 1;
        exec.begin();
        state.running.spawn(async move {
            exec.run().await;
        });
        Ok(Response::new(v1::ExecResponse { pid: 43 }))
    }

    fn tell(&self, event: v1::watch_event::Event) {
        // Nobody may watch.
        drop(self.events.send(v1::WatchEvent { event: Some(event) }));
    }

    fn find(&self, container_id: &str, exec_id: &str) -> Result<Arc<FakeProcess>, Status> {
        self.process(container_id, exec_id).ok_or_else(|| {
            let message = format!("no process {container_id:?} {exec_id:?}");
            refusal(ErrorCode::NotFound, &message, 0)
        })
    }

    fn surroundings(&self, process: &v1::Process) -> Surroundings {
        let hostname = lock(&self.state)
            .configured
            .as_ref()
            .map(|sandbox| sandbox.hostname.clone());
        let pairs = process.env.iter().filter_map(|entry| {
            let entry = String::from_utf8_lossy(entry).into_owned();
            entry
                .split_once('=')
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
        });
        Surroundings {
            env: pairs.collect(),
            hostname: hostname.unwrap_or_default(),
            cwd: process.cwd.clone(),
            user: process
                .user
                .as_ref()
                .map(|user| user.spec.clone())
                .unwrap_or_default(),
        }
    }

    fn snapshot(state: &Guest) -> v1::WatchEvent {
        let containers = state.containers.iter().map(|(id, container)| {
            let (phase, started_at_ns, exit) = match container.init.state() {
                State::Created => (v1::ContainerPhase::Created, 0, None),
                State::Running { started_at_ns } => (v1::ContainerPhase::Running, started_at_ns, None),
                State::Exited { started_at_ns, exit } => {
                    (v1::ContainerPhase::Exited, started_at_ns, Some(exit))
                }
            };
            v1::ContainerState {
                container_id: id.clone(),
                phase: phase.into(),
                pid: 42,
                started_at_ns,
                exit,
            }
        });
        let snapshot = v1::Snapshot {
            containers: containers.collect(),
        };
        v1::WatchEvent {
            event: Some(v1::watch_event::Event::Snapshot(snapshot)),
        }
    }
}

fn refusal(code: ErrorCode, message: &str, errno: i32) -> Status {
    let error = AgentError {
        code: code.into(),
        message: message.to_owned(),
        container_id: String::new(),
        errno,
    };
    Status::with_details(Code::Unknown, message, error.encode_to_vec().into())
}

fn no_container(id: &str) -> Status {
    refusal(ErrorCode::NotFound, &format!("no container {id:?}"), 0)
}

/// What a kernel makes of limits: memory in whole pages, and defaults where nothing is asked.
fn kernels(asked: Option<&v1::Resources>) -> v1::Resources {
    const PAGE: i64 = 4096;
    let unless_zero = |value: i64, default: i64| if value == 0 { default } else { value };
    let asked = asked.cloned().unwrap_or_default();
    let memory = unless_zero(asked.memory_limit_bytes / PAGE * PAGE, -1);
    v1::Resources {
        cpu_quota_us: unless_zero(asked.cpu_quota_us, -1),
        cpu_period_us: if asked.cpu_period_us == 0 {
            100_000
        } else {
            asked.cpu_period_us
        },
        cpu_weight: if asked.cpu_weight == 0 {
            100
        } else {
            asked.cpu_weight
        },
        memory_limit_bytes: memory,
        memory_swap_limit_bytes: unless_zero(asked.memory_swap_limit_bytes / PAGE * PAGE, -1),
        ..asked
    }
}

/// The RPC edge of a [`FakeAgent`].
#[derive(Debug)]
struct Service(Arc<FakeAgent>);

#[tonic::async_trait]
impl Agent for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchEvent, Status>> + Send>>;

    async fn info(&self, _: Request<v1::InfoRequest>) -> Result<Response<v1::InfoResponse>, Status> {
        self.0.gate("Info").await?;
        Ok(Response::new(v1::InfoResponse {
            protocol_version: PROTOCOL_VERSION,
            agent_version: "fake".to_owned(),
            kernel_release: "6.12-fake".to_owned(),
            boot_id: "fake".to_owned(),
            memory_total_bytes: 512 << 20,
            cpus_online: lock(&self.0.state).processors.max(1),
        }))
    }

    async fn go_on(&self, request: Request<v1::GoOnRequest>) -> Result<Response<v1::GoOnResponse>, Status> {
        self.0.gate("GoOn").await?;
        lock(&self.0.state).went_on = Some(request.into_inner());
        Ok(Response::new(v1::GoOnResponse {}))
    }

    async fn move_clock(
        &self,
        request: Request<v1::MoveClockRequest>,
    ) -> Result<Response<v1::MoveClockResponse>, Status> {
        self.0.gate("MoveClock").await?;
        let mut state = lock(&self.0.state);
        state.clock_ahead_ns = state.clock_ahead_ns.saturating_add(request.into_inner().by_ns);
        let realtime_ns = u64::try_from(now_ns().saturating_add(state.clock_ahead_ns)).unwrap_or_default();
        Ok(Response::new(v1::MoveClockResponse { realtime_ns }))
    }

    async fn configure_sandbox(
        &self,
        request: Request<v1::ConfigureSandboxRequest>,
    ) -> Result<Response<v1::ConfigureSandboxResponse>, Status> {
        self.0.gate("ConfigureSandbox").await?;
        let request = request.into_inner();
        let mut state = lock(&self.0.state);
        if state.configured.as_ref().is_some_and(|before| *before != request) {
            return Err(refusal(ErrorCode::WrongState, "configured differently before", 0));
        }
        state.configured = Some(request);
        Ok(Response::new(v1::ConfigureSandboxResponse {}))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Result<Response<v1::CreateContainerResponse>, Status> {
        self.0.gate("CreateContainer").await?;
        let request = request.into_inner();
        let process = request.process.clone().unwrap_or_default();
        // A missing program is found by execve, which is StartContainer's.
        let steps = script::parse(&process.args, &self.0.surroundings(&process)).unwrap_or_default();
        let mut state = lock(&self.0.state);
        if state.configured.is_none() {
            return Err(refusal(ErrorCode::WrongState, "the sandbox is not configured", 0));
        }
        if state.containers.contains_key(&request.container_id) {
            return Err(refusal(ErrorCode::AlreadyExists, "the container exists", 0));
        }
        let container = Container {
            init: Arc::new(FakeProcess::new(steps, &process)),
            execs: BTreeMap::new(),
            stats: v1::ContainerStats {
                container_id: request.container_id.clone(),
                cgroup: Some(v1::CgroupStats::default()),
                ..v1::ContainerStats::default()
            },
            limits: kernels(request.resources.as_ref()),
            request,
        };
        let actual = Some(container.limits.clone());
        state
            .containers
            .insert(container.request.container_id.clone(), container);
        Ok(Response::new(v1::CreateContainerResponse {
            pid: 42,
            user: Some(v1::ResolvedUser::default()),
            actual,
        }))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Result<Response<v1::StartContainerResponse>, Status> {
        self.0.gate("StartContainer").await?;
        let container_id = request.into_inner().container_id;
        let process = self
            .0
            .container(&container_id)
            .and_then(|request| request.process);
        let process = process.ok_or_else(|| no_container(&container_id))?;
        let init = self.0.find(&container_id, "")?;
        if !matches!(init.state(), State::Created) {
            return Err(refusal(
                ErrorCode::WrongState,
                "the container was started before",
                0,
            ));
        }
        if let Err(errno) = script::parse(&process.args, &self.0.surroundings(&process)) {
            return Err(refusal(
                ErrorCode::Exec,
                &format!("execute {:?}", process.args),
                errno,
            ));
        }
        let started_at_ns = init.begin();
        let agent = Arc::clone(&self.0);
        lock(&self.0.state).running.spawn(async move {
            let exit = init.run().await;
            agent.tell(v1::watch_event::Event::Exited(v1::ContainerExited {
                container_id,
                exit: Some(exit),
            }));
        });
        Ok(Response::new(v1::StartContainerResponse { started_at_ns }))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Result<Response<v1::RemoveContainerResponse>, Status> {
        self.0.gate("RemoveContainer").await?;
        let container_id = request.into_inner().container_id;
        let removed = lock(&self.0.state).containers.remove(&container_id);
        let container = removed.ok_or_else(|| no_container(&container_id))?;
        for process in container.execs.values().chain([&container.init]) {
            process.signal(libc::SIGKILL);
            process.kill();
        }
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Result<Response<v1::ExecResponse>, Status> {
        // As the agent does it: to its end, also when the caller has gone.
        let agent = Arc::clone(&self.0);
        let (reply, answer) = oneshot::channel();
        lock(&self.0.state).running.spawn(async move {
            drop(reply.send(agent.exec(request.into_inner()).await));
        });
        answer
            .await
            .map_err(|_| Status::unavailable("the Machine has ended"))?
    }

    async fn remove_exec(
        &self,
        request: Request<v1::RemoveExecRequest>,
    ) -> Result<Response<v1::RemoveExecResponse>, Status> {
        self.0.gate("RemoveExec").await?;
        let request = request.into_inner();
        let mut state = lock(&self.0.state);
        let container = state.containers.get_mut(&request.container_id);
        let exec = container.and_then(|container| container.execs.remove(&request.exec_id));
        let exec = exec.ok_or_else(|| refusal(ErrorCode::NotFound, "no such exec", 0))?;
        exec.signal(libc::SIGKILL);
        exec.kill();
        Ok(Response::new(v1::RemoveExecResponse {}))
    }

    async fn signal(
        &self,
        request: Request<v1::SignalRequest>,
    ) -> Result<Response<v1::SignalResponse>, Status> {
        self.0.gate("Signal").await?;
        let request = request.into_inner();
        let process = self.0.find(&request.container_id, &request.exec_id)?;
        let signal = i32::try_from(request.signal)
            .map_err(|_| refusal(ErrorCode::InvalidArgument, "no such signal", 0))?;
        if !process.signal(signal) {
            return Err(refusal(ErrorCode::WrongState, "the process has ended", 0));
        }
        if matches!(process.state(), State::Created) && signal == libc::SIGKILL {
            process.kill();
        }
        if request.all {
            let state = lock(&self.0.state);
            let container = state.containers.get(&request.container_id);
            for exec in container.iter().flat_map(|container| container.execs.values()) {
                exec.signal(signal);
            }
        }
        Ok(Response::new(v1::SignalResponse {}))
    }

    async fn wait(&self, request: Request<v1::WaitRequest>) -> Result<Response<v1::WaitResponse>, Status> {
        self.0.gate("Wait").await?;
        let request = request.into_inner();
        let process = self.0.find(&request.container_id, &request.exec_id)?;
        let exit = Some(process.ended().await);
        Ok(Response::new(v1::WaitResponse { exit }))
    }

    async fn resize_terminal(
        &self,
        request: Request<v1::ResizeTerminalRequest>,
    ) -> Result<Response<v1::ResizeTerminalResponse>, Status> {
        self.0.gate("ResizeTerminal").await?;
        let request = request.into_inner();
        let size = request.size.unwrap_or_default();
        self.0
            .find(&request.container_id, &request.exec_id)?
            .resize(size.width, size.height);
        Ok(Response::new(v1::ResizeTerminalResponse {}))
    }

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.0.gate("Watch").await?;
        // Under the lock: an end between the two would be told twice, and never not at all.
        let state = lock(&self.0.state);
        let events = BroadcastStream::new(self.0.events.subscribe());
        let snapshot = FakeAgent::snapshot(&state);
        drop(state);
        let events = events.map(|event| event.map_err(|_| Status::unavailable("too slow")));
        let stream = tokio_stream::once(Ok(snapshot)).chain(events);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn update_container(
        &self,
        request: Request<v1::UpdateContainerRequest>,
    ) -> Result<Response<v1::UpdateContainerResponse>, Status> {
        self.0.gate("UpdateContainer").await?;
        let request = request.into_inner();
        let mut state = lock(&self.0.state);
        let container = state.containers.get_mut(&request.container_id);
        let container = container.ok_or_else(|| no_container(&request.container_id))?;
        if matches!(container.init.state(), State::Exited { .. }) {
            return Err(refusal(ErrorCode::WrongState, "the container has ended", 0));
        }
        container.limits = kernels(request.resources.as_ref());
        let actual = Some(container.limits.clone());
        state.updates.push(request);
        Ok(Response::new(v1::UpdateContainerResponse { actual }))
    }

    async fn update_files(
        &self,
        request: Request<v1::UpdateFilesRequest>,
    ) -> Result<Response<v1::UpdateFilesResponse>, Status> {
        self.0.gate("UpdateFiles").await?;
        let source = request.into_inner().source.unwrap_or_default();
        let mut state = lock(&self.0.state);
        let mut mounts = state
            .containers
            .values()
            .flat_map(|container| &container.request.mounts);
        let has = |mount: &v1::Mount| matches!(&mount.source, Some(v1::mount::Source::Files(files)) if files.name == source.name);
        if !mounts.any(has) {
            return Err(refusal(ErrorCode::NotFound, "no such volume", 0));
        }
        state.file_updates.push(source);
        Ok(Response::new(v1::UpdateFilesResponse {}))
    }

    async fn resize(
        &self,
        request: Request<v1::ResizeRequest>,
    ) -> Result<Response<v1::ResizeResponse>, Status> {
        self.0.gate("Resize").await?;
        let mut state = lock(&self.0.state);
        state.processors = state.processors.max(request.into_inner().processors);
        Ok(Response::new(v1::ResizeResponse {
            cpus_online: state.processors,
        }))
    }

    async fn stats(&self, request: Request<v1::StatsRequest>) -> Result<Response<v1::StatsResponse>, Status> {
        self.0.gate("Stats").await?;
        let request = request.into_inner();
        let wanted = request.container_id;
        let state = lock(&self.0.state);
        if !wanted.is_empty() && !state.containers.contains_key(&wanted) {
            return Err(no_container(&wanted));
        }
        let everything = wanted.is_empty();
        let containers = state
            .containers
            .iter()
            .filter(|(id, _)| everything || **id == wanted);
        let stats = containers.map(|(_, container)| v1::ContainerStats {
            files: container.stats.files.filter(|_| request.with_files),
            ..container.stats.clone()
        });
        Ok(Response::new(v1::StatsResponse {
            timestamp_ns: 1,
            sandbox: everything.then_some(state.sandbox_stats),
            containers: stats.collect(),
            interfaces: state.interfaces.clone(),
            scratch: Some(v1::FilesystemStats {
                size_bytes: 16 << 20,
                used_bytes: 1 << 20,
                inodes: 1000,
                inodes_free: 900,
            }),
        }))
    }

    async fn shutdown(
        &self,
        _: Request<v1::ShutdownRequest>,
    ) -> Result<Response<v1::ShutdownResponse>, Status> {
        self.0.gate("Shutdown").await?;
        self.0.shut_down.send_replace(true);
        Ok(Response::new(v1::ShutdownResponse {}))
    }
}
