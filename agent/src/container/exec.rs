//! One more process in a running container.

use std::collections::hash_map::Entry;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use proto::agent::v1::{ErrorCode, ExecRequest, Exit};

use crate::container::process::Process;
use crate::container::stage::{self, PidNamespace, Place};
use crate::container::{Container, create, plan, registry};
use crate::error::Failure;
use crate::init::order::Order;
use crate::lock::lock;
use crate::pod::Pod;

impl Container {
    /// Starts it and returns its pid, when execve succeeded.
    ///
    /// # Errors
    /// `WrongState`, `AlreadyExists`, `InvalidArgument`, `UserNotFound`; `Exec` with execve's errno.
    pub(crate) async fn exec(&self, pod: &Pod, request: &ExecRequest) -> Result<u32, Failure> {
        registry::check_id("exec_id", &request.exec_id)?;
        lock(&self.state).check_running(&self.id)?;
        self.reserve_exec(&request.exec_id)?;
        let started = self.start_exec(pod, request).await;
        let mut execs = lock(&self.execs);
        match started {
            Ok(process) => {
                let pid = process.pid();
                execs.insert(request.exec_id.clone(), Some(process));
                Ok(pid)
            }
            Err(failure) => {
                execs.remove(&request.exec_id);
                Err(failure)
            }
        }
    }

    fn reserve_exec(&self, exec_id: &str) -> Result<(), Failure> {
        match lock(&self.execs).entry(exec_id.to_owned()) {
            Entry::Vacant(vacant) => {
                vacant.insert(None);
                Ok(())
            }
            Entry::Occupied(_) => {
                let text = format!("process {exec_id} exists in container {}", self.id);
                Err(Failure::new(ErrorCode::AlreadyExists, text))
            }
        }
    }

    async fn start_exec(&self, pod: &Pod, request: &ExecRequest) -> Result<Arc<Process>, Failure> {
        let wanted = request
            .process
            .as_ref()
            .ok_or_else(|| Failure::invalid("process: missing"))?;
        let order = plan::process(wanted, self.security.clone())?;
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
        let ended = ready.child.ended;
        pod.tasks.spawn(async move {
            let Ok(ended) = ended.await else { return };
            told.send_replace(Some(Exit {
                code: ended.code,
                signal: ended.signal,
                finished_at_ns: ended.at_ns,
                ..Exit::default()
            }));
        });
        Ok(Arc::new(process))
    }

    /// Forgets an exec'd process; kills it first if it still runs.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) async fn remove_exec(&self, exec_id: &str) -> Result<(), Failure> {
        if exec_id.is_empty() {
            return Err(Failure::invalid("exec_id: empty"));
        }
        let process = self.process(exec_id)?;
        end(&process).await?;
        lock(&self.execs).remove(exec_id);
        Ok(())
    }

    /// All of them, for the container's removal.
    pub(super) fn execs(&self) -> Vec<Arc<Process>> {
        lock(&self.execs).values().flatten().cloned().collect()
    }
}

/// A killed process that has not ended by then waits for a device that does not answer.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// Kills a process, waits for its end and lets go of its output.
///
/// # Errors
/// `System` when it does not end.
pub(super) async fn end(process: &Process) -> Result<(), Failure> {
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
