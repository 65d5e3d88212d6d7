//! A guest may say any number. What cannot be more than its Machine has is made that. A host pod's shim is the host's own: it
//! reads what the kernel says.

use proto::agent::v1;

use crate::{config::MachineDefaults, host::Kind, sandbox::MachineView};

const MIB: u64 = 1024 * 1024;
/// PID_MAX_LIMIT of the kernel.
const MAX_PROCESSES: u64 = 4 * 1024 * 1024;
/// Percent, in hundredths.
const ALL_OF_THE_TIME: u32 = 100 * 100;

/// The most that a guest can use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) memory_bytes: u64,
    pub(super) scratch_bytes: u64,
    pub(super) processors: u32,
}

impl Bounds {
    pub(super) fn of(machine: &MachineView, defaults: &MachineDefaults) -> Self {
        match machine.kind {
            Kind::Machine => Self {
                memory_bytes: machine.memory_mib.saturating_mul(MIB),
                scratch_bytes: defaults.scratch_mib.saturating_mul(MIB),
                processors: machine.vcpus.into(),
            },
            Kind::Host(_) => Self {
                memory_bytes: u64::MAX,
                scratch_bytes: u64::MAX,
                processors: u32::MAX,
            },
        }
    }

    pub(super) fn clamp(self, mut stats: v1::StatsResponse) -> v1::StatsResponse {
        if let Some(sandbox) = &mut stats.sandbox {
            self.cgroup(sandbox);
        }
        if let Some(scratch) = &mut stats.scratch {
            scratch.size_bytes = scratch.size_bytes.min(self.scratch_bytes);
            scratch.used_bytes = scratch.used_bytes.min(scratch.size_bytes);
            scratch.inodes_free = scratch.inodes_free.min(scratch.inodes);
        }
        for container in &mut stats.containers {
            if let Some(cgroup) = &mut container.cgroup {
                self.cgroup(cgroup);
            }
            let written = container.writable_bytes;
            container.writable_bytes = written.map(|bytes| bytes.min(self.scratch_bytes));
        }
        stats
    }

    fn cgroup(self, stats: &mut v1::CgroupStats) {
        for bytes in [
            &mut stats.memory_usage_bytes,
            &mut stats.memory_rss_bytes,
            &mut stats.memory_cache_bytes,
            &mut stats.memory_kernel_bytes,
            &mut stats.memory_mapped_file_bytes,
            &mut stats.memory_peak_bytes,
        ] {
            *bytes = (*bytes).min(self.memory_bytes);
        }
        let usage = stats.memory_usage_bytes;
        stats.memory_working_set_bytes = stats.memory_working_set_bytes.min(usage);
        for count in [&mut stats.pids, &mut stats.processes] {
            *count = (*count).min(MAX_PROCESSES);
        }
        let pressures = [
            &mut stats.cpu_pressure,
            &mut stats.memory_pressure,
            &mut stats.io_pressure,
        ];
        let lines = pressures
            .into_iter()
            .flatten()
            .flat_map(|pressure| [&mut pressure.some, &mut pressure.full]);
        for line in lines.flatten() {
            for average in [
                &mut line.avg10_centi,
                &mut line.avg60_centi,
                &mut line.avg300_centi,
            ] {
                *average = (*average).min(ALL_OF_THE_TIME);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_guest_uses_more_than_it_has() {
        let bounds = Bounds {
            memory_bytes: 1000,
            scratch_bytes: 500,
            processors: 1,
        };
        let line = v1::PressureLine {
            avg10_centi: u32::MAX,
            ..v1::PressureLine::default()
        };
        let cgroup = v1::CgroupStats {
            memory_usage_bytes: u64::MAX,
            memory_working_set_bytes: u64::MAX,
            memory_rss_bytes: 7,
            processes: u64::MAX,
            io_pressure: Some(v1::Pressure {
                some: None,
                full: Some(line),
            }),
            ..v1::CgroupStats::default()
        };
        let clamped = bounds.clamp(v1::StatsResponse {
            sandbox: Some(cgroup),
            containers: vec![v1::ContainerStats {
                cgroup: Some(cgroup),
                writable_bytes: Some(u64::MAX),
                ..v1::ContainerStats::default()
            }],
            scratch: Some(v1::FilesystemStats {
                size_bytes: u64::MAX,
                used_bytes: 400,
                inodes: 1,
                inodes_free: 2,
            }),
            ..v1::StatsResponse::default()
        });
        for stats in [clamped.sandbox.unwrap(), clamped.containers[0].cgroup.unwrap()] {
            assert_eq!((stats.memory_usage_bytes, stats.memory_rss_bytes), (1000, 7));
            assert_eq!(stats.memory_working_set_bytes, 1000);
            assert_eq!(stats.processes, MAX_PROCESSES);
            let full = stats.io_pressure.unwrap().full.unwrap();
            assert_eq!(full.avg10_centi, 10_000);
        }
        assert_eq!(clamped.containers[0].writable_bytes, Some(500));
        let scratch = clamped.scratch.unwrap();
        assert_eq!(
            (scratch.size_bytes, scratch.used_bytes, scratch.inodes_free),
            (500, 400, 1)
        );
    }
}
