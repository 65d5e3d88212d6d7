//! One more process in a running container of a host pod.

use std::ffi::OsStr;
use std::fs;
use std::sync::Arc;

use proto::agent::v1::{ErrorCode, ExecRequest};

use crate::container::exec::await_end;
use crate::container::plan;
use crate::container::process::Process;
use crate::container::registry::{Member as _, check_id};
use crate::error::{Context as _, Failure};
use crate::host::bundle;
use crate::host::container::{HostContainer, resolve};
use crate::host::pod::HostPod;
use crate::host::runtime::{Start, Started};
use crate::init::order::Security;
use crate::lock::lock;

impl HostContainer {
    /// Starts it and returns its pid.
    ///
    /// # Errors
    /// `WrongState`, `AlreadyExists`, `InvalidArgument`, `UserNotFound`; `Exec` with execve's errno.
    pub(super) async fn exec(&self, pod: &HostPod, request: &ExecRequest) -> Result<u32, Failure> {
        check_id("exec_id", &request.exec_id)?;
        lock(&self.state).check_running(self.id())?;
        let start = self.start_exec(pod, request);
        self.execs.start(self.id(), &request.exec_id, start).await
    }

    async fn start_exec(&self, pod: &HostPod, request: &ExecRequest) -> Result<Arc<Process>, Failure> {
        let wanted = request
            .process
            .as_ref()
            .ok_or_else(|| Failure::invalid("process: missing"))?;
        let order = plan::process(wanted, Security::default())?;
        let user = resolve(&self.places.rootfs, &order.user)?;
        let process = bundle::process(wanted, &self.security, &self.labels, &user)?;
        let files = self.places.bundle.join(format!("exec-{}", request.exec_id));
        let file = files.join("process.json");
        fs::create_dir_all(&files)
            .and_then(|()| fs::write(&file, serde_json::to_vec(&process)?))
            .context(ErrorCode::System, || {
                "write the process's configuration".to_owned()
            })?;
        let start = Start {
            verb: "exec",
            arguments: &[
                OsStr::new("--detach"),
                OsStr::new("--process"),
                file.as_os_str(),
                OsStr::new(self.id()),
            ],
            files: &files,
            terminal: order.terminal,
            stdin: wanted.stdin,
        };
        let started = pod.runtime.start(&pod.reaper, start).await;
        // Its pid is known: the files have served.
        if let Err(error) = fs::remove_dir_all(&files) {
            tracing::warn!(container = self.id(), %error, "files of an exec are left until the container's end");
        }
        let Started {
            child,
            stdio,
            outputs,
        } = started?;
        let stdio = Arc::new(stdio);
        let (process, told) = Process::new(child.pid, child.pidfd, stdio.clone(), user.credentials);
        pod.tasks.spawn(async move { stdio.pump(outputs).await });
        pod.tasks.spawn(await_end(child.ended, told));
        Ok(Arc::new(process))
    }
}
