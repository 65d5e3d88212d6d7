//! Open files of a container's processes, proc_pid_fd(5).

use std::fs;
use std::path::Path;

use proto::agent::v1::FileStats;

use crate::cgroup::files::text;
use crate::cgroup::processes_below;

/// Looked at for one container, which decides how many of each there are; what is beyond does not count.
const MAX_CGROUPS: usize = 64;
const MAX_PROCESSES: usize = 512;
const MAX_DESCRIPTORS: u64 = 8192;

/// Of the processes of the cgroup at `path`, whose init process is `init`.
pub(super) fn open(path: &Path, init: u32, proc: &Path) -> FileStats {
    let mut stats = FileStats {
        open_files_soft_limit: soft_limit(&text(&proc.join(init.to_string()).join("limits"))),
        ..FileStats::default()
    };
    let processes = processes_below(path, MAX_CGROUPS).unwrap_or_default();
    for pid in processes.into_iter().take(MAX_PROCESSES) {
        // It may have ended.
        let Ok(descriptors) = fs::read_dir(proc.join(pid.to_string()).join("fd")) else {
            continue;
        };
        for descriptor in descriptors.flatten() {
            if stats.descriptors == MAX_DESCRIPTORS {
                return stats;
            }
            stats.descriptors += 1;
            let target = fs::read_link(descriptor.path()).unwrap_or_default();
            stats.sockets += u64::from(target.to_string_lossy().starts_with("socket:"));
        }
    }
    stats
}

/// proc_pid_limits(5): "Max open files            1024                 4096                 files".
fn soft_limit(limits: &str) -> u64 {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    soft.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn descriptors_and_sockets_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        fs::create_dir_all(at("7/fd")).unwrap();
        symlink("/dev/null", at("7/fd/0")).unwrap();
        symlink("socket:[12]", at("7/fd/1")).unwrap();
        fs::write(
            at("7/limits"),
            "Limit Soft Hard\nMax open files            1024                 4096                 files\n",
        )
        .unwrap();
        fs::write(at("cgroup.procs"), "7\n8\n").unwrap();
        let stats = open(directory.path(), 7, directory.path());
        assert_eq!(
            (stats.descriptors, stats.sockets, stats.open_files_soft_limit),
            (2, 1, 1024)
        );
        assert_eq!(
            open(Path::new("/nonexistent"), 1, Path::new("/nonexistent")),
            FileStats::default()
        );
    }
}
