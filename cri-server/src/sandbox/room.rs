//! Whether limits fit into a Machine, how large it has to be for them, and what they mean for the VMM's cgroup on the host.
//! Pure.

use super::{error::RequestError, plan::SandboxPlan};
use crate::{container::limits::Limits, machine::CgroupLimits};

const MIB: u64 = 1024 * 1024;
/// What a memory device plugs in one piece.
const BLOCK_MIB: u64 = 2;

const PERIOD: u64 = 100_000;
/// The least quota that the kernel takes, microseconds.
const LEAST_QUOTA: u64 = 1000;
const MILLIONTHS: u64 = 1_000_000;

/// A Machine's, or the largest that it can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) memory_mib: u64,
    pub(super) vcpus: u8,
}

impl Size {
    /// That it starts with.
    pub(super) fn planned(plan: &SandboxPlan) -> Self {
        Self {
            memory_mib: plan.memory_mib,
            vcpus: plan.vcpus,
        }
    }

    /// That it can grow to.
    pub(super) fn most(plan: &SandboxPlan) -> Self {
        Self {
            memory_mib: plan.memory_mib.saturating_add(plan.memory_hotplug_mib),
            vcpus: plan.vcpus_possible,
        }
    }

    /// The larger one in each.
    pub(super) fn max(self, other: Self) -> Self {
        Self {
            memory_mib: self.memory_mib.max(other.memory_mib),
            vcpus: self.vcpus.max(other.vcpus),
        }
    }

    /// What a memory device adds to `planned` for it, in whole blocks.
    pub(super) fn plugged_mib(self, planned: Self) -> u64 {
        let more = self.memory_mib.saturating_sub(planned.memory_mib);
        more.next_multiple_of(BLOCK_MIB)
    }
}

/// What the containers of a pod, or the pod itself, may use together. Who has no limit adds nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Demand {
    memory_bytes: u64,
    cpu_millionths: u64,
}

impl Demand {
    pub(super) fn of(limits: impl IntoIterator<Item = Limits>) -> Self {
        let mut demand = Self::default();
        for limits in limits {
            let memory = positive(limits.memory).unwrap_or(0);
            let cpu = limits.cpu_millionths().unwrap_or(0);
            demand.memory_bytes = demand.memory_bytes.saturating_add(memory);
            demand.cpu_millionths = demand.cpu_millionths.saturating_add(cpu);
        }
        demand
    }

    /// The Machine for it, `most` at most; `overhead_mib` is the guest's own.
    pub(super) fn size(self, overhead_mib: u64, most: Size) -> Size {
        let memory_mib = match self.memory_bytes {
            0 => 0,
            bytes => bytes.div_ceil(MIB).saturating_add(overhead_mib),
        };
        let vcpus = u8::try_from(self.cpu_millionths.div_ceil(MILLIONTHS)).unwrap_or(u8::MAX);
        Size {
            memory_mib: memory_mib.min(most.memory_mib),
            vcpus: vcpus.min(most.vcpus),
        }
    }
}

/// What is asked of a Machine, and by which fields.
#[derive(Debug, Default)]
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

    /// Refuses what the Machine can never have.
    pub(super) fn fits(&self, most: Size) -> Result<(), RequestError> {
        let (memory_bytes, vcpus) = (most.memory_mib.saturating_mul(MIB), most.vcpus);
        if let Some((field, bytes)) = self.memory
            && bytes > memory_bytes
        {
            let reason = format!("{bytes} bytes, and the pod's machine can have {memory_bytes}");
            return Err(RequestError::unsupported(field, reason));
        }
        if let Some((field, cpu)) = self.cpu
            && cpu > u64::from(vcpus) * MILLIONTHS
        {
            let reason = format!(
                "{}.{:03} processors, and the pod's machine can have {vcpus}",
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

    const MOST: Size = Size {
        memory_mib: 512,
        vcpus: 2,
    };

    #[test]
    fn a_machine_is_as_large_as_its_containers_together_and_its_own_needs() {
        let size = |limits: &[Limits]| Demand::of(limits.to_vec()).size(64, MOST);
        let of = |memory_mib, vcpus| Size { memory_mib, vcpus };
        assert_eq!(size(&[]), of(0, 0));
        assert_eq!(size(&[limits(-1, -1)]), of(0, 0));
        assert_eq!(size(&[limits(50_000, 100 << 20), limits(60_000, 1)]), of(165, 2));
        assert_eq!(size(&[limits(i64::MAX, i64::MAX), limits(1, 1)]), MOST);
        assert_eq!(of(100, 1).max(of(1, 2)), of(100, 2));
        assert_eq!(of(101, 1).plugged_mib(of(64, 1)), 38);
        assert_eq!(of(1, 1).plugged_mib(of(64, 1)), 0);
    }

    #[test]
    fn what_the_machine_has_not_is_refused_by_field() {
        let fits = |limits: &Limits| Room::of_container(limits, limits).fits(MOST);
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
        Room::of_container(&old, &Limits::default()).fits(MOST).unwrap();
        let pod = Room::of_pod(&limits(0, 1 << 29), &limits(0, 1));
        let refusal = pod.fits(MOST).unwrap_err().to_string();
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
