//! The cgroup (v2 only) of one VMM on the host: what the whole Machine may use, and whether the host killed it for memory.
//!
//! Limits of single containers are set by the agent inside the guest, not here. Files and semantics: the kernel's
//! `Documentation/admin-guide/cgroup-v2.rst`.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Controllers that limits or statistics of a Machine need.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];
/// The kernel's own, `cpu.max`.
const DEFAULT_PERIOD_US: u64 = 100_000;
/// Between two tries to remove a cgroup whose processes are still on their way out.
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

/// What a VMM may use of the host. `None` leaves the kernel's default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CgroupLimits {
    /// `cpu.max`: microseconds of processor time per period of [`Self::cpu_period_us`].
    pub cpu_quota_us: Option<u64>,
    /// Period of the quota in microseconds, 1000 to 1000000.
    pub cpu_period_us: Option<u64>,
    /// `cpu.weight`, 1 to 10000.
    pub cpu_weight: Option<u64>,
    /// `memory.max` in bytes: the guest's memory and what the VMM needs itself.
    pub memory_max_bytes: Option<u64>,
}

/// A cgroup directory of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineCgroup {
    directory: PathBuf,
}

/// Why a cgroup operation failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The parent as CRI names it is no absolute path without "..".
    #[error("cgroup_parent {parent:?} is not an absolute path without \"..\"")]
    Parent {
        /// What was given.
        parent: String,
    },
    /// The file system at the root is not cgroup v2.
    #[error("{} is not cgroup v2 (mount the unified hierarchy: systemd.unified_cgroup_hierarchy=1)", root.display())]
    NotV2 {
        /// Where it was looked for.
        root: PathBuf,
    },
    /// The kernel refused.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was done.
        operation: &'static str,
        /// Which file or directory.
        path: PathBuf,
        /// The operating system's answer; for writes also the value.
        source: io::Error,
    },
}

impl CgroupLimits {
    /// cgroup v1 shares (2 to 262144, as Kubernetes still counts) as a weight of v2, by the line that maps one range onto
    /// the other.
    #[must_use]
    pub fn weight_from_shares(shares: u64) -> u64 {
        let shares = shares.clamp(2, 262_144);
        1 + (shares - 2) * 9999 / 262_142
    }

    /// The other way round; the nearest shares, since there are fewer weights.
    #[must_use]
    pub fn shares_from_weight(weight: u64) -> i64 {
        let shares = 2 + (weight.clamp(1, 10_000) - 1) * 262_142 / 9999;
        i64::try_from(shares).unwrap_or(i64::MAX)
    }
}

impl MachineCgroup {
    /// Whether `root` (`/sys/fs/cgroup`) is a cgroup v2 file system.
    #[must_use]
    pub fn is_v2(root: &Path) -> bool {
        // CGROUP2_SUPER_MAGIC, linux/magic.h
        rustix::fs::statfs(root).is_ok_and(|stat| stat.f_type == 0x6367_7270)
    }

    /// Whether cgroups below `root` can have a `memory.max`: not where cgroup v1 has the controller.
    #[must_use]
    pub fn limits_memory(root: &Path) -> bool {
        let available = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        available.split_ascii_whitespace().any(|name| name == "memory")
    }

    /// The cgroup `name` below `parent` (as `cgroup_parent` of CRI, "/kubepods/pod1") of the hierarchy at `root`; nothing
    /// is made yet.
    ///
    /// # Errors
    /// [`CgroupError::Parent`]
    pub fn at(root: &Path, parent: &str, name: &str) -> Result<Self, CgroupError> {
        let absolute = Path::new(parent);
        let plain = absolute.components().all(|part| {
            matches!(
                part,
                std::path::Component::RootDir | std::path::Component::Normal(_)
            )
        });
        match absolute.strip_prefix("/") {
            Ok(relative) if plain && !parent.contains('\0') => Ok(Self {
                directory: root.join(relative).join(name),
            }),
            _ => Err(CgroupError::Parent {
                parent: parent.to_owned(),
            }),
        }
    }

    /// Its directory, for `LaunchSpec::cgroup`.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the cgroup and its ancestors below `root`, with the controllers that limits need, and sets the limits. Doing it
    /// again is fine.
    ///
    /// # Errors
    /// [`CgroupError`]; limits that cannot be set are an error, never ignored.
    pub fn create(&self, root: &Path, limits: &CgroupLimits) -> Result<(), CgroupError> {
        if !Self::is_v2(root) {
            return Err(CgroupError::NotV2 {
                root: root.to_owned(),
            });
        }
        self.make(root)?;
        self.limit(limits)
    }

    fn make(&self, root: &Path) -> Result<(), CgroupError> {
        let mut ancestors: Vec<&Path> = self.directory.ancestors().skip(1).collect();
        ancestors.retain(|ancestor| ancestor.starts_with(root));
        for ancestor in ancestors.into_iter().rev() {
            make_directory(ancestor)?;
            delegate_controllers(ancestor);
        }
        make_directory(&self.directory)
    }

    /// Sets limits; those that are `None` stay as they are.
    ///
    /// # Errors
    /// [`CgroupError::Io`] naming the file and the value.
    pub fn limit(&self, limits: &CgroupLimits) -> Result<(), CgroupError> {
        if limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some() {
            let quota = limits
                .cpu_quota_us
                .map_or_else(|| "max".to_owned(), |quota| quota.to_string());
            let period = limits.cpu_period_us.unwrap_or(DEFAULT_PERIOD_US);
            self.write("cpu.max", &format!("{quota} {period}"))?;
        }
        if let Some(weight) = limits.cpu_weight {
            self.write("cpu.weight", &weight.to_string())?;
        }
        if let Some(bytes) = limits.memory_max_bytes {
            self.write("memory.max", &bytes.to_string())?;
        }
        Ok(())
    }

    /// The quota (`None`: unlimited) and its period, microseconds. Without the controller there is no limit.
    ///
    /// # Errors
    /// [`CgroupError::Io`]
    pub fn cpu_max(&self) -> Result<(Option<u64>, u64), CgroupError> {
        let path = self.directory.join("cpu.max");
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read.map_err(|source| CgroupError::Io {
                operation: "read",
                path,
                source,
            })?,
        };
        let mut words = text.split_ascii_whitespace().map(|word| word.parse().ok());
        let quota = words.next().flatten();
        Ok((quota, words.next().flatten().unwrap_or(DEFAULT_PERIOD_US)))
    }

    fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.directory.join(file);
        // Not created: a missing file means that the controller is not there.
        let written = std::fs::File::options()
            .write(true)
            .open(&path)
            .and_then(|mut open| {
                use io::Write as _;
                open.write_all(value.as_bytes())
            });
        written.map_err(|error| CgroupError::Io {
            operation: "set",
            source: io::Error::new(error.kind(), format!("write {value:?}: {error}")),
            path,
        })
    }

    /// Kills every process in it (`cgroup.kill`, Linux 5.14). A cgroup that does not exist is fine.
    ///
    /// # Errors
    /// [`CgroupError::Io`]
    pub fn kill(&self) -> Result<(), CgroupError> {
        match self.write("cgroup.kill", "1") {
            Err(CgroupError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Removes the cgroup and those below it; waits up to `patience` for killed processes to leave it. A cgroup that does not exist is fine.
    /// Blocks: call it where blocking is allowed.
    ///
    /// # Errors
    /// [`CgroupError::Io`] when processes stay.
    pub fn remove(&self, patience: Duration) -> Result<(), CgroupError> {
        let until = Instant::now() + patience;
        loop {
            match remove_tree(&self.directory) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                // rmdir(2) of a cgroup: EBUSY while processes are in it.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                    std::thread::sleep(REMOVE_PAUSE);
                }
                Err(source) => {
                    return Err(CgroupError::Io {
                        operation: "remove",
                        path: self.directory.clone(),
                        source,
                    });
                }
            }
        }
    }

    /// How many of its processes the host's kernel has killed for memory; 0 when that cannot be read.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        std::fs::read_to_string(self.directory.join("memory.events"))
            .ok()
            .and_then(|events| oom_kills(&events))
            .unwrap_or(0)
    }
}

/// A cgroup with children cannot be removed, and its files go with it.
fn remove_tree(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    std::fs::remove_dir(directory)
}

fn oom_kills(events: &str) -> Option<u64> {
    let line = events.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
    line.trim().parse().ok()
}

fn make_directory(path: &Path) -> Result<(), CgroupError> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(CgroupError::Io {
            operation: "create",
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

/// Hands our controllers on to the children of `parent`, those that it has itself and one by one, so that one refusal does
/// not take the others along. A refusal is no error here: only the limit that then cannot be set is, and names its file.
fn delegate_controllers(parent: &Path) {
    let available = std::fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
    let control = parent.join("cgroup.subtree_control");
    let enabled = std::fs::read_to_string(&control).unwrap_or_default();
    let has = |list: &str, wanted: &str| list.split_ascii_whitespace().any(|name| name == wanted);
    for controller in CONTROLLERS {
        if has(&available, controller)
            && !has(&enabled, controller)
            && let Err(error) = std::fs::write(&control, format!("+{controller}"))
        {
            tracing::debug!(control = %control.display(), controller, %error, "controller not handed on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plain directory with the files that a cgroup would have: enough for what is written where.
    fn lookalike() -> (tempfile::TempDir, MachineCgroup) {
        let root = tempfile::tempdir().unwrap();
        fs_err::write(
            root.path().join("cgroup.controllers"),
            "cpuset cpu io memory pids\n",
        )
        .unwrap();
        fs_err::write(root.path().join("cgroup.subtree_control"), "cpu\n").unwrap();
        let cgroup = MachineCgroup::at(root.path(), "/kubepods/pod1", "clearpod-a").unwrap();
        (root, cgroup)
    }

    #[test]
    fn a_parent_that_is_not_below_the_root_is_refused() {
        for parent in ["", "kubepods", "/../etc", "/a/../../b", "/a\0b"] {
            let result = MachineCgroup::at(Path::new("/sys/fs/cgroup"), parent, "x");
            assert!(matches!(result, Err(CgroupError::Parent { .. })), "{parent:?}");
        }
        let cgroup = MachineCgroup::at(Path::new("/sys/fs/cgroup"), "/", "x").unwrap();
        assert_eq!(cgroup.directory(), Path::new("/sys/fs/cgroup/x"));
    }

    #[test]
    fn a_hierarchy_that_is_not_v2_is_refused() {
        let (root, cgroup) = lookalike();
        let error = cgroup.create(root.path(), &CgroupLimits::default()).unwrap_err();
        assert!(matches!(error, CgroupError::NotV2 { .. }), "{error}");
    }

    #[test]
    fn ancestors_are_made_and_hand_their_controllers_on() {
        let (root, cgroup) = lookalike();
        cgroup.make(root.path()).unwrap();
        cgroup.make(root.path()).unwrap();
        assert!(cgroup.directory().is_dir());
        // A real file would hold all of them; a plain one keeps the last write.
        let control = fs_err::read_to_string(root.path().join("cgroup.subtree_control")).unwrap();
        assert_eq!(control, "+io");
    }

    #[test]
    fn limits_are_written_in_the_kernels_format_and_a_missing_controller_is_named() {
        let (root, cgroup) = lookalike();
        cgroup.make(root.path()).unwrap();
        for file in ["cpu.max", "cpu.weight"] {
            fs_err::write(cgroup.directory().join(file), "").unwrap();
        }
        let limits = CgroupLimits {
            cpu_quota_us: Some(50_000),
            cpu_weight: Some(39),
            memory_max_bytes: Some(1 << 20),
            ..CgroupLimits::default()
        };
        let error = cgroup.limit(&limits).unwrap_err();
        assert!(error.to_string().ends_with("memory.max"), "{error}");
        let read = |file: &str| fs_err::read_to_string(cgroup.directory().join(file)).unwrap();
        assert_eq!(
            (read("cpu.max").as_str(), read("cpu.weight").as_str()),
            ("50000 100000", "39")
        );
    }

    #[test]
    fn shares_map_to_the_ends_of_the_weights() {
        let weights = [0, 2, 1024, 262_144, u64::MAX].map(CgroupLimits::weight_from_shares);
        assert_eq!(weights, [1, 1, 39, 10_000, 10_000]);
        let shares = [0, 1, 39, 10_000, u64::MAX].map(CgroupLimits::shares_from_weight);
        assert_eq!(shares, [2, 2, 998, 262_144, 262_144]);
    }

    #[test]
    fn a_quota_is_read_back() {
        let (root, cgroup) = lookalike();
        assert_eq!(cgroup.cpu_max().unwrap(), (None, 100_000));
        cgroup.make(root.path()).unwrap();
        for (text, expected) in [
            ("max 100000\n", (None, 100_000)),
            ("5000 20000\n", (Some(5000), 20_000)),
        ] {
            fs_err::write(cgroup.directory().join("cpu.max"), text).unwrap();
            assert_eq!(cgroup.cpu_max().unwrap(), expected);
        }
    }

    #[test]
    fn only_the_kill_counter_counts() {
        let events = "low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 1\n";
        assert_eq!(oom_kills(events), Some(3));
        assert_eq!(oom_kills("oom_kill x\n"), None);
    }

    #[test]
    fn killing_and_removing_what_does_not_exist_is_fine() {
        let (_root, cgroup) = lookalike();
        cgroup.kill().unwrap();
        cgroup.remove(Duration::ZERO).unwrap();
        assert_eq!(cgroup.oom_kills(), 0);
    }
}
