//! The series that there are, with the names, labels and units that kubelet's cAdvisor endpoint has. Values of CRI are whole
//! numbers, so seconds are whole too.

use proto::agent::v1;

use super::table::{Reading, Series, of, one, some};
use crate::container::limits::Limits;

const NS: u64 = 1_000_000_000;
const US: u64 = 1_000_000;

/// What a container and a whole guest have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Common {
    pub(super) cgroup: v1::CgroupStats,
    pub(super) at_s: u64,
    pub(super) started_s: u64,
}

/// What a container has beside.
#[derive(Debug, Clone)]
pub(super) struct Contained {
    pub(super) stats: v1::ContainerStats,
    pub(super) scratch: Option<v1::FilesystemStats>,
    pub(super) limits: Limits,
}

pub(super) const COMMON: &[Series<Common>] = &[
    Series::counter(
        "container_cpu_user_seconds_total",
        "Processor time in user mode, seconds.",
        &[],
        |s| one(s.cgroup.cpu_user_ns / NS),
    ),
    Series::counter(
        "container_cpu_system_seconds_total",
        "Processor time in kernel mode, seconds.",
        &[],
        |s| one(s.cgroup.cpu_system_ns / NS),
    ),
    Series::counter(
        "container_cpu_usage_seconds_total",
        "Processor time, seconds.",
        &["cpu"],
        |s| vec![of(&["total"], s.cgroup.cpu_usage_ns / NS)],
    ),
    Series::counter(
        "container_cpu_cfs_periods_total",
        "Periods of the processor quota that have passed.",
        &[],
        |s| one(s.cgroup.cpu_periods),
    ),
    Series::counter(
        "container_cpu_cfs_throttled_periods_total",
        "Periods in which the processor quota was used up.",
        &[],
        |s| one(s.cgroup.cpu_throttled_periods),
    ),
    Series::counter(
        "container_cpu_cfs_throttled_seconds_total",
        "Time without a processor because the quota was used up, seconds.",
        &[],
        |s| one(s.cgroup.cpu_throttled_ns / NS),
    ),
    Series::gauge("container_memory_cache", "Page cache, bytes.", &[], |s| {
        one(s.cgroup.memory_cache_bytes)
    }),
    Series::gauge("container_memory_rss", "Anonymous memory, bytes.", &[], |s| {
        one(s.cgroup.memory_rss_bytes)
    }),
    Series::gauge(
        "container_memory_kernel_usage",
        "Memory of the kernel, bytes.",
        &[],
        |s| one(s.cgroup.memory_kernel_bytes),
    ),
    Series::gauge("container_memory_mapped_file", "Mapped files, bytes.", &[], |s| {
        one(s.cgroup.memory_mapped_file_bytes)
    }),
    Series::gauge("container_memory_swap", "Swap in use, bytes.", &[], |s| {
        one(s.cgroup.memory_swap_bytes)
    }),
    Series::counter(
        "container_memory_failcnt",
        "How often the memory limit was reached.",
        &[],
        |s| one(s.cgroup.memory_limit_hits),
    ),
    Series::gauge(
        "container_memory_usage_bytes",
        "Memory in use, page cache included, bytes.",
        &[],
        |s| one(s.cgroup.memory_usage_bytes),
    ),
    Series::gauge(
        "container_memory_max_usage_bytes",
        "Most memory that was in use, bytes.",
        &[],
        |s| one(s.cgroup.memory_peak_bytes.max(s.cgroup.memory_usage_bytes)),
    ),
    Series::gauge(
        "container_memory_working_set_bytes",
        "Memory in use less file pages that were not used for long, bytes.",
        &[],
        |s| one(s.cgroup.memory_working_set_bytes),
    ),
    Series::counter(
        "container_memory_failures_total",
        "Page faults.",
        &["failure_type", "scope"],
        page_faults,
    ),
    Series::counter(
        "container_oom_events_total",
        "Processes that were killed for memory.",
        &[],
        |s| one(s.cgroup.oom_events),
    ),
    Series::gauge("container_processes", "Processes.", &[], |s| {
        one(s.cgroup.processes)
    }),
    Series::gauge("container_threads", "Threads.", &[], |s| one(s.cgroup.pids)),
    Series::gauge(
        "container_threads_max",
        "Most threads that are allowed; 0: any number.",
        &[],
        |s| one(s.cgroup.pids_limit),
    ),
    Series::counter(
        "container_pressure_cpu_waiting_seconds_total",
        "Time in which some task waited for a processor, seconds.",
        &[],
        |s| some(waiting(s.cgroup.cpu_pressure)),
    ),
    Series::counter(
        "container_pressure_cpu_stalled_seconds_total",
        "Time in which every task waited for a processor, seconds.",
        &[],
        |s| some(stalled(s.cgroup.cpu_pressure)),
    ),
    Series::counter(
        "container_pressure_memory_waiting_seconds_total",
        "Time in which some task waited for memory, seconds.",
        &[],
        |s| some(waiting(s.cgroup.memory_pressure)),
    ),
    Series::counter(
        "container_pressure_memory_stalled_seconds_total",
        "Time in which every task waited for memory, seconds.",
        &[],
        |s| some(stalled(s.cgroup.memory_pressure)),
    ),
    Series::counter(
        "container_pressure_io_waiting_seconds_total",
        "Time in which some task waited for a disk, seconds.",
        &[],
        |s| some(waiting(s.cgroup.io_pressure)),
    ),
    Series::counter(
        "container_pressure_io_stalled_seconds_total",
        "Time in which every task waited for a disk, seconds.",
        &[],
        |s| some(stalled(s.cgroup.io_pressure)),
    ),
    Series::gauge(
        "container_last_seen",
        "When this was measured, seconds since the epoch.",
        &[],
        |s| one(s.at_s),
    ),
    Series::gauge(
        "container_start_time_seconds",
        "When it was started, seconds since the epoch.",
        &[],
        |s| one(s.started_s),
    ),
];

pub(super) const CONTAINED: &[Series<Contained>] = &[
    Series::gauge(
        "container_fs_usage_bytes",
        "What was written to the writable layer, bytes.",
        &[],
        |s| some(s.stats.writable_bytes),
    ),
    Series::gauge(
        "container_fs_limit_bytes",
        "Size of the writable layers' file system, bytes.",
        &[],
        |s| some(s.scratch.map(|scratch| scratch.size_bytes)),
    ),
    Series::gauge(
        "container_fs_inodes_total",
        "Inodes of the writable layers' file system.",
        &[],
        |s| some(s.scratch.map(|scratch| scratch.inodes)),
    ),
    Series::gauge(
        "container_fs_inodes_free",
        "Free inodes of the writable layers' file system.",
        &[],
        |s| some(s.scratch.map(|scratch| scratch.inodes_free)),
    ),
    Series::counter(
        "container_fs_reads_bytes_total",
        "Bytes read from a disk.",
        &["device"],
        |s| by_device(s, |device| device.read_bytes),
    ),
    Series::counter(
        "container_fs_reads_total",
        "Reads from a disk.",
        &["device"],
        |s| by_device(s, |device| device.reads),
    ),
    Series::counter(
        "container_fs_writes_bytes_total",
        "Bytes written to a disk.",
        &["device"],
        |s| by_device(s, |device| device.write_bytes),
    ),
    Series::counter(
        "container_fs_writes_total",
        "Writes to a disk.",
        &["device"],
        |s| by_device(s, |device| device.writes),
    ),
    Series::counter(
        "container_blkio_device_usage_total",
        "Bytes read from and written to a disk.",
        &["device", "major", "minor", "operation"],
        block_io,
    ),
    Series::gauge(
        "container_file_descriptors",
        "Open files, sockets included.",
        &[],
        |s| some(s.stats.files.map(|files| files.descriptors)),
    ),
    Series::gauge("container_sockets", "Open sockets.", &[], |s| {
        some(s.stats.files.map(|files| files.sockets))
    }),
    Series::gauge(
        "container_ulimits_soft",
        "Soft limits of the first process.",
        &["ulimit"],
        |s| {
            let limit = s.stats.files.map(|files| files.open_files_soft_limit);
            limit
                .map(|limit| of(&["max_open_files"], limit))
                .into_iter()
                .collect()
        },
    ),
    Series::gauge(
        "container_spec_cpu_period",
        "Period of the processor quota, microseconds.",
        &[],
        |s| one(positive(s.limits.cpu_period)),
    ),
    Series::gauge(
        "container_spec_cpu_quota",
        "Processor quota, microseconds per period.",
        &[],
        |s| some(Some(positive(s.limits.cpu_quota)).filter(|quota| *quota > 0)),
    ),
    Series::gauge("container_spec_cpu_shares", "Processor shares.", &[], |s| {
        one(positive(s.limits.cpu_shares))
    }),
    Series::gauge(
        "container_spec_memory_limit_bytes",
        "Memory limit, bytes; 0: none.",
        &[],
        |s| one(positive(s.limits.memory)),
    ),
    Series::gauge(
        "container_spec_memory_swap_limit_bytes",
        "Limit of memory and swap, bytes; 0: none.",
        &[],
        |s| one(positive(s.limits.memory_swap)),
    ),
    Series::gauge(
        "container_spec_memory_reservation_limit_bytes",
        "Memory that is not taken away, bytes; 0: none.",
        &[],
        |s| {
            let reserved = s.limits.unified.get("memory.min");
            one(reserved.and_then(|bytes| bytes.parse().ok()).unwrap_or(0))
        },
    ),
];

pub(super) const NETWORK: &[Series<Vec<v1::InterfaceStats>>] = &[
    Series::counter(
        "container_network_receive_bytes_total",
        "Bytes received.",
        &["interface"],
        |s| by_interface(s, |interface| interface.rx_bytes),
    ),
    Series::counter(
        "container_network_receive_packets_total",
        "Packets received.",
        &["interface"],
        |s| by_interface(s, |interface| interface.rx_packets),
    ),
    Series::counter(
        "container_network_receive_packets_dropped_total",
        "Packets dropped while receiving.",
        &["interface"],
        |s| by_interface(s, |interface| interface.rx_dropped),
    ),
    Series::counter(
        "container_network_receive_errors_total",
        "Errors while receiving.",
        &["interface"],
        |s| by_interface(s, |interface| interface.rx_errors),
    ),
    Series::counter(
        "container_network_transmit_bytes_total",
        "Bytes sent.",
        &["interface"],
        |s| by_interface(s, |interface| interface.tx_bytes),
    ),
    Series::counter(
        "container_network_transmit_packets_total",
        "Packets sent.",
        &["interface"],
        |s| by_interface(s, |interface| interface.tx_packets),
    ),
    Series::counter(
        "container_network_transmit_packets_dropped_total",
        "Packets dropped while sending.",
        &["interface"],
        |s| by_interface(s, |interface| interface.tx_dropped),
    ),
    Series::counter(
        "container_network_transmit_errors_total",
        "Errors while sending.",
        &["interface"],
        |s| by_interface(s, |interface| interface.tx_errors),
    ),
];

fn page_faults(subject: &Common) -> Vec<Reading> {
    // cgroup v2 counts those of cgroups below always along.
    let kinds = [
        ("pgfault", subject.cgroup.memory_page_faults),
        ("pgmajfault", subject.cgroup.memory_major_page_faults),
    ];
    let scopes = ["container", "hierarchy"];
    kinds
        .iter()
        .flat_map(|(kind, count)| scopes.map(|scope| of(&[kind, scope], *count)))
        .collect()
}

fn waiting(pressure: Option<v1::Pressure>) -> Option<u64> {
    Some(pressure?.some?.total_us / US)
}

fn stalled(pressure: Option<v1::Pressure>) -> Option<u64> {
    Some(pressure?.full?.total_us / US)
}

fn by_device(subject: &Contained, value: fn(&v1::DeviceIo) -> u64) -> Vec<Reading> {
    let devices = subject.stats.devices.iter();
    devices
        .map(|device| of(&[&node(device)], value(device)))
        .collect()
}

fn block_io(subject: &Contained) -> Vec<Reading> {
    let readings = subject.stats.devices.iter().flat_map(|device| {
        let (node, major, minor) = (node(device), device.major.to_string(), device.minor.to_string());
        [("Read", device.read_bytes), ("Write", device.write_bytes)]
            .map(|(operation, bytes)| of(&[&node, &major, &minor, operation], bytes))
    });
    readings.collect()
}

fn node(device: &v1::DeviceIo) -> String {
    if device.name.is_empty() {
        format!("{}:{}", device.major, device.minor)
    } else {
        format!("/dev/{}", device.name)
    }
}

fn by_interface(interfaces: &[v1::InterfaceStats], value: fn(&v1::InterfaceStats) -> u64) -> Vec<Reading> {
    interfaces
        .iter()
        .map(|interface| of(&[&interface.name], value(interface)))
        .collect()
}

fn positive(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
