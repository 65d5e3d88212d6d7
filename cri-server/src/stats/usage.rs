//! A guest's numbers as CRI's statistics. Pure, but for the memory of earlier measurements.

use proto::{agent::v1, cri::v1 as cri};

use super::{gather::Measured, sample::Samples};
use crate::{
    network::INTERFACE,
    sandbox::{ContainerView, SandboxView},
};

/// What conversions need beside what a guest said.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures<'a> {
    pub(crate) measured: &'a Measured,
    pub(crate) samples: &'a Samples,
    /// Where the scratch disks are, on the host: kubelet asks that directory's file system what is left.
    pub(crate) scratch: &'a str,
}

/// One container; `None` when the guest does not know it.
pub(crate) fn container_stats(figures: &Figures<'_>, view: &ContainerView) -> Option<cri::ContainerStats> {
    let measured = figures.measured;
    let stats = measured
        .stats
        .containers
        .iter()
        .find(|stats| stats.container_id == view.id)?;
    let cgroup = stats.cgroup.unwrap_or_default();
    let config = view.config();
    Some(cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: view.id.clone(),
            metadata: config.metadata,
            labels: config.labels,
            annotations: config.annotations,
        }),
        cpu: Some(cpu(figures, &view.id, &cgroup)),
        memory: Some(memory(measured.at_ns, &cgroup)),
        writable_layer: stats.writable_bytes.map(|bytes| cri::FilesystemUsage {
            timestamp: measured.at_ns,
            fs_id: Some(cri::FilesystemIdentifier {
                mountpoint: figures.scratch.to_owned(),
            }),
            used_bytes: number(bytes),
            inodes_used: stats.writable_inodes.map(|value| cri::UInt64Value { value }),
        }),
        swap: Some(swap(measured.at_ns, &cgroup)),
        io: Some(io(measured.at_ns, &cgroup)),
    })
}

/// A sandbox with its containers. Its processors and memory are the whole guest's.
pub(crate) fn sandbox_stats(figures: &Figures<'_>) -> cri::PodSandboxStats {
    let measured = figures.measured;
    let view = &measured.view;
    let guest = measured.stats.sandbox.unwrap_or_default();
    let containers = view.containers.iter();
    cri::PodSandboxStats {
        attributes: Some(attributes(view)),
        linux: Some(cri::LinuxPodSandboxStats {
            cpu: Some(cpu(figures, &view.id, &guest)),
            memory: Some(memory(measured.at_ns, &guest)),
            network: network(measured),
            process: Some(cri::ProcessUsage {
                timestamp: measured.at_ns,
                process_count: number(guest.processes),
            }),
            containers: containers
                .filter_map(|container| container_stats(figures, container))
                .collect(),
            io: Some(io(measured.at_ns, &guest)),
        }),
        windows: None,
    }
}

fn attributes(view: &SandboxView) -> cri::PodSandboxAttributes {
    let config = view.config();
    cri::PodSandboxAttributes {
        id: view.id.clone(),
        metadata: config.metadata,
        labels: config.labels,
        annotations: config.annotations,
    }
}

fn number(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

fn cpu(figures: &Figures<'_>, id: &str, cgroup: &v1::CgroupStats) -> cri::CpuUsage {
    let Measured {
        at_ns,
        monotonic_ns,
        processors,
        ..
    } = *figures.measured;
    let usage_ns = cgroup.cpu_usage_ns;
    let nano_cores = figures.samples.nano_cores(id, usage_ns, monotonic_ns, processors);
    cri::CpuUsage {
        timestamp: at_ns,
        usage_core_nano_seconds: number(usage_ns),
        usage_nano_cores: nano_cores.map(|value| cri::UInt64Value { value }),
        psi: cgroup.cpu_pressure.map(pressure),
    }
}

fn memory(at_ns: i64, cgroup: &v1::CgroupStats) -> cri::MemoryUsage {
    let working_set = cgroup.memory_working_set_bytes;
    let limit = Some(cgroup.memory_limit_bytes).filter(|limit| *limit > 0);
    cri::MemoryUsage {
        timestamp: at_ns,
        working_set_bytes: number(working_set),
        available_bytes: limit.map(|limit| cri::UInt64Value {
            value: limit.saturating_sub(working_set),
        }),
        usage_bytes: number(cgroup.memory_usage_bytes),
        rss_bytes: number(cgroup.memory_rss_bytes),
        page_faults: number(cgroup.memory_page_faults),
        major_page_faults: number(cgroup.memory_major_page_faults),
        psi: cgroup.memory_pressure.map(pressure),
    }
}

fn swap(at_ns: i64, cgroup: &v1::CgroupStats) -> cri::SwapUsage {
    let limit = Some(cgroup.memory_swap_limit_bytes).filter(|limit| *limit > 0);
    cri::SwapUsage {
        timestamp: at_ns,
        swap_available_bytes: limit.map(|limit| cri::UInt64Value {
            value: limit.saturating_sub(cgroup.memory_swap_bytes),
        }),
        swap_usage_bytes: number(cgroup.memory_swap_bytes),
    }
}

fn io(at_ns: i64, cgroup: &v1::CgroupStats) -> cri::IoUsage {
    cri::IoUsage {
        timestamp: at_ns,
        psi: cgroup.io_pressure.map(pressure),
    }
}

fn pressure(pressure: v1::Pressure) -> cri::PsiStats {
    let data = |line: v1::PressureLine| {
        let percent = |centi: u32| f64::from(centi) / 100.0;
        cri::PsiData {
            // CRI counts nanoseconds.
            total: line.total_us.saturating_mul(1000),
            avg10: percent(line.avg10_centi),
            avg60: percent(line.avg60_centi),
            avg300: percent(line.avg300_centi),
        }
    };
    cri::PsiStats {
        full: pressure.full.map(data),
        some: pressure.some.map(data),
    }
}

/// Without the pod's own interface there is nothing to tell: kubelet takes the default interface as given and panics otherwise.
fn network(measured: &Measured) -> Option<cri::NetworkUsage> {
    let usage = |interface: &v1::InterfaceStats| cri::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: number(interface.rx_bytes),
        rx_errors: number(interface.rx_errors),
        tx_bytes: number(interface.tx_bytes),
        tx_errors: number(interface.tx_errors),
    };
    let (default, others): (Vec<_>, Vec<_>) = measured
        .stats
        .interfaces
        .iter()
        .partition(|interface| interface.name == INTERFACE);
    let default = default.first()?;
    Some(cri::NetworkUsage {
        timestamp: measured.at_ns,
        default_interface: Some(usage(default)),
        interfaces: others.into_iter().map(usage).collect(),
    })
}

#[cfg(test)]
mod tests;
