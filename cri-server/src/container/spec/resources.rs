//! CRI's resources, in the units of cgroup v2.

use proto::{agent::v1 as agent, cri::v1 as cri};

use super::SpecError;

/// cpu.max of sched-bwc.rst: 1 ms to 1 s.
const PERIOD_US: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;
/// Kubernetes' period when a quota comes without one.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// Limits of a container that is made. `field` is where they stand in the request.
pub(super) fn limits(
    field: &str,
    resources: Option<&cri::LinuxContainerResources>,
) -> Result<agent::Resources, SpecError> {
    let Some(asked) = resources else {
        return Ok(agent::Resources::default());
    };
    let in_field = |name: &str| format!("{field}.{name}");
    let period = match asked.cpu_period {
        0 => DEFAULT_PERIOD_US,
        period if PERIOD_US.contains(&period) => period.unsigned_abs(),
        other => {
            return Err(SpecError::invalid(
                in_field("cpu_period"),
                format!("{other} is not 1000 to 1000000"),
            ));
        }
    };
    if asked.cpu_shares < 0 {
        return Err(SpecError::invalid(
            in_field("cpu_shares"),
            format!("{} is negative", asked.cpu_shares),
        ));
    }
    if asked.memory_limit_in_bytes < -1 {
        let problem = format!("{} is negative", asked.memory_limit_in_bytes);
        return Err(SpecError::invalid(in_field("memory_limit_in_bytes"), problem));
    }
    Ok(agent::Resources {
        cpu_quota_us: asked.cpu_quota.max(0),
        cpu_period_us: if asked.cpu_quota > 0 { period } else { 0 },
        cpu_weight: weight(asked.cpu_shares),
        memory_limit_bytes: asked.memory_limit_in_bytes.max(0),
        memory_swap_limit_bytes: asked.memory_swap_limit_in_bytes,
        pids_limit: 0,
        cpuset_cpus: asked.cpuset_cpus.clone(),
        cpuset_mems: asked.cpuset_mems.clone(),
        unified: asked.unified.clone().into_iter().collect(),
        hugepage_limits: asked.hugepage_limits.iter().map(hugepages).collect(),
    })
}

fn hugepages(limit: &cri::HugepageLimit) -> agent::HugepageLimit {
    agent::HugepageLimit {
        page_size: limit.page_size.clone(),
        limit_bytes: limit.limit,
    }
}

/// cgroup v1 shares (2 to 262144) to a v2 weight (1 to 10000), linearly as Kubernetes' other runtimes do (KEP-2254).
fn weight(shares: i64) -> u64 {
    match shares.unsigned_abs() {
        0 => 0,
        shares => 1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_span_the_weights() {
        assert_eq!(
            [0, 2, 1024, 262_144, 1 << 40].map(weight),
            [0, 1, 39, 10_000, 10_000]
        );
    }

    #[test]
    fn a_quota_without_a_period_gets_kubernetes_own() {
        let asked = cri::LinuxContainerResources {
            cpu_quota: 50_000,
            ..Default::default()
        };
        let limits = limits("r", Some(&asked)).unwrap();
        assert_eq!((limits.cpu_quota_us, limits.cpu_period_us), (50_000, 100_000));
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        let bad = [
            (
                cri::LinuxContainerResources {
                    cpu_period: 5,
                    ..Default::default()
                },
                "r.cpu_period",
            ),
            (
                cri::LinuxContainerResources {
                    cpu_shares: -2,
                    ..Default::default()
                },
                "r.cpu_shares",
            ),
            (
                cri::LinuxContainerResources {
                    memory_limit_in_bytes: -5,
                    ..Default::default()
                },
                "r.memory_limit_in_bytes",
            ),
        ];
        for (asked, field) in bad {
            assert_eq!(limits("r", Some(&asked)).unwrap_err().field, field);
        }
    }
}
