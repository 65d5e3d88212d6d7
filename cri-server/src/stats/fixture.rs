//! A sandbox that was measured, for tests of what is made of it.

use std::{collections::HashMap, sync::Arc};

use proto::{agent::v1, cri::v1 as cri};

use super::gather::Measured;
use crate::{
    container::state::ContainerState,
    image::RunConfig,
    sandbox::{ContainerView, SandboxState, SandboxView, Timings},
};

/// When everything was measured.
pub(super) const AT_NS: i64 = 1_700_000_000_500_000_000;

/// The sandbox "pod" with a running container "c1", of which every number is there.
pub(crate) fn measured() -> Measured {
    let pod = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: "web".to_owned(),
            namespace: "default".to_owned(),
            ..cri::PodSandboxMetadata::default()
        }),
        labels: HashMap::from([("app".to_owned(), "web".to_owned())]),
        ..cri::PodSandboxConfig::default()
    };
    let request = cri::RunPodSandboxRequest {
        config: Some(pod),
        runtime_handler: String::new(),
    };
    Measured {
        view: Arc::new(sandbox(request)),
        stats: stats(),
        processors: 1,
        at_ns: AT_NS,
        monotonic_ns: 5_000_000_000,
    }
}

/// The sandbox "pod" as it was asked for, with a running container.
pub(crate) fn sandbox(request: cri::RunPodSandboxRequest) -> SandboxView {
    SandboxView {
        id: "pod".to_owned(),
        request: Arc::new(request),
        created_at: AT_NS - 10_000_000_000,
        state: SandboxState::Ready { held: Vec::new() },
        ips: Vec::new(),
        timings: Timings::default(),
        console: String::new(),
        machine: None,
        containers: vec![Arc::new(container(of_pod()))],
    }
}

/// What the container was asked for with.
fn of_pod() -> cri::CreateContainerRequest {
    let config = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: "main".to_owned(),
            attempt: 2,
        }),
        image: Some(cri::ImageSpec {
            image: "registry.example/app:1".to_owned(),
            ..cri::ImageSpec::default()
        }),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(cri::LinuxContainerResources {
                cpu_period: 100_000,
                cpu_quota: 20_000,
                memory_limit_in_bytes: 64 << 20,
                ..cri::LinuxContainerResources::default()
            }),
            security_context: None,
        }),
        ..cri::ContainerConfig::default()
    };
    cri::CreateContainerRequest {
        pod_sandbox_id: "pod".to_owned(),
        config: Some(config),
        sandbox_config: None,
    }
}

/// The container "c1" as it was asked for, running.
pub(crate) fn container(request: cri::CreateContainerRequest) -> ContainerView {
    ContainerView {
        id: "c1".to_owned(),
        sandbox_id: "pod".to_owned(),
        request: Arc::new(request),
        created_at: AT_NS - 9_000_000_000,
        state: ContainerState::Running {
            started_at: AT_NS - 8_000_000_000,
        },
        image_id: String::new(),
        image_ref: String::new(),
        image: RunConfig::default(),
        user: None,
        log_path: None,
        volumes: Vec::new(),
        stop_signal: 15,
        updated: None,
        shown: None,
    }
}

fn stats() -> v1::StatsResponse {
    let line = |total_us| {
        Some(v1::PressureLine {
            avg10_centi: 150,
            avg60_centi: 25,
            avg300_centi: 1,
            total_us,
        })
    };
    let pressure = Some(v1::Pressure {
        some: line(2_500_000),
        full: line(1_500_000),
    });
    let cgroup = v1::CgroupStats {
        cpu_usage_ns: 3_000_000_000,
        cpu_user_ns: 2_000_000_000,
        cpu_system_ns: 1_000_000_000,
        memory_usage_bytes: 1000,
        memory_working_set_bytes: 800,
        memory_limit_bytes: 4000,
        memory_rss_bytes: 300,
        memory_page_faults: 9,
        memory_major_page_faults: 1,
        pids: 5,
        processes: 4,
        cpu_pressure: pressure,
        memory_pressure: pressure,
        io_pressure: pressure,
        ..v1::CgroupStats::default()
    };
    let container = v1::ContainerStats {
        container_id: "c1".to_owned(),
        cgroup: Some(cgroup),
        writable_bytes: Some(8192),
        writable_inodes: Some(2),
        devices: vec![v1::DeviceIo {
            name: "vda".to_owned(),
            major: 254,
            minor: 0,
            read_bytes: 10,
            write_bytes: 20,
            reads: 1,
            writes: 2,
        }],
        files: Some(v1::FileStats {
            descriptors: 7,
            sockets: 1,
            open_files_soft_limit: 1024,
        }),
    };
    let interface = |name: &str| v1::InterfaceStats {
        name: name.to_owned(),
        rx_bytes: 50,
        ..v1::InterfaceStats::default()
    };
    v1::StatsResponse {
        timestamp_ns: 1,
        sandbox: Some(cgroup),
        containers: vec![container],
        interfaces: vec![interface("eth1"), interface("eth0")],
        scratch: Some(v1::FilesystemStats {
            size_bytes: 1 << 20,
            used_bytes: 9000,
            inodes: 100,
            inodes_free: 90,
        }),
    }
}
