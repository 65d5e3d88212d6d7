//! Fixed numbers of a guest as CRI's.

use super::*;
use crate::stats::fixture::{AT_NS, measured};

fn value(number: Option<cri::UInt64Value>) -> Option<u64> {
    number.map(|number| number.value)
}

fn convert<T>(measured: &Measured, convert: impl Fn(&Figures<'_>) -> T) -> T {
    let samples = Samples::default();
    convert(&Figures {
        measured,
        samples: &samples,
        scratch: "/var/lib/clearpod/scratch",
    })
}

fn container(measured: &Measured) -> Option<cri::ContainerStats> {
    convert(measured, |figures| {
        container_stats(figures, &measured.view.containers[0])
    })
}

#[test]
fn a_container_has_everything_that_kubelet_reads() {
    let stats = container(&measured()).unwrap();
    let attributes = stats.attributes.unwrap();
    assert_eq!(
        (attributes.id.as_str(), attributes.metadata.unwrap().attempt),
        ("c1", 2)
    );
    let cpu = stats.cpu.unwrap();
    assert_eq!(
        (cpu.timestamp, value(cpu.usage_core_nano_seconds)),
        (AT_NS, Some(3_000_000_000))
    );
    assert_eq!(value(cpu.usage_nano_cores), None, "there is one measurement only");
    let memory = stats.memory.unwrap();
    assert_eq!(
        (value(memory.usage_bytes), value(memory.working_set_bytes)),
        (Some(1000), Some(800))
    );
    assert_eq!(
        (value(memory.available_bytes), value(memory.rss_bytes)),
        (Some(3200), Some(300))
    );
    assert_eq!(
        (value(memory.page_faults), value(memory.major_page_faults)),
        (Some(9), Some(1))
    );
    let layer = stats.writable_layer.unwrap();
    assert_eq!(
        (value(layer.used_bytes), value(layer.inodes_used)),
        (Some(8192), Some(2))
    );
    assert_eq!(layer.fs_id.unwrap().mountpoint, "/var/lib/clearpod/scratch");
    assert_eq!(value(stats.swap.unwrap().swap_usage_bytes), Some(0));
    let some = stats.io.unwrap().psi.unwrap().some.unwrap();
    assert_eq!((some.total, some.avg10, some.avg60), (2_500_000_000, 1.5, 0.25));
}

#[test]
fn without_a_limit_nothing_is_available_and_what_was_not_measured_is_absent() {
    let mut measured = measured();
    let stats = &mut measured.stats.containers[0];
    stats.cgroup.as_mut().unwrap().memory_limit_bytes = 0;
    stats.writable_bytes = None;
    let stats = container(&measured).unwrap();
    assert_eq!(value(stats.memory.unwrap().available_bytes), None);
    assert_eq!(stats.writable_layer, None);
    measured.stats.containers.clear();
    assert_eq!(container(&measured), None);
}

#[test]
fn a_sandbox_is_its_guest_and_its_containers() {
    let measured = measured();
    let stats = convert(&measured, sandbox_stats);
    assert_eq!(stats.attributes.unwrap().labels["app"], "web");
    let linux = stats.linux.unwrap();
    let network = linux.network.unwrap();
    assert_eq!(
        value(network.default_interface.clone().unwrap().rx_bytes),
        Some(50)
    );
    assert_eq!(network.default_interface.unwrap().name, "eth0");
    assert_eq!(network.interfaces.len(), 1);
    assert_eq!(value(linux.process.unwrap().process_count), Some(4));
    assert_eq!(linux.containers.len(), 1);
    assert_eq!(value(linux.memory.unwrap().usage_bytes), Some(1000));
}

#[test]
fn without_the_pods_interface_no_network_is_told() {
    let mut measured = measured();
    measured
        .stats
        .interfaces
        .retain(|interface| interface.name != "eth0");
    assert!(!measured.stats.interfaces.is_empty());
    let stats = convert(&measured, sandbox_stats);
    assert_eq!(stats.linux.unwrap().network, None);
}

#[test]
fn a_second_measurement_tells_the_rate() {
    let samples = Samples::default();
    let mut measured = measured();
    let read = |measured: &Measured| {
        let figures = Figures {
            measured,
            samples: &samples,
            scratch: "/",
        };
        let linux = sandbox_stats(&figures).linux.unwrap();
        let rate = value(linux.cpu.unwrap().usage_nano_cores);
        (rate, value(linux.containers[0].cpu.unwrap().usage_nano_cores))
    };
    assert_eq!(read(&measured), (None, None));
    measured.monotonic_ns += 2_000_000_000;
    measured.stats.containers[0].cgroup.as_mut().unwrap().cpu_usage_ns += 500_000_000;
    assert_eq!(read(&measured), (Some(0), Some(250_000_000)));
}
