//! Limits of a container: as clients ask for them, as they are recorded, and as the guest has them. Pure.

use std::collections::BTreeMap;

use proto::{agent::v1 as agent, cri::v1 as cri};
use serde::{Deserialize, Serialize};

use crate::machine::CgroupLimits;

/// The kernel's default of cpu.max and cpu.weight, cgroup-v2.rst.
const DEFAULT_PERIOD: i64 = 100_000;
const DEFAULT_WEIGHT: u64 = 100;
/// The kernel keeps memory limits in whole pages.
const PAGE: i64 = 4096;

/// In CRI's units, where 0 and empty mean that nothing is asked. Part of the record: the client's request is written once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    pub(crate) cpu_period: i64,
    pub(crate) cpu_quota: i64,
    pub(crate) cpu_shares: i64,
    pub(crate) memory: i64,
    /// Memory and swap together.
    pub(crate) memory_swap: i64,
    pub(crate) oom_score_adj: i64,
    pub(crate) cpuset_cpus: String,
    pub(crate) cpuset_mems: String,
    pub(crate) unified: BTreeMap<String, String>,
    /// By page size, bytes.
    pub(crate) hugepages: Vec<(String, u64)>,
}

impl From<&cri::LinuxContainerResources> for Limits {
    fn from(wish: &cri::LinuxContainerResources) -> Self {
        Self {
            cpu_period: wish.cpu_period,
            cpu_quota: wish.cpu_quota,
            cpu_shares: wish.cpu_shares,
            memory: wish.memory_limit_in_bytes,
            memory_swap: wish.memory_swap_limit_in_bytes,
            oom_score_adj: wish.oom_score_adj,
            cpuset_cpus: wish.cpuset_cpus.clone(),
            cpuset_mems: wish.cpuset_mems.clone(),
            unified: wish.unified.clone().into_iter().collect(),
            hugepages: wish
                .hugepage_limits
                .iter()
                .map(|limit| (limit.page_size.clone(), limit.limit))
                .collect(),
        }
    }
}

impl Limits {
    pub(crate) fn to_cri(&self) -> cri::LinuxContainerResources {
        cri::LinuxContainerResources {
            cpu_period: self.cpu_period,
            cpu_quota: self.cpu_quota,
            cpu_shares: self.cpu_shares,
            memory_limit_in_bytes: self.memory,
            memory_swap_limit_in_bytes: self.memory_swap,
            oom_score_adj: self.oom_score_adj,
            cpuset_cpus: self.cpuset_cpus.clone(),
            cpuset_mems: self.cpuset_mems.clone(),
            unified: self.unified.clone().into_iter().collect(),
            hugepage_limits: self
                .hugepages
                .iter()
                .map(|(page_size, limit)| cri::HugepageLimit {
                    page_size: page_size.clone(),
                    limit: *limit,
                })
                .collect(),
        }
    }

    /// These with what `change` names; kubelet's CPU manager names processors alone, a resize processors and memory.
    pub(crate) fn changed(&self, change: &Self) -> Self {
        let number = |new: i64, old: i64| if new == 0 { old } else { new };
        let text = |new: &String, old: &String| if new.is_empty() { old } else { new }.clone();
        let mut unified = self.unified.clone();
        unified.extend(change.unified.clone());
        Self {
            cpu_period: number(change.cpu_period, self.cpu_period),
            cpu_quota: number(change.cpu_quota, self.cpu_quota),
            cpu_shares: number(change.cpu_shares, self.cpu_shares),
            memory: number(change.memory, self.memory),
            memory_swap: self.changed_swap(change),
            oom_score_adj: number(change.oom_score_adj, self.oom_score_adj),
            cpuset_cpus: text(&change.cpuset_cpus, &self.cpuset_cpus),
            cpuset_mems: text(&change.cpuset_mems, &self.cpuset_mems),
            unified,
            hugepages: if change.hugepages.is_empty() {
                self.hugepages.clone()
            } else {
                change.hugepages.clone()
            },
        }
    }

    /// Memory and swap are counted together: a change of memory alone leaves the swap what it was.
    fn changed_swap(&self, change: &Self) -> i64 {
        match (change.memory_swap, change.memory) {
            (0, 1..) if self.memory_swap > 0 && self.memory > 0 => change
                .memory
                .saturating_add(self.memory_swap.saturating_sub(self.memory)),
            (0, _) => self.memory_swap,
            (swap, _) => swap,
        }
    }

    /// What a client is shown when it asked for these and the guest's cgroup has `actual`: what it asked for, where the
    /// kernel keeps that (in pages, and as a weight instead of shares), else what is there.
    pub(crate) fn shown(&self, actual: &agent::Resources) -> Self {
        let (cpu_quota, cpu_period) = self.shown_cpu(actual);
        let memory = kept(self.memory, actual.memory_limit_bytes, PAGE);
        Self {
            cpu_period,
            cpu_quota,
            cpu_shares: self.shown_shares(actual.cpu_weight),
            memory,
            memory_swap: match self.memory_swap {
                // Without a swap limit there is nothing to show beside the memory's.
                0 => 0,
                // Two limits of whole pages.
                asked => kept(asked, actual.memory_swap_limit_bytes, 2 * PAGE),
            },
            oom_score_adj: self.oom_score_adj,
            cpuset_cpus: actual.cpuset_cpus.clone(),
            cpuset_mems: actual.cpuset_mems.clone(),
            unified: actual.unified.clone().into_iter().collect(),
            hugepages: self.hugepages.clone(),
        }
    }

    fn shown_cpu(&self, actual: &agent::Resources) -> (i64, i64) {
        let period = i64::try_from(actual.cpu_period_us).unwrap_or(i64::MAX);
        let unlimited = actual.cpu_quota_us <= 0;
        let quota = if unlimited && self.cpu_quota <= 0 {
            self.cpu_quota
        } else {
            actual.cpu_quota_us
        };
        let default = self.cpu_period == 0 && unlimited && [0, DEFAULT_PERIOD].contains(&period);
        (quota, if default { 0 } else { period })
    }

    fn shown_shares(&self, weight: u64) -> i64 {
        let asked = u64::try_from(self.cpu_shares).unwrap_or(0);
        match weight {
            0 => 0,
            DEFAULT_WEIGHT if asked == 0 => 0,
            weight if asked != 0 && CgroupLimits::weight_from_shares(asked) == weight => self.cpu_shares,
            weight => CgroupLimits::shares_from_weight(weight),
        }
    }

    /// Processor time as millionths of a processor; `None` without a quota.
    pub(crate) fn cpu_millionths(&self) -> Option<u64> {
        let quota = u64::try_from(self.cpu_quota).ok().filter(|quota| *quota > 0)?;
        let period = match u64::try_from(self.cpu_period) {
            Ok(period @ 1..) => period,
            _ => DEFAULT_PERIOD.unsigned_abs(),
        };
        Some(quota.saturating_mul(1_000_000) / period)
    }
}

/// `asked` if the kernel, which rounds down by less than `grain`, keeps that as `actual`, else `actual`.
fn kept(asked: i64, actual: i64, grain: i64) -> i64 {
    match (asked, actual) {
        (..=0, -1) => asked,
        (1.., 1..) if actual <= asked && asked.saturating_sub(actual) < grain => asked,
        (_, actual) => actual.max(-1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Limits {
        Limits {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory: 100_000_000,
            memory_swap: 100_000_000,
            ..Limits::default()
        }
    }

    fn has(quota: i64, weight: u64, memory: i64) -> agent::Resources {
        agent::Resources {
            cpu_quota_us: quota,
            cpu_period_us: 100_000,
            cpu_weight: weight,
            memory_limit_bytes: memory,
            memory_swap_limit_bytes: memory,
            ..agent::Resources::default()
        }
    }

    #[test]
    fn what_the_kernel_rounds_is_shown_as_it_was_asked() {
        let weight = CgroupLimits::weight_from_shares(512);
        assert_eq!(asked().shown(&has(50_000, weight, 99_999_744)), asked());
    }

    #[test]
    fn what_differs_is_shown_as_it_is() {
        let shown = asked().shown(&has(20_000, 1, 50_000_000));
        assert_eq!((shown.cpu_quota, shown.cpu_shares), (20_000, 2));
        assert_eq!((shown.memory, shown.memory_swap), (50_000_000, 50_000_000));
        let shown = asked().shown(&has(-1, 0, -1));
        assert_eq!((shown.cpu_quota, shown.cpu_shares, shown.memory), (-1, 0, -1));
    }

    #[test]
    fn defaults_are_nothing_to_show() {
        let nothing = Limits::default();
        assert_eq!(nothing.shown(&has(-1, 100, -1)), nothing);
        assert_eq!(nothing.shown(&agent::Resources::default()), nothing);
    }

    #[test]
    fn a_change_leaves_what_it_does_not_name() {
        let change = Limits {
            cpu_quota: 70_000,
            ..Limits::default()
        };
        let changed = asked().changed(&change);
        assert_eq!((changed.cpu_quota, changed.cpu_shares), (70_000, 512));
        let change = Limits {
            memory: 200_000_000,
            ..Limits::default()
        };
        let mut before = asked();
        before.memory_swap += 5;
        let changed = before.changed(&change);
        assert_eq!(
            (changed.memory, changed.memory_swap),
            (200_000_000, 200_000_005),
            "the swap is the same as before"
        );
    }

    #[test]
    fn all_of_it_survives_cri_and_the_record() {
        let mut limits = asked();
        limits.unified = [("memory.high".to_owned(), "5".to_owned())].into();
        limits.hugepages = vec![("2MB".to_owned(), 4)];
        limits.cpuset_cpus = "0".to_owned();
        assert_eq!(Limits::from(&limits.to_cri()), limits);
        let text = serde_json::to_string(&limits).unwrap();
        assert_eq!(serde_json::from_str::<Limits>(&text).unwrap(), limits);
    }

    #[test]
    fn processor_time_is_a_ratio() {
        assert_eq!(asked().cpu_millionths(), Some(500_000));
        assert_eq!(Limits::default().cpu_millionths(), None);
        let endless = Limits {
            cpu_quota: i64::MAX,
            ..Limits::default()
        };
        assert!(endless.cpu_millionths().is_some());
    }
}
