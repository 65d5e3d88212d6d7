//! cgroup v2: `/sys/fs/cgroup/pod` for the pod, a child of it per container. Files are written and read as the kernel
//! documents them in cgroup-v2.rst; there is no manager, the agent is the only writer.
//!
//! `limits` turns a request into file contents (pure), `device_filter` into a program, `stats` reads numbers back.

pub(crate) mod device_filter;
pub(crate) mod limits;
pub(crate) mod stats;

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::agent::v1::{ErrorCode, Resources};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Context as _, Failure};
use crate::sys;

/// Name of the pod's cgroup below the root.
const POD: &str = "pod";
/// How long the kernel may take to end killed processes before their cgroup counts as stuck.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);
const EMPTY_POLL: Duration = Duration::from_millis(2);

/// The pod's cgroup.
#[derive(Debug)]
pub(crate) struct PodCgroup {
    path: PathBuf,
}

/// A container's cgroup.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl PodCgroup {
    /// Makes it, and hands all controllers that there are down to it and to its children.
    ///
    /// # Errors
    /// `Cgroup` when the file system refuses.
    pub(crate) fn create(root: &Path) -> Result<Self, Failure> {
        let path = root.join(POD);
        let make = || -> io::Result<()> {
            delegate_controllers(root)?;
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
            delegate_controllers(&path)
        };
        make().context(ErrorCode::Cgroup, || format!("create cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the cgroup of a container, empty and without limits.
    ///
    /// # Errors
    /// `Cgroup` when the file system refuses.
    pub(crate) fn container(&self, id: &str) -> Result<Cgroup, Failure> {
        let path = self.path.join(id);
        fs::create_dir(&path).context(ErrorCode::Cgroup, || format!("create cgroup {}", path.display()))?;
        Ok(Cgroup { path })
    }
}

fn delegate_controllers(cgroup: &Path) -> io::Result<()> {
    let available = fs::read_to_string(cgroup.join("cgroup.controllers"))?;
    for controller in available.split_whitespace() {
        // One by one: a controller that cannot be handed down must not keep the others back.
        if let Err(error) = write(&cgroup.join("cgroup.subtree_control"), &format!("+{controller}")) {
            tracing::warn!(controller, %error, "controller is not available to containers");
        }
    }
    Ok(())
}

impl Cgroup {
    /// One that [`PodCgroup::container`] made.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// For clone3(2), which places a process in it.
    ///
    /// # Errors
    /// `Cgroup`.
    pub(crate) fn open(&self) -> Result<OwnedFd, Failure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.path, flags, Mode::empty()).context(ErrorCode::Cgroup, || {
            format!("open cgroup {}", self.path.display())
        })
    }

    /// The cgroup, this one or below it, of process `pid`, which is in the agent's PID namespace.
    ///
    /// # Errors
    /// `Cgroup`.
    pub(crate) fn open_of(&self, pid: u32) -> Result<OwnedFd, Failure> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .context(ErrorCode::Cgroup, || format!("find the cgroup of process {pid}"))?;
        let below = path_below(&text, &self.path).unwrap_or_default();
        Self::at(self.path.join(below)).open()
    }

    /// Writes the limits that `resources` asks for.
    ///
    /// # Errors
    /// `InvalidArgument` naming the field, `Cgroup` naming the file.
    pub(crate) fn limit(&self, resources: &Resources) -> Result<(), Failure> {
        for limits::Setting { file, value } in limits::settings(resources)? {
            write(&self.path.join(&file), &value)
                .context(ErrorCode::Cgroup, || format!("write {value:?} to {file}"))?;
        }
        Ok(())
    }

    /// Lets only the devices of `filter` be opened.
    ///
    /// # Errors
    /// `Cgroup` when the kernel does not take the program.
    pub(crate) fn filter_devices(&self, program: &[sys::bpf::Instruction]) -> Result<(), Failure> {
        sys::bpf::attach_device_program(self.open()?, program).context(ErrorCode::Cgroup, || {
            format!("attach a device filter to {}", self.path.display())
        })
    }

    /// Kills every process in it.
    ///
    /// # Errors
    /// `Cgroup`.
    pub(crate) fn kill(&self) -> Result<(), Failure> {
        write(&self.path.join("cgroup.kill"), "1").context(ErrorCode::Cgroup, || {
            format!("kill cgroup {}", self.path.display())
        })
    }

    /// Sends signal `number` to every process in it; SIGKILL also to those that are being made.
    ///
    /// # Errors
    /// `Cgroup`, `System`.
    pub(crate) fn signal(&self, number: i32) -> Result<(), Failure> {
        if number == libc::SIGKILL {
            return self.kill();
        }
        for pid in self.processes()? {
            // Through a pidfd, and only if it is still in the cgroup then: numbers are used again.
            let Some(pid) = Pid::from_raw(pid) else {
                continue;
            };
            let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            if !self.processes()?.contains(&pid.as_raw_nonzero().get()) {
                continue;
            }
            match sys::signal::send(&pidfd, number) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    return Err(error)
                        .context(ErrorCode::System, || format!("send signal {number} to {pid:?}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Process ids in it and below, in the agent's PID namespace.
    ///
    /// # Errors
    /// `Cgroup`.
    pub(crate) fn processes(&self) -> Result<Vec<i32>, Failure> {
        let mut found = Vec::new();
        collect_processes(&self.path, &mut found).context(ErrorCode::Cgroup, || {
            format!("list processes of {}", self.path.display())
        })?;
        Ok(found)
    }

    /// How often the kernel killed a process in it for memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        stats::value(&events, "oom_kill")
    }

    /// Kills what is left, waits until nothing is, and removes it with what the container made below it.
    ///
    /// # Errors
    /// `Cgroup` when a process does not end within [`EMPTY_WITHIN`].
    pub(crate) async fn remove(&self) -> Result<(), Failure> {
        if !self.path.exists() {
            return Ok(());
        }
        self.kill()?;
        let deadline = tokio::time::Instant::now() + EMPTY_WITHIN;
        loop {
            match remove_tree(&self.path) {
                Err(error)
                    if error.raw_os_error() == Some(libc::EBUSY)
                        && tokio::time::Instant::now() < deadline => {}
                removed => {
                    return removed.context(ErrorCode::Cgroup, || {
                        format!("remove cgroup {}", self.path.display())
                    });
                }
            }
            tokio::time::sleep(EMPTY_POLL).await;
        }
    }
}

/// What follows `cgroup` in the v2 line of proc_pid_cgroup(5); both end in the pod's and the container's names, whatever
/// the hierarchy is mounted at.
fn path_below<'a>(proc_pid_cgroup: &'a str, cgroup: &Path) -> Option<&'a str> {
    let path = proc_pid_cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::"))?;
    let own = format!("/{POD}/{}", cgroup.file_name()?.to_str()?);
    let (_, below) = path.split_once(&own)?;
    match below.strip_prefix('/') {
        Some(below) if below.split('/').all(|name| !matches!(name, "" | "." | "..")) => Some(below),
        _ => None,
    }
}

/// cgroups cannot be removed with children, and their files cannot be removed at all.
fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

fn collect_processes(path: &Path, found: &mut Vec<i32>) -> io::Result<()> {
    let processes = fs::read_to_string(path.join("cgroup.procs"))?;
    found.extend(processes.lines().filter_map(|pid| pid.parse::<i32>().ok()));
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_processes(&entry.path(), found)?;
        }
    }
    Ok(())
}

/// One write(2), as these files want it; never creates one.
fn write(file: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(file)?
        .write_all(value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_in_a_cgroup_below_is_found() {
        let cgroup = Path::new("/sys/fs/cgroup/pod/c1");
        assert_eq!(
            path_below("1:name=x:/y\n0::/pod/c1/init.scope\n", cgroup),
            Some("init.scope")
        );
        assert_eq!(path_below("0::/test/pod/c1/a/b\n", cgroup), Some("a/b"));
        for elsewhere in [
            "0::/pod/c1\n",
            "0::/pod/c12/x\n",
            "0::/pod/c1/../c2\n",
            "0::/\n",
            "",
        ] {
            assert_eq!(path_below(elsewhere, cgroup), None, "{elsewhere:?}");
        }
    }
}
