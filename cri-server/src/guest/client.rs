//! Client of one guest's agent: a method per call, each with a deadline of its own, answers checked.
//!
//! The channel connects when it is used and again when it broke, so that a daemon restart or a slow guest needs nothing
//! special. Calls are not repeated by themselves, except where that is said: after `Unreachable` and `Timeout` nobody knows
//! whether the guest did what was asked.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use proto::{
    agent::v1::{self, ErrorCode, agent_client::AgentClient},
    stdio::AGENT_PORT,
};
use tokio::time::{Instant, sleep, timeout};
use tonic::{
    Response, Status, Streaming,
    transport::{Channel, Endpoint, Uri},
};

use super::{
    answer::{self, Created, Exit, GuestEvent},
    connect::Dialer,
    error::GuestError,
    ready::PROTOCOL_VERSION,
    text,
};
use crate::{machine::Layout, stdio::ProcessId};

/// How long each kind of call may take, on a node under heavy load.
mod deadline {
    use std::time::Duration;

    pub(super) const INFO: Duration = Duration::from_secs(10);
    /// Finds a few devices.
    pub(super) const GO_ON: Duration = Duration::from_secs(10);
    pub(super) const MOVE_CLOCK: Duration = Duration::from_secs(10);
    pub(super) const CONFIGURE_SANDBOX: Duration = Duration::from_secs(30);
    /// Finds and mounts disks.
    pub(super) const CREATE_CONTAINER: Duration = Duration::from_secs(60);
    pub(super) const START_CONTAINER: Duration = Duration::from_secs(30);
    /// Kills processes and unmounts.
    pub(super) const REMOVE_CONTAINER: Duration = Duration::from_secs(30);
    pub(super) const EXEC: Duration = Duration::from_secs(30);
    pub(super) const REMOVE_EXEC: Duration = Duration::from_secs(10);
    pub(super) const SIGNAL: Duration = Duration::from_secs(10);
    pub(super) const RESIZE_TERMINAL: Duration = Duration::from_secs(10);
    pub(super) const UPDATE_CONTAINER: Duration = Duration::from_secs(10);
    pub(super) const RESIZE: Duration = Duration::from_secs(20);
    pub(super) const UPDATE_FILES: Duration = Duration::from_secs(10);
    pub(super) const STATS: Duration = Duration::from_secs(10);
    pub(super) const OPEN_WATCH: Duration = Duration::from_secs(10);
    /// Syncs file systems.
    pub(super) const SHUTDOWN: Duration = Duration::from_secs(10);
}

/// Largest answer: statistics or a snapshot of a sandbox with very many containers.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// A connection on which nothing came back for the sum of these is given up, and made again by the next call.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two tries of a watch or a wait: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Talks to the agent of one guest. Cheap to clone: clones share the connection.
#[derive(Debug, Clone)]
pub struct GuestClient {
    agent: AgentClient<Channel>,
}

/// Facts of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestInfo {
    /// For people.
    pub agent_version: String,
    /// For people.
    pub kernel_release: String,
    /// The guest's own boot id.
    pub boot_id: String,
    /// Bytes.
    pub memory_total_bytes: u64,
    /// Processors that are online.
    pub cpus_online: u32,
}

impl GuestClient {
    /// A client for the guest of the Machine at `layout`; nothing is connected yet. Needs a tokio runtime.
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        Self::over(Dialer::new(layout))
    }

    /// The same for whatever `dialer` reaches.
    #[must_use]
    pub fn over(dialer: Dialer) -> Self {
        let connector = tower::service_fn(move |_: Uri| {
            let dialer = dialer.clone();
            async move { dialer.dial(AGENT_PORT).await.map(TokioIo::new) }
        });
        // The authority is sent to the agent and otherwise without meaning: the connector knows where to go.
        let channel = Endpoint::from_static("http://agent.guest")
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .connect_with_connector_lazy(connector);
        Self {
            agent: AgentClient::new(channel).max_decoding_message_size(MAX_ANSWER),
        }
    }

    /// Facts of the guest, and that its agent speaks our protocol.
    ///
    /// # Errors
    /// [`GuestError`]
    pub async fn info(&self) -> Result<GuestInfo, GuestError> {
        let operation = "ask the guest for its facts";
        let mut agent = self.agent.clone();
        let info = call(operation, deadline::INFO, agent.info(v1::InfoRequest {})).await?;
        if info.protocol_version != PROTOCOL_VERSION {
            let what = format!("protocol version {}", info.protocol_version);
            return Err(GuestError::invalid(operation, what));
        }
        Ok(GuestInfo {
            agent_version: text::one_line(&info.agent_version, 64),
            kernel_release: text::one_line(&info.kernel_release, 64),
            boot_id: text::one_line(&info.boot_id, 64),
            memory_total_bytes: info.memory_total_bytes,
            cpus_online: info.cpus_online,
        })
    }

    /// To a guest that goes on from a template, before anything else: what makes it another guest than the others, and the PCI
    /// addresses of devices that are new to it.
    ///
    /// # Errors
    /// [`GuestError`]
    pub async fn go_on(&self, request: v1::GoOnRequest) -> Result<(), GuestError> {
        let mut agent = self.agent.clone();
        call("let the guest go on", deadline::GO_ON, agent.go_on(request)).await?;
        Ok(())
    }

    /// Moves the guest's time of day by a difference; nanoseconds since the epoch of what it says it is then.
    ///
    /// # Errors
    /// [`GuestError`]
    pub async fn move_clock(&self, by_ns: i64) -> Result<u64, GuestError> {
        let mut agent = self.agent.clone();
        let answer = agent.move_clock(v1::MoveClockRequest { by_ns });
        let told = call("move the guest's clock", deadline::MOVE_CLOCK, answer).await?;
        Ok(told.realtime_ns)
    }

    /// Gives the guest its name, network, clock and scratch disk. Again only with equal content.
    ///
    /// # Errors
    /// [`GuestError`]
    pub async fn configure_sandbox(&self, request: v1::ConfigureSandboxRequest) -> Result<(), GuestError> {
        let mut agent = self.agent.clone();
        let answer = agent.configure_sandbox(request);
        call("configure the sandbox", deadline::CONFIGURE_SANDBOX, answer).await?;
        Ok(())
    }

    /// Prepares a container and leaves it waiting.
    ///
    /// # Errors
    /// [`GuestError`]
    pub async fn create_container(&self, request: v1::CreateContainerRequest) -> Result<Created, GuestError> {
        let operation = "create the container";
        let mut agent = self.agent.clone();
        let answer = agent.create_container(request);
        answer::created(
            operation,
            call(operation, deadline::CREATE_CONTAINER, answer).await?,
        )
    }

    /// Starts a created container; returns when, in nanoseconds since the epoch by the guest's clock.
    ///
    /// # Errors
    /// [`GuestError`]; [`GuestError::exec_exit_code`] when its command cannot be executed.
    pub async fn start_container(&self, container_id: &str) -> Result<i64, GuestError> {
        let operation = "start the container";
        let mut agent = self.agent.clone();
        let answer = agent.start_container(v1::StartContainerRequest {
            container_id: container_id.to_owned(),
        });
        let started = call(operation, deadline::START_CONTAINER, answer).await?;
        answer::moment(operation, started.started_at_ns)
    }

    /// Ends what is left of a container and forgets it with its output. One that is not there is fine.
    ///
    /// # Errors
    /// [`GuestError`]
    pub async fn remove_container(&self, container_id: &str) -> Result<(), GuestError> {
        let mut agent = self.agent.clone();
        let answer = agent.remove_container(v1::RemoveContainerRequest {
            container_id: container_id.to_owned(),
        });
        gone_is_fine(call("remove the container", deadline::REMOVE_CONTAINER, answer).await)
    }

    /// Runs one more process in a running container.
    ///
    /// # Errors
    /// [`GuestError`]; [`GuestError::exec_exit_code`] when the command cannot be executed.
    pub async fn exec(
        &self,
        container_id: &str,
        exec_id: &str,
        process: v1::Process,
    ) -> Result<(), GuestError> {
        let mut agent = self.agent.clone();
        let answer = agent.exec(v1::ExecRequest {
            container_id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
            process: Some(process),
        });
        call("execute the command", deadline::EXEC, answer).await?;
        Ok(())
    }

    /// Forgets an exec'd process, killing it if it still runs. One that is not there is fine.
    ///
    /// # Errors
    /// [`GuestError`]
    pub async fn remove_exec(&self, container_id: &str, exec_id: &str) -> Result<(), GuestError> {
        let mut agent = self.agent.clone();
        let answer = agent.remove_exec(v1::RemoveExecRequest {
            container_id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
        });
        gone_is_fine(call("remove the command", deadline::REMOVE_EXEC, answer).await)
    }

    /// Sends a signal (signal(7)) to a process, or to every process of its container.
    ///
    /// # Errors
    /// [`GuestError`]; code `WrongState` when the process has ended.
    pub async fn signal(&self, process: &ProcessId, signal: u32, all: bool) -> Result<(), GuestError> {
        let mut agent = self.agent.clone();
        let answer = agent.signal(v1::SignalRequest {
            container_id: process.container_id.clone(),
            exec_id: process.exec_id.clone().unwrap_or_default(),
            signal,
            all,
        });
        call("signal the process", deadline::SIGNAL, answer).await?;
        Ok(())
    }

    /// Returns when the process has ended, at once if it has already. Asks again after a lost connection, until `deadline`.
    ///
    /// # Errors
    /// [`GuestError`]; `Timeout` when it still runs.
    pub async fn wait(&self, process: &ProcessId, deadline: Duration) -> Result<Exit, GuestError> {
        let operation = "wait for the process";
        let until = Instant::now() + deadline;
        let mut pause = FIRST_PAUSE;
        loop {
            let mut agent = self.agent.clone();
            let answer = agent.wait(v1::WaitRequest {
                container_id: process.container_id.clone(),
                exec_id: process.exec_id.clone().unwrap_or_default(),
            });
            let left = until.saturating_duration_since(Instant::now());
            match call(operation, left, answer).await {
                Ok(ended) => return answer::exit(operation, ended.exit),
                Err(GuestError::Unreachable { .. }) if Instant::now() + pause < until => {
                    sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
                Err(GuestError::Timeout { operation, .. }) => {
                    return Err(GuestError::Timeout {
                        operation,
                        after: deadline,
                    });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Tells a process's terminal its size in characters.
    ///
    /// # Errors
    /// [`GuestError`]
    pub async fn resize_terminal(
        &self,
        process: &ProcessId,
        width: u32,
        height: u32,
    ) -> Result<(), GuestError> {
        let mut agent = self.agent.clone();
        let answer = agent.resize_terminal(v1::ResizeTerminalRequest {
            container_id: process.container_id.clone(),
            exec_id: process.exec_id.clone().unwrap_or_default(),
            size: Some(v1::TerminalSize { width, height }),
        });
        call("resize the terminal", deadline::RESIZE_TERMINAL, answer).await?;
        Ok(())
    }

    /// Sets a container's limits anew, all of them or none; returns those that its cgroup has then.
    ///
    /// # Errors
    /// [`GuestError`]
    pub async fn update_container(
        &self,
        container_id: &str,
        resources: v1::Resources,
        oom_score_adj: Option<i32>,
    ) -> Result<v1::Resources, GuestError> {
        let operation = "update the container";
        let mut agent = self.agent.clone();
        let answer = agent.update_container(v1::UpdateContainerRequest {
            container_id: container_id.to_owned(),
            resources: Some(resources),
            oom_score_adj,
        });
        let updated = call(operation, deadline::UPDATE_CONTAINER, answer).await?;
        answer::limits(operation, updated.actual)
    }

    /// Gives a volume of files its next generation.
    ///
    /// # Errors
    /// [`GuestError`]; `NotFound` when no container has the volume.
    pub async fn update_files(&self, source: v1::FilesSource) -> Result<(), GuestError> {
        let mut agent = self.agent.clone();
        let answer = agent.update_files(v1::UpdateFilesRequest { source: Some(source) });
        call("update the files", deadline::UPDATE_FILES, answer).await?;
        Ok(())
    }

    /// The Machine has become larger: so many processors are to be online, and the memory device at that PCI address
    /// (`None`: there is none) is to be used.
    ///
    /// # Errors
    /// [`GuestError`]
    pub async fn resize(&self, processors: u8, memory_device: Option<&str>) -> Result<(), GuestError> {
        let mut agent = self.agent.clone();
        let answer = agent.resize(v1::ResizeRequest {
            processors: processors.into(),
            memory_pci_address: memory_device.unwrap_or_default().to_owned(),
        });
        call("use what the machine has now", deadline::RESIZE, answer).await?;
        Ok(())
    }

    /// What the sandbox and one container (`None`: all) use, with their open files if that is wanted. Numbers are the guest's
    /// word; ids and counts are checked.
    ///
    /// # Errors
    /// [`GuestError`]
    pub async fn stats(
        &self,
        container_id: Option<&str>,
        with_files: bool,
    ) -> Result<v1::StatsResponse, GuestError> {
        let operation = "read the statistics";
        let mut agent = self.agent.clone();
        let answer = agent.stats(v1::StatsRequest {
            container_id: container_id.unwrap_or_default().to_owned(),
            with_files,
        });
        answer::stats(operation, call(operation, deadline::STATS, answer).await?)
    }

    /// Asks the guest to end: the answer comes before the end, `Process::exited` tells of it.
    ///
    /// # Errors
    /// [`GuestError`]
    pub async fn shut_down(&self) -> Result<(), GuestError> {
        let mut agent = self.agent.clone();
        let answer = agent.shutdown(v1::ShutdownRequest {});
        call("shut down the guest", deadline::SHUTDOWN, answer).await?;
        Ok(())
    }

    /// What happens in the guest, from now on; nothing is connected yet.
    #[must_use]
    pub fn watch(&self) -> GuestWatch {
        GuestWatch {
            agent: self.agent.clone(),
            stream: None,
            pause: Duration::ZERO,
        }
    }
}

/// Follows the events of one guest over lost connections.
#[derive(Debug)]
pub struct GuestWatch {
    agent: AgentClient<Channel>,
    stream: Option<Events>,
    /// Before the next try to connect.
    pause: Duration,
}

#[derive(Debug)]
struct Events {
    stream: Streaming<v1::WatchEvent>,
    /// The snapshot has come.
    begun: bool,
}

impl GuestWatch {
    const OPERATION: &'static str = "watch the guest";

    /// What happened next; the first is a snapshot. Cancel-safe.
    ///
    /// # Errors
    /// [`GuestError`] when the connection is lost or the guest sends nonsense. The next call connects again, with growing
    /// pauses, and yields a snapshot first: call it until the Machine is known to have ended.
    pub async fn next(&mut self) -> Result<GuestEvent, GuestError> {
        let received = self.receive().await;
        match &received {
            Ok(_) => self.pause = Duration::ZERO,
            Err(_) => {
                self.stream = None;
                self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
            }
        }
        received
    }

    async fn receive(&mut self) -> Result<GuestEvent, GuestError> {
        if self.stream.is_none() {
            sleep(self.pause).await;
            let opened = self.agent.watch(v1::WatchRequest {});
            self.stream = Some(Events {
                stream: call(Self::OPERATION, deadline::OPEN_WATCH, opened).await?,
                begun: false,
            });
        }
        let Some(events) = &mut self.stream else {
            return Err(GuestError::invalid(Self::OPERATION, "no stream"));
        };
        let message = events.stream.message().await;
        let message =
            message.map_err(|status| GuestError::from_status(Self::OPERATION, status, Duration::ZERO))?;
        let message = message.ok_or_else(|| GuestError::Unreachable {
            operation: Self::OPERATION,
            source: Box::new(Status::unavailable("the guest closed the stream")),
        })?;
        let event = answer::event(Self::OPERATION, message)?;
        let begins = matches!(event, GuestEvent::Snapshot(_));
        if !events.begun && !begins {
            return Err(GuestError::invalid(Self::OPERATION, "events before a snapshot"));
        }
        events.begun = true;
        Ok(event)
    }
}

async fn call<T>(
    operation: &'static str,
    deadline: Duration,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, GuestError> {
    match timeout(deadline, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(GuestError::from_status(operation, status, deadline)),
        Err(_) => Err(GuestError::Timeout {
            operation,
            after: deadline,
        }),
    }
}

fn gone_is_fine<T>(result: Result<T, GuestError>) -> Result<(), GuestError> {
    match result {
        Err(error) if error.code() != Some(ErrorCode::NotFound) => Err(error),
        _ => Ok(()),
    }
}
