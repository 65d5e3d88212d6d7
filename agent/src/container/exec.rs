//! One more process in a running container.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::agent::v1::{ErrorCode, ExecRequest, Exit};
use tokio::sync::{oneshot, watch};

use crate::container::process::Process;
use crate::container::stage::{self, PidNamespace, Place};
use crate::container::{Container, create, plan, registry};
use crate::error::Failure;
use crate::init::order::Order;
use crate::lock::lock;
use crate::pod::Pod;
use crate::reaper::Ended;

impl Container {
    /// Starts it and returns its pid, when execve succeeded.
    ///
    /// # Errors
    /// `WrongState`, `AlreadyExists`, `InvalidArgument`, `UserNotFound`; `Exec` with execve's errno.
    pub(crate) async fn exec(&self, pod: &Pod, request: &ExecRequest) -> Result<u32, Failure> {
        registry::check_id("exec_id", &request.exec_id)?;
        lock(&self.state).check_running(&self.id)?;
        let start = self.start_exec(pod, request);
        self.execs.start(&self.id, &request.exec_id, start).await
    }

    async fn start_exec(&self, pod: &Pod, request: &ExecRequest) -> Result<Arc<Process>, Failure> {
        let wanted = request
            .process
            .as_ref()
            .ok_or_else(|| Failure::invalid("process: missing"))?;
        let mut order = plan::process(wanted, self.security.clone())?;
        order.id_map = pod.user_namespace().map(|namespace| namespace.map);
        let cgroup = self.cgroup.open()?;
        let place = Place {
            executable: pod.executable.as_fd(),
            cgroup: Some(cgroup.as_fd()),
            pid_namespace: PidNamespace::Of(self.init.pidfd()),
        };
        let pipes = create::pipes_unless(order.terminal.is_some(), wanted.stdin)?;
        let mut descriptors: Vec<BorrowedFd<'_>> = vec![self.init.pidfd()];
        descriptors.extend(pipes.iter().flat_map(|(_, theirs)| theirs.borrow()));
        let order = Order::Exec(Box::new(order));
        let ready = match stage::launch(&pod.reaper, &place, &order, &descriptors).await {
            // The container has divided its cgroup (systemd does), and the kernel wants processes in the leaves only.
            Err(failure) if failure.errno() == libc::EBUSY => {
                let cgroup = self.cgroup.open_of(self.init.pid())?;
                let place = Place {
                    cgroup: Some(cgroup.as_fd()),
                    ..place
                };
                stage::launch(&pod.reaper, &place, &order, &descriptors).await?
            }
            launched => launched?,
        };
        let (stdio, outputs) = create::stdio(pipes.map(|(ours, _)| ours), ready.terminal, wanted.stdin)?;
        ready.gate.executed().await?;
        let stdio = Arc::new(stdio);
        let (process, told) = Process::new(ready.child.pid, ready.child.pidfd, stdio.clone(), ready.user);
        pod.tasks.spawn(async move { stdio.pump(outputs).await });
        pod.tasks.spawn(await_end(ready.child.ended, told));
        Ok(Arc::new(process))
    }

    /// Forgets an exec'd process; kills it first if it still runs.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) async fn remove_exec(&self, exec_id: &str) -> Result<(), Failure> {
        self.execs.remove(&self.id, exec_id).await
    }
}

/// The exec'd processes of one container by exec id; `None` while one is being started.
#[derive(Debug, Default)]
pub(crate) struct Execs(Mutex<HashMap<String, Option<Arc<Process>>>>);

impl Execs {
    /// Takes the id, starts the process, and keeps it if that succeeds. Returns its pid.
    ///
    /// # Errors
    /// `AlreadyExists`, and as `start`.
    pub(crate) async fn start(
        &self,
        container_id: &str,
        exec_id: &str,
        start: impl Future<Output = Result<Arc<Process>, Failure>>,
    ) -> Result<u32, Failure> {
        match lock(&self.0).entry(exec_id.to_owned()) {
            Entry::Vacant(vacant) => {
                vacant.insert(None);
            }
            Entry::Occupied(_) => {
                let text = format!("process {exec_id} exists in container {container_id}");
                return Err(Failure::new(ErrorCode::AlreadyExists, text));
            }
        }
        let started = start.await;
        let mut execs = lock(&self.0);
        match started {
            Ok(process) => {
                let pid = process.pid();
                execs.insert(exec_id.to_owned(), Some(process));
                Ok(pid)
            }
            Err(failure) => {
                execs.remove(exec_id);
                Err(failure)
            }
        }
    }

    /// # Errors
    /// `NotFound`, also while it is being started.
    pub(crate) fn get(&self, container_id: &str, exec_id: &str) -> Result<Arc<Process>, Failure> {
        lock(&self.0).get(exec_id).cloned().flatten().ok_or_else(|| {
            Failure::new(
                ErrorCode::NotFound,
                format!("no process {exec_id:?} in container {container_id}"),
            )
        })
    }

    /// Forgets one; kills it first if it still runs.
    ///
    /// # Errors
    /// `InvalidArgument`, `NotFound`, `System` when it does not end.
    pub(crate) async fn remove(&self, container_id: &str, exec_id: &str) -> Result<(), Failure> {
        if exec_id.is_empty() {
            return Err(Failure::invalid("exec_id: empty"));
        }
        end(&*self.get(container_id, exec_id)?).await?;
        lock(&self.0).remove(exec_id);
        Ok(())
    }

    /// All of them, for the container's removal.
    pub(crate) fn all(&self) -> Vec<Arc<Process>> {
        lock(&self.0).values().flatten().cloned().collect()
    }
}

/// Tells an exec'd process's end to those who wait for it.
pub(crate) async fn await_end(ended: oneshot::Receiver<Ended>, told: watch::Sender<Option<Exit>>) {
    let Ok(ended) = ended.await else { return };
    told.send_replace(Some(Exit {
        code: ended.code,
        signal: ended.signal,
        finished_at_ns: ended.at_ns,
        ..Exit::default()
    }));
}

/// A killed process that has not ended by then waits for a device that does not answer.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// Kills a process, waits for its end and lets go of its output.
///
/// # Errors
/// `System` when it does not end.
pub(crate) async fn end(process: &Process) -> Result<(), Failure> {
    if !process.has_ended() {
        // It may have ended meanwhile.
        process.signal(libc::SIGKILL.unsigned_abs()).ok();
    }
    let ended = tokio::time::timeout(ENDS_WITHIN, process.wait()).await;
    let ended = ended.unwrap_or_else(|_| {
        let text = format!(
            "process {} was killed and does not end within {ENDS_WITHIN:?}",
            process.pid()
        );
        Err(Failure::new(ErrorCode::System, text))
    });
    process.stdio.close();
    ended.map(drop)
}
