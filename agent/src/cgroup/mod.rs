//! cgroup v2: `/sys/fs/cgroup/pod` for the pod, a child of it per container. Files are written and read as the kernel
//! documents them in cgroup-v2.rst; there is no manager, the agent is the only writer.
//!
//! `limits` turns a request into file contents (pure), `device_filter` into a program; `actual` reads limits back, `stats`
//! numbers, both through `files`.

mod actual;
pub(crate) mod device_filter;
pub(crate) mod files;
pub(crate) mod limits;
pub(crate) mod stats;

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::agent::v1::{ErrorCode, Resources};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Context as _, Failure};
use crate::sys;

/// Name of the pod's cgroup below the root.
const POD: &str = "pod";
const SWAP_MAX: &str = "memory.swap.max";
/// How long the kernel may take to end killed processes before their cgroup counts as stuck.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);
/// Where the kernel lists what a delegated cgroup's owner owns.
const DELEGATED: &str = "/sys/kernel/cgroup/delegate";
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
        for limits::Setting { file, value } in self.settings(resources)? {
            write(&self.path.join(&file), &value)
                .context(ErrorCode::Cgroup, || format!("write {value:?} to {file}"))?;
        }
        Ok(())
    }

    /// A kernel without swap has no file to limit it, and keeps every limit of it.
    fn settings(&self, resources: &Resources) -> Result<Vec<limits::Setting>, Failure> {
        let mut settings = limits::settings(resources)?;
        if !self.path.join(SWAP_MAX).exists() {
            settings.retain(|setting| setting.file != SWAP_MAX);
        }
        Ok(settings)
    }

    /// The limits that it has; of `unified` the files that `wanted` names.
    pub(crate) fn actual(&self, wanted: &Resources) -> Resources {
        actual::read(&self.path, wanted)
    }

    /// Replaces limits while processes run under them: all that `resources` names, or none.
    ///
    /// # Errors
    /// `InvalidArgument` naming the field, also for less memory than is in use; `Cgroup` naming the file.
    pub(crate) fn relimit(&self, resources: &Resources) -> Result<(), Failure> {
        let settings = self.settings(resources)?;
        self.refuse_less_than_is_used(resources.memory_limit_bytes)?;
        let mut before = Vec::new();
        for limits::Setting { file, value } in settings {
            let path = self.path.join(&file);
            let old = files::text(&path).trim().to_owned();
            if let Err(error) = write(&path, &value) {
                self.restore(before);
                return Err(error).context(ErrorCode::Cgroup, || format!("write {value:?} to {file}"));
            }
            before.push(limits::Setting { file, value: old });
        }
        Ok(())
    }

    fn restore(&self, before: Vec<limits::Setting>) {
        for limits::Setting { file, value } in before.into_iter().rev() {
            if let Err(error) = write(&self.path.join(&file), &value) {
                tracing::warn!(cgroup = %self.path.display(), file, value, %error, "limit stays as it was changed");
            }
        }
    }

    /// The kernel would take such a limit and then kill for it. The page cache does not count: it is given back first.
    fn refuse_less_than_is_used(&self, limit: i64) -> Result<(), Failure> {
        let Ok(limit @ 1..) = u64::try_from(limit) else {
            return Ok(());
        };
        let stat = files::text(&self.path.join("memory.stat"));
        let cache = stats::value(&stat, "active_file").saturating_add(stats::value(&stat, "inactive_file"));
        let used = stats::single(&files::text(&self.path.join("memory.current"))).saturating_sub(cache);
        if limit < used {
            return Err(Failure::invalid(format!(
                "resources.memory_limit_bytes: {limit} is less than the {used} in use"
            )));
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

    /// Hands it to an owner who may divide it: the files that the kernel names for that, cgroup-v2.rst, "Delegation".
    ///
    /// # Errors
    /// `Cgroup`.
    pub(crate) fn delegate(&self, uid: u32, gid: u32) -> Result<(), Failure> {
        let named = files::text(DELEGATED.as_ref());
        let files = named.split_whitespace().map(|name| self.path.join(name));
        for path in [self.path.clone()].into_iter().chain(files) {
            match chown(&path, Some(uid), Some(gid)) {
                // Of a controller that is not on.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                given => given.context(ErrorCode::Cgroup, || format!("give {} to {uid}", path.display()))?,
            }
        }
        Ok(())
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
        processes_below(&self.path, usize::MAX).context(ErrorCode::Cgroup, || {
            format!("list processes of {}", self.path.display())
        })
    }

    /// How often the kernel killed a process in it for memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        stats::value(&files::text(&self.path.join("memory.events")), "oom_kill")
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

/// Process ids in the first `most` cgroups at and below `path`. No recursion: the container decides how deep its own are.
pub(crate) fn processes_below(path: &Path, most: usize) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    let mut pending = vec![path.to_owned()];
    let mut visited = 0;
    while let Some(cgroup) = pending.pop() {
        visited += 1;
        let processes = match fs::read_to_string(cgroup.join("cgroup.procs")) {
            // Of those below, the container may have removed one since it was listed.
            Err(_) if visited > 1 => continue,
            processes => processes?,
        };
        found.extend(processes.lines().filter_map(|pid| pid.parse::<i32>().ok()));
        let Ok(entries) = fs::read_dir(&cgroup) else {
            continue;
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() && visited + pending.len() < most {
                pending.push(entry.path());
            }
        }
    }
    Ok(found)
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

    /// A plain directory with files that a cgroup would have.
    fn lookalike(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroup) {
        let directory = tempfile::tempdir().unwrap();
        for (file, text) in files {
            fs::write(directory.path().join(file), text).unwrap();
        }
        let cgroup = Cgroup::at(directory.path().to_owned());
        (directory, cgroup)
    }

    #[test]
    fn limits_are_replaced_together_or_not_at_all() {
        let (directory, cgroup) = lookalike(&[("cpu.max", "max 100000\n"), ("memory.max", "max\n")]);
        let read = |file: &str| fs::read_to_string(directory.path().join(file)).unwrap();
        let mut wanted = Resources {
            cpu_quota_us: 50_000,
            memory_limit_bytes: 1 << 20,
            pids_limit: 5,
            ..Resources::default()
        };
        let failure = cgroup.relimit(&wanted).unwrap_err();
        assert!(failure.to_string().contains("pids.max"), "{failure}");
        // A real file forgets what was written before; a plain one keeps its end.
        assert!(read("cpu.max").starts_with("max 100000"));
        assert!(read("memory.max").starts_with("max"));
        wanted.pids_limit = 0;
        cgroup.relimit(&wanted).unwrap();
        assert!(read("memory.max").starts_with("1048576"));
        assert_eq!(cgroup.actual(&wanted).cpu_quota_us, 50_000);
    }

    #[test]
    fn a_limit_below_what_is_used_is_refused_and_the_page_cache_is_no_use() {
        let (_directory, cgroup) = lookalike(&[
            ("memory.current", "5000\n"),
            ("memory.max", ""),
            ("memory.stat", "active_file 1000\ninactive_file 1000\n"),
        ]);
        let limit = |memory_limit_bytes| {
            cgroup.relimit(&Resources {
                memory_limit_bytes,
                ..Resources::default()
            })
        };
        let failure = limit(2999).unwrap_err();
        assert!(
            failure.to_string().starts_with("resources.memory_limit_bytes"),
            "{failure}"
        );
        limit(3000).unwrap();
        limit(-1).unwrap();
    }

    #[test]
    fn processes_are_found_below_and_only_in_so_many_cgroups() {
        let (directory, cgroup) = lookalike(&[("cgroup.procs", "1\n2\n")]);
        let below = directory.path().join("below");
        fs::create_dir(&below).unwrap();
        fs::write(below.join("cgroup.procs"), "3\n").unwrap();
        assert_eq!(cgroup.processes().unwrap(), [1, 2, 3]);
        assert_eq!(processes_below(directory.path(), 1).unwrap(), [1, 2]);
    }

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
