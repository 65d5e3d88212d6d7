//! What the pod uses: cgroup numbers, what containers wrote, network counters.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::agent::v1::{ContainerStats, ErrorCode, InterfaceStats, StatsResponse};

use crate::cgroup;
use crate::clock;
use crate::container::Container;
use crate::error::{Context as _, Failure};
use crate::pod::Pod;

/// Numbers of one container, or of the sandbox and all containers.
///
/// # Errors
/// `NotFound`.
pub(crate) async fn stats(pod: &Pod, container_id: &str) -> Result<StatsResponse, Failure> {
    let everything = container_id.is_empty();
    let containers = if everything {
        pod.containers.all()
    } else {
        vec![pod.containers.get(container_id)?]
    };
    let mut response = StatsResponse {
        timestamp_ns: clock::realtime_ns(),
        ..StatsResponse::default()
    };
    if everything {
        response.sandbox = Some(cgroup::stats::read(pod.cgroup.path()));
        response.interfaces = interfaces(&pod.settings.proc);
    }
    for container in containers {
        response.containers.push(container_stats(&container).await?);
    }
    Ok(response)
}

async fn container_stats(container: &Arc<Container>) -> Result<ContainerStats, Failure> {
    let cgroup = Some(container.cgroup.path());
    measure(&container.id, container.upper.clone(), cgroup).await
}

/// Numbers of the container whose writable layer and cgroup these are.
///
/// # Errors
/// `System`.
pub(crate) async fn measure(
    id: &str,
    upper: PathBuf,
    cgroup: Option<&Path>,
) -> Result<ContainerStats, Failure> {
    // Walks a tree that the container makes as large as it likes: not on the runtime's thread.
    let written = tokio::task::spawn_blocking(move || usage(upper))
        .await
        .map_err(io::Error::other)
        .context(ErrorCode::System, || {
            "measure what the container wrote".to_owned()
        })?;
    Ok(ContainerStats {
        container_id: id.to_owned(),
        cgroup: cgroup.map(cgroup::stats::read),
        writable_bytes: written.bytes,
        writable_inodes: written.inodes,
    })
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Usage {
    bytes: u64,
    inodes: u64,
}

/// Disk blocks and inodes below `root`. Files that vanish meanwhile do not count. No recursion: the container decides how
/// deep its directories are.
fn usage(root: PathBuf) -> Usage {
    let mut usage = Usage::default();
    let mut directories = vec![root];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            usage.inodes += 1;
            // stat(2): st_blocks counts units of 512 bytes. A file with several names counts once per name.
            usage.bytes = usage.bytes.saturating_add(metadata.blocks().saturating_mul(512));
            if metadata.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    usage
}

/// proc_pid_net(5), net/dev: two lines of headings, then "name: 8 receive counters, 8 transmit counters".
pub(crate) fn interfaces(proc: &Path) -> Vec<InterfaceStats> {
    let text = fs::read_to_string(proc.join("net/dev")).unwrap_or_default();
    text.lines()
        .filter_map(interface)
        .filter(|interface| interface.name != "lo")
        .collect()
}

fn interface(line: &str) -> Option<InterfaceStats> {
    let (name, counters) = line.split_once(':')?;
    let counters: Vec<u64> = counters
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    let [
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        _,
        _,
        _,
        _,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
        ..,
    ] = *counters.as_slice()
    else {
        return None;
    };
    Some(InterfaceStats {
        name: name.trim().to_owned(),
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_column() {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("net")).unwrap();
        let text = "Inter-|   Receive    |  Transmit\n face |bytes packets|bytes packets\n\
            lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n broken: 1 2\n";
        fs::write(proc.path().join("net/dev"), text).unwrap();
        let [eth0] = interfaces(proc.path()).try_into().unwrap();
        assert_eq!(
            (eth0.name.as_str(), eth0.rx_bytes, eth0.rx_dropped),
            ("eth0", 10, 4)
        );
        assert_eq!(
            (eth0.tx_bytes, eth0.tx_packets, eth0.tx_errors, eth0.tx_dropped),
            (50, 6, 7, 8)
        );
    }

    #[test]
    fn a_tree_is_measured_with_its_directories() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/file"), vec![1; 10_000]).unwrap();
        let usage = usage(root.path().to_owned());
        assert_eq!(usage.inodes, 3);
        assert!(usage.bytes >= 10_000);
    }
}
