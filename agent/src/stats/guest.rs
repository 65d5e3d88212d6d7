//! What the whole guest uses, its kernel and this agent included: what the Machine's memory and processors go into.

use std::path::Path;

use proto::agent::v1::CgroupStats;

use crate::cgroup::files::text;
use crate::cgroup::stats::{cpu, value};

/// Numbers of the pod's cgroup, with processors and memory replaced by those of the guest. cgroup-v2.rst: the root has a
/// cpu.stat, but no memory.current; so memory is as proc_meminfo(5) and proc_vmstat(5) count it.
pub(super) fn whole(pod: CgroupStats, cgroup_root: &Path, proc: &Path) -> CgroupStats {
    let mut all = CgroupStats::default();
    cpu(&mut all, &text(&cgroup_root.join("cpu.stat")));
    let (meminfo, vmstat) = (text(&proc.join("meminfo")), text(&proc.join("vmstat")));
    let bytes = |key| kib(&meminfo, key).saturating_mul(1024);
    let total = bytes("MemTotal");
    let usage = total.saturating_sub(bytes("MemFree"));
    let working_set = usage.saturating_sub(bytes("Inactive(file)"));
    let swap = bytes("SwapTotal");
    CgroupStats {
        cpu_usage_ns: all.cpu_usage_ns,
        cpu_user_ns: all.cpu_user_ns,
        cpu_system_ns: all.cpu_system_ns,
        memory_usage_bytes: usage,
        memory_working_set_bytes: working_set,
        memory_available_bytes: total.saturating_sub(working_set),
        memory_limit_bytes: total,
        memory_rss_bytes: bytes("AnonPages"),
        memory_cache_bytes: bytes("Cached"),
        memory_mapped_file_bytes: bytes("Mapped"),
        memory_swap_bytes: swap.saturating_sub(bytes("SwapFree")),
        memory_swap_limit_bytes: swap,
        memory_page_faults: value(&vmstat, "pgfault"),
        memory_major_page_faults: value(&vmstat, "pgmajfault"),
        ..pod
    }
}

/// "MemTotal:  123 kB".
fn kib(meminfo: &str, key: &str) -> u64 {
    let named = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        (name == key).then(|| rest.split_whitespace().next()?.parse().ok())?
    };
    meminfo.lines().find_map(named).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn memory_and_processors_are_the_guests_and_the_rest_is_the_pods() {
        let directory = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(directory.path().join(file), text).unwrap();
        write(
            "meminfo",
            "MemTotal: 1000 kB\nMemFree: 600 kB\nInactive(file): 100 kB\nAnonPages: 50 kB\nSwapTotal: 0 kB\n",
        );
        write("vmstat", "pgfault 7\npgmajfault 2\n");
        write("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\n");
        let pod = CgroupStats {
            cpu_usage_ns: 1,
            memory_usage_bytes: 1,
            pids: 4,
            ..CgroupStats::default()
        };
        let stats = whole(pod, directory.path(), directory.path());
        assert_eq!(
            (stats.cpu_usage_ns, stats.cpu_user_ns, stats.pids),
            (5000, 3000, 4)
        );
        assert_eq!(
            (stats.memory_usage_bytes, stats.memory_working_set_bytes),
            (400 * 1024, 300 * 1024)
        );
        assert_eq!(
            (stats.memory_available_bytes, stats.memory_rss_bytes),
            (700 * 1024, 50 * 1024)
        );
        assert_eq!((stats.memory_page_faults, stats.memory_major_page_faults), (7, 2));
    }
}
