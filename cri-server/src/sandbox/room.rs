//! Whether limits fit into a Machine, and what they mean for the VMM's cgroup on the host. Pure.

use super::error::RequestError;
use crate::{container::limits::Limits, machine::CgroupLimits};

const PERIOD: u64 = 100_000;
/// The least quota that the kernel takes, microseconds.
const LEAST_QUOTA: u64 = 1000;
const MILLIONTHS: u64 = 1_000_000;

/// What is asked of a Machine, and by which fields.
#[derive(Debug)]
pub(super) struct Room {
    memory: Option<(&'static str, u64)>,
    /// Millionths of a processor.
    cpu: Option<(&'static str, u64)>,
}

impl Room {
    /// Of what a container is to have, that which `change` is about.
    pub(super) fn of_container(wanted: &Limits, change: &Limits) -> Self {
        let is_about_cpu = change.cpu_quota != 0 || change.cpu_period != 0;
        let cpu = wanted.cpu_millionths().filter(|_| is_about_cpu);
        Self {
            memory: positive(change.memory).map(|bytes| ("linux.memory_limit_in_bytes", bytes)),
            cpu: cpu.map(|cpu| ("linux.cpu_quota", cpu)),
        }
    }

    /// The overhead's memory is for the VMM and the guest's kernel, so the Machine must have it too.
    pub(super) fn of_pod(resources: &Limits, overhead: &Limits) -> Self {
        let together = |bytes: u64| bytes.saturating_add(positive(overhead.memory).unwrap_or(0));
        Self {
            memory: positive(resources.memory)
                .map(|bytes| ("resources.memory_limit_in_bytes", together(bytes))),
            cpu: resources.cpu_millionths().map(|cpu| ("resources.cpu_quota", cpu)),
        }
    }

    /// Refuses what the Machine has not.
    pub(super) fn fits(&self, memory_bytes: u64, vcpus: u8) -> Result<(), RequestError> {
        if let Some((field, bytes)) = self.memory
            && bytes > memory_bytes
        {
            let reason = format!("{bytes} bytes, and the pod's machine has {memory_bytes}");
            return Err(RequestError::unsupported(field, reason));
        }
        if let Some((field, cpu)) = self.cpu
            && cpu > u64::from(vcpus) * MILLIONTHS
        {
            let reason = format!(
                "{}.{:03} processors, and the pod's machine has {vcpus}",
                cpu / MILLIONTHS,
                cpu % MILLIONTHS / 1000
            );
            return Err(RequestError::unsupported(field, reason));
        }
        Ok(())
    }
}

/// For a pod's limits and its overhead. Memory is never less than `least`, what the Machine itself takes: the host would
/// kill the pod for it, while each container is held to its limit in the guest.
pub(super) fn host_limits(resources: &Limits, overhead: &Limits, least: u64) -> CgroupLimits {
    let quota = resources.cpu_millionths().map(|cpu| {
        let extra = overhead.cpu_millionths().unwrap_or(0);
        quota(cpu.saturating_add(extra), PERIOD)
    });
    let shares = positive(resources.cpu_shares).map(|shares| {
        let extra = positive(overhead.cpu_shares).unwrap_or(0);
        CgroupLimits::weight_from_shares(shares.saturating_add(extra))
    });
    let memory = positive(resources.memory).map(|bytes| {
        bytes
            .saturating_add(positive(overhead.memory).unwrap_or(0))
            .max(least)
    });
    CgroupLimits {
        cpu_quota_us: quota,
        // Written with the quota; alone it takes the quota away, which a negative one asks for.
        cpu_period_us: (resources.cpu_quota != 0).then_some(PERIOD),
        cpu_weight: shares,
        memory_max_bytes: memory,
    }
}

/// What to write so that a quota of the host allows `together`; `None` when it does.
pub(super) fn raised_quota((limit, period): (Option<u64>, u64), together: u64) -> Option<CgroupLimits> {
    let now = limit?;
    let wanted = quota(together, period);
    (wanted > now).then(|| CgroupLimits {
        cpu_quota_us: Some(wanted),
        cpu_period_us: Some(period),
        ..CgroupLimits::default()
    })
}

fn quota(millionths: u64, period: u64) -> u64 {
    (millionths.saturating_mul(period) / MILLIONTHS).max(LEAST_QUOTA)
}

fn positive(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|value| *value > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(cpu_quota: i64, memory: i64) -> Limits {
        Limits {
            cpu_period: 100_000,
            cpu_quota,
            memory,
            ..Limits::default()
        }
    }

    #[test]
    fn what_the_machine_has_not_is_refused_by_field() {
        let fits = |limits: &Limits| Room::of_container(limits, limits).fits(1 << 29, 2);
        fits(&limits(200_000, 1 << 29)).unwrap();
        fits(&limits(-1, -1)).unwrap();
        let refusal = fits(&limits(200_001, 0)).unwrap_err().to_string();
        assert!(
            refusal.starts_with("linux.cpu_quota") && refusal.contains("2.000"),
            "{refusal}"
        );
        let refusal = fits(&limits(0, (1 << 29) + 1)).unwrap_err().to_string();
        assert!(refusal.starts_with("linux.memory_limit_in_bytes"), "{refusal}");
        let old = limits(900_000, 1 << 40);
        Room::of_container(&old, &Limits::default())
            .fits(1 << 29, 2)
            .unwrap();
        let pod = Room::of_pod(&limits(0, 1 << 29), &limits(0, 1));
        let refusal = pod.fits(1 << 29, 2).unwrap_err().to_string();
        assert!(
            refusal.starts_with("resources.memory_limit_in_bytes"),
            "{refusal}"
        );
    }

    #[test]
    fn the_hosts_limits_have_the_overhead_in_them() {
        let mut resources = limits(150_000, 1000);
        resources.cpu_shares = 1000;
        let mut overhead = limits(25_000, 100);
        overhead.cpu_shares = 24;
        let host = host_limits(&resources, &overhead, 500);
        assert_eq!(
            host,
            CgroupLimits {
                cpu_quota_us: Some(175_000),
                cpu_period_us: Some(100_000),
                cpu_weight: Some(39),
                memory_max_bytes: Some(1100),
            }
        );
        let least = host_limits(&resources, &overhead, 5000).memory_max_bytes;
        assert_eq!(least, Some(5000));
        let nothing = host_limits(&Limits::default(), &overhead, 500);
        assert_eq!(nothing, CgroupLimits::default());
        let endless = host_limits(&limits(-1, 0), &overhead, 500);
        assert_eq!(
            (endless.cpu_quota_us, endless.cpu_period_us),
            (None, Some(100_000))
        );
    }

    #[test]
    fn a_quota_is_raised_and_never_lowered() {
        let raised = raised_quota((Some(50_000), 100_000), 750_000).unwrap();
        assert_eq!(
            (raised.cpu_quota_us, raised.cpu_period_us),
            (Some(75_000), Some(100_000))
        );
        assert_eq!(raised_quota((Some(80_000), 100_000), 750_000), None);
        assert_eq!(raised_quota((None, 100_000), 750_000), None);
    }
}
