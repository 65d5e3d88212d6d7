//! What the pod uses: cgroup numbers, what containers wrote, network counters.
//!
//! `guest` reads the whole Machine's, `network` interfaces, `files` open files, `writable` measures upper layers. A file
//! that is not there is a number less, never an error.

mod files;
mod guest;
pub(crate) mod network;
pub(crate) mod writable;

use std::path::Path;
use std::time::Duration;

use proto::agent::v1::{ContainerStats, FilesystemStats, StatsRequest, StatsResponse};
use tokio::time::Instant;

use crate::cgroup;
use crate::clock;
use crate::error::Failure;
use crate::pod::Pod;
use writable::{Known, Writable};

/// How long one answer waits for upper layers to be measured; those that take longer are told by the next one.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);

/// Numbers of one container, or of the sandbox and all containers.
///
/// # Errors
/// `NotFound`.
pub(crate) async fn stats(pod: &Pod, request: &StatsRequest) -> Result<StatsResponse, Failure> {
    let id = &request.container_id;
    let everything = id.is_empty();
    let containers = if everything {
        pod.containers.all()
    } else {
        vec![pod.containers.get(id)?]
    };
    for container in &containers {
        container.writable.refresh(&pod.tasks);
    }
    let mut response = StatsResponse {
        timestamp_ns: clock::realtime_ns(),
        ..StatsResponse::default()
    };
    if everything {
        let settings = &pod.settings;
        let pods = cgroup::stats::read(pod.cgroup.path());
        response.sandbox = Some(guest::whole(pods, &settings.cgroup_root, &settings.proc));
        response.interfaces = network::interfaces(&settings.proc);
    }
    response.scratch = match pod.scratch().await {
        Ok(path) => filesystem(&path),
        Err(_) => None,
    };
    let until = Instant::now() + PATIENCE;
    for container in containers {
        let subject = Subject {
            id: &container.id,
            init: container.init.pid(),
            cgroup: Some(container.cgroup.path()),
            writable: &container.writable,
            scratch: response.scratch.as_ref(),
        };
        let (proc, sysfs) = (&pod.settings.proc, &pod.settings.sysfs);
        let stats = subject.measure(proc, sysfs, request.with_files, until).await;
        response.containers.push(stats);
    }
    Ok(response)
}

/// What is measured of a container.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) id: &'a str,
    pub(crate) init: u32,
    /// `None`: there are only the numbers of files.
    pub(crate) cgroup: Option<&'a Path>,
    pub(crate) writable: &'a Writable,
    /// Stands for an upper layer that is too large to be counted, where it is the pod's alone.
    pub(crate) scratch: Option<&'a FilesystemStats>,
}

impl Subject<'_> {
    /// The upper layer's numbers are those that are known at `until`.
    pub(crate) async fn measure(
        &self,
        proc: &Path,
        sysfs: &Path,
        with_files: bool,
        until: Instant,
    ) -> ContainerStats {
        let known = self.writable.known(until).await;
        let mut stats = ContainerStats {
            container_id: self.id.to_owned(),
            ..ContainerStats::default()
        };
        if let Some(path) = self.cgroup {
            stats.cgroup = Some(cgroup::stats::read(path));
            stats.devices = cgroup::stats::devices(path, sysfs);
            stats.files = with_files.then(|| files::open(path, self.init, proc));
        }
        set_written(&mut stats, known, self.scratch);
        stats
    }
}

fn set_written(stats: &mut ContainerStats, known: Known, scratch: Option<&FilesystemStats>) {
    (stats.writable_bytes, stats.writable_inodes) = match (known, scratch) {
        (Known::Counted { bytes, inodes }, _) => (Some(bytes), Some(inodes)),
        (Known::TooLarge, Some(scratch)) => (
            Some(scratch.used_bytes),
            Some(scratch.inodes.saturating_sub(scratch.inodes_free)),
        ),
        (Known::Nothing, _) | (Known::TooLarge, None) => (None, None),
    };
}

/// The size of the file system that `path` is on.
pub(crate) fn filesystem(path: &Path) -> Option<FilesystemStats> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(FilesystemStats {
        size_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        used_bytes: stat
            .f_blocks
            .saturating_sub(stat.f_bfree)
            .saturating_mul(stat.f_frsize),
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_to_count_is_the_whole_file_system() {
        let scratch = FilesystemStats {
            size_bytes: 100,
            used_bytes: 60,
            inodes: 10,
            inodes_free: 3,
        };
        let written = |known, scratch: Option<&FilesystemStats>| {
            let mut stats = ContainerStats::default();
            set_written(&mut stats, known, scratch);
            (stats.writable_bytes, stats.writable_inodes)
        };
        assert_eq!(written(Known::TooLarge, Some(&scratch)), (Some(60), Some(7)));
        assert_eq!(written(Known::TooLarge, None), (None, None));
        assert_eq!(written(Known::Nothing, Some(&scratch)), (None, None));
        let counted = Known::Counted { bytes: 5, inodes: 1 };
        assert_eq!(written(counted, Some(&scratch)), (Some(5), Some(1)));
    }

    #[test]
    fn a_file_system_has_a_size() {
        let directory = tempfile::tempdir().unwrap();
        let stats = filesystem(directory.path()).unwrap();
        assert!(stats.size_bytes >= stats.used_bytes && stats.size_bytes > 0);
        assert_eq!(filesystem(Path::new("/nonexistent")), None);
    }
}
