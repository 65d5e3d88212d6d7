//! Static facts of the guest.

use std::fs;
use std::path::Path;

use proto::agent::v1::InfoResponse;

/// Version of the protocol in `proto/agent/v1/agent.proto`.
pub(crate) const PROTOCOL_VERSION: u32 = 1;

/// Without the boot id.
pub(crate) fn info(proc: &Path, sysfs: &Path) -> InfoResponse {
    let read = |path: &str| fs::read_to_string(proc.join(path)).unwrap_or_default();
    InfoResponse {
        protocol_version: PROTOCOL_VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: read("sys/kernel/osrelease").trim().to_owned(),
        boot_id: String::new(),
        memory_total_bytes: memory_total(&read("meminfo")),
        cpus_online: online(&fs::read_to_string(sysfs.join("devices/system/cpu/online")).unwrap_or_default()),
    }
}

/// The kernel makes it up when it is asked for the first time, and keeps it. Nobody may ask before the sandbox is configured,
/// which brings entropy of its own: the forks of a template that had one would all have the same.
pub(crate) fn boot_id(proc: &Path) -> String {
    let read = fs::read_to_string(proc.join("sys/kernel/random/boot_id"));
    read.unwrap_or_default().trim().to_owned()
}

/// proc_meminfo(5): "MemTotal:  123 kB".
fn memory_total(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// A list like "0-2,5".
pub(crate) fn online(list: &str) -> u32 {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.trim()
        .split(',')
        .filter_map(range)
        .fold(0, u32::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read() {
        assert_eq!(memory_total("MemTotal:      1024 kB\nMemFree: 1 kB\n"), 1 << 20);
        assert_eq!(online("0-2,5\n"), 4);
        assert_eq!(online("0\n"), 1);
        assert_eq!(online(""), 0);
    }
}
