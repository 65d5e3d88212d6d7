//! Every metric has a descriptor, and as many label values as that has keys.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::stats::fixture::{AT_NS, measured};

/// What critest wants to be told of a pod with a running container.
const EXPECTED: [&str; 54] = [
    "container_blkio_device_usage_total",
    "container_cpu_cfs_periods_total",
    "container_cpu_cfs_throttled_periods_total",
    "container_cpu_cfs_throttled_seconds_total",
    "container_cpu_system_seconds_total",
    "container_cpu_usage_seconds_total",
    "container_cpu_user_seconds_total",
    "container_file_descriptors",
    "container_fs_inodes_free",
    "container_fs_inodes_total",
    "container_fs_limit_bytes",
    "container_fs_reads_bytes_total",
    "container_fs_reads_total",
    "container_fs_usage_bytes",
    "container_fs_writes_bytes_total",
    "container_fs_writes_total",
    "container_last_seen",
    "container_memory_cache",
    "container_memory_failcnt",
    "container_memory_failures_total",
    "container_memory_kernel_usage",
    "container_memory_mapped_file",
    "container_memory_max_usage_bytes",
    "container_memory_rss",
    "container_memory_swap",
    "container_memory_usage_bytes",
    "container_memory_working_set_bytes",
    "container_network_receive_bytes_total",
    "container_network_receive_errors_total",
    "container_network_receive_packets_dropped_total",
    "container_network_receive_packets_total",
    "container_network_transmit_bytes_total",
    "container_network_transmit_errors_total",
    "container_network_transmit_packets_dropped_total",
    "container_network_transmit_packets_total",
    "container_oom_events_total",
    "container_pressure_cpu_stalled_seconds_total",
    "container_pressure_cpu_waiting_seconds_total",
    "container_pressure_io_stalled_seconds_total",
    "container_pressure_io_waiting_seconds_total",
    "container_pressure_memory_stalled_seconds_total",
    "container_pressure_memory_waiting_seconds_total",
    "container_processes",
    "container_sockets",
    "container_spec_cpu_period",
    "container_spec_cpu_quota",
    "container_spec_cpu_shares",
    "container_spec_memory_limit_bytes",
    "container_spec_memory_reservation_limit_bytes",
    "container_spec_memory_swap_limit_bytes",
    "container_start_time_seconds",
    "container_threads",
    "container_threads_max",
    "container_ulimits_soft",
];

fn all(metrics: &cri::PodSandboxMetrics) -> impl Iterator<Item = &cri::Metric> {
    let of_containers = metrics
        .container_metrics
        .iter()
        .flat_map(|container| &container.metrics);
    metrics.metrics.iter().chain(of_containers)
}

#[test]
fn descriptors_have_one_name_each_and_say_what_they_are() {
    let descriptors = descriptors();
    let names: BTreeSet<&str> = descriptors
        .iter()
        .map(|descriptor| descriptor.name.as_str())
        .collect();
    assert_eq!(names.len(), descriptors.len());
    assert_eq!(names, BTreeSet::from(EXPECTED));
    for descriptor in &descriptors {
        assert!(descriptor.help.ends_with('.'), "{descriptor:?}");
        let keys: BTreeSet<&String> = descriptor.label_keys.iter().collect();
        assert_eq!(keys.len(), descriptor.label_keys.len(), "{descriptor:?}");
        assert_eq!(descriptor.label_keys[..LABELS.len()], LABELS);
    }
}

#[test]
fn every_metric_has_a_descriptor_and_a_label_for_each_of_its_keys() {
    let descriptors = descriptors();
    let keys: BTreeMap<&str, usize> = descriptors
        .iter()
        .map(|descriptor| (descriptor.name.as_str(), descriptor.label_keys.len()))
        .collect();
    let metrics = sandbox_metrics(&measured());
    let mut found = BTreeSet::new();
    let mut series = BTreeSet::new();
    for metric in all(&metrics) {
        assert_eq!(
            keys[metric.name.as_str()],
            metric.label_values.len(),
            "{metric:?}"
        );
        assert_eq!(metric.timestamp, AT_NS);
        assert!(
            series.insert((&metric.name, &metric.label_values)),
            "twice: {metric:?}"
        );
        found.insert(metric.name.as_str());
    }
    assert_eq!(
        found,
        BTreeSet::from(EXPECTED),
        "of a pod of which everything is known"
    );
}

#[test]
fn labels_say_whose_a_metric_is() {
    let metrics = sandbox_metrics(&measured());
    let find = |metrics: &[cri::Metric], name: &str| {
        let found = metrics.iter().find(|metric| metric.name == name).unwrap();
        (found.label_values.clone(), found.value.unwrap().value)
    };
    let (labels, value) = find(&metrics.metrics, "container_network_receive_bytes_total");
    assert_eq!(labels, ["pod", "", "", "", "web", "default", "eth1"]);
    assert_eq!(value, 50);
    let of_container = &metrics.container_metrics[0].metrics;
    let (labels, value) = find(of_container, "container_cpu_usage_seconds_total");
    let expected = [
        "c1",
        "c1",
        "registry.example/app:1",
        "main",
        "web",
        "default",
        "total",
    ];
    assert_eq!((labels, value), (expected.map(str::to_owned).to_vec(), 3));
    let (labels, value) = find(of_container, "container_blkio_device_usage_total");
    assert_eq!(labels[LABELS.len()..], ["/dev/vda", "254", "0", "Read"]);
    assert_eq!(value, 10);
    let waiting = "container_pressure_io_waiting_seconds_total";
    assert_eq!(find(of_container, waiting).1, 2);
    assert_eq!(
        find(of_container, "container_spec_memory_limit_bytes").1,
        64 << 20
    );
    assert_eq!(
        find(of_container, "container_start_time_seconds").1,
        1_699_999_992
    );
}

#[test]
fn what_a_guest_does_not_say_is_left_out() {
    let mut silent = measured();
    silent.stats = v1::StatsResponse::default();
    let metrics = sandbox_metrics(&silent);
    assert!(metrics.container_metrics.is_empty());
    assert!(
        !metrics
            .metrics
            .iter()
            .any(|metric| metric.name.contains("pressure"))
    );
    assert!(
        metrics
            .metrics
            .iter()
            .any(|metric| metric.name == "container_last_seen")
    );
}
