//! From the request's resources to cgroup v2 files and their contents, cgroup-v2.rst. Pure.

use std::time::Duration;

use proto::agent::v1::{HugepageLimit, Resources};

use crate::error::Failure;

/// What to write where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) file: String,
    pub(crate) value: String,
}

/// The kernel's default of cpu.max's second value.
const DEFAULT_PERIOD: Duration = Duration::from_millis(100);

/// Everything to be written for `resources`, in this order; `unified` comes last and so has the last word.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub(crate) fn settings(resources: &Resources) -> Result<Vec<Setting>, Failure> {
    let mut settings = Vec::new();
    let mut set = |file: &str, value: String| {
        settings.push(Setting {
            file: file.to_owned(),
            value,
        });
    };
    if resources.cpu_quota_us != 0 || resources.cpu_period_us != 0 {
        set("cpu.max", cpu_max(resources));
    }
    if resources.cpu_weight != 0 {
        if resources.cpu_weight > 10_000 {
            let text = format!(
                "resources.cpu_weight: {} is more than 10000",
                resources.cpu_weight
            );
            return Err(Failure::invalid(text));
        }
        set("cpu.weight", resources.cpu_weight.to_string());
    }
    if resources.memory_limit_bytes != 0 {
        set("memory.max", limit(resources.memory_limit_bytes));
    }
    if let Some(swap) = swap_max(resources)? {
        set(super::SWAP_MAX, swap);
    }
    if resources.pids_limit != 0 {
        set("pids.max", limit(resources.pids_limit));
    }
    if !resources.cpuset_cpus.is_empty() {
        set("cpuset.cpus", resources.cpuset_cpus.clone());
    }
    if !resources.cpuset_mems.is_empty() {
        set("cpuset.mems", resources.cpuset_mems.clone());
    }
    for HugepageLimit {
        page_size,
        limit_bytes,
    } in &resources.hugepage_limits
    {
        check_name("resources.hugepage_limits.page_size", page_size)?;
        set(&format!("hugetlb.{page_size}.max"), limit_bytes.to_string());
    }
    let mut unified: Vec<_> = resources.unified.iter().collect();
    unified.sort();
    for (file, value) in unified {
        check_name("resources.unified", file)?;
        if !file.contains('.') || file.starts_with("cgroup.") {
            return Err(Failure::invalid(format!(
                "resources.unified: {file:?} is no controller's file"
            )));
        }
        set(file, value.clone());
    }
    Ok(settings)
}

fn cpu_max(resources: &Resources) -> String {
    let period = match resources.cpu_period_us {
        0 => u64::try_from(DEFAULT_PERIOD.as_micros()).unwrap_or(u64::MAX),
        period => period,
    };
    if resources.cpu_quota_us > 0 {
        format!("{} {period}", resources.cpu_quota_us)
    } else {
        format!("max {period}")
    }
}

/// CRI counts memory and swap together, as cgroup v1 did; cgroup v2 counts swap alone.
fn swap_max(resources: &Resources) -> Result<Option<String>, Failure> {
    let (memory, both) = (resources.memory_limit_bytes, resources.memory_swap_limit_bytes);
    match both {
        0 => Ok(None),
        ..0 => Ok(Some("max".to_owned())),
        _ if memory > 0 && both >= memory => Ok(Some((both - memory).to_string())),
        _ => Err(Failure::invalid(format!(
            "resources.memory_swap_limit_bytes: {both} is less than the memory limit {memory}, or there is none"
        ))),
    }
}

fn limit(value: i64) -> String {
    if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

/// A file name of the cgroup file system, not a path.
pub(super) fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=128).contains(&name.len()) && name.bytes().all(plain)
}

fn check_name(field: &str, name: &str) -> Result<(), Failure> {
    if !is_name(name) {
        return Err(Failure::invalid(format!(
            "{field}: {name:?} is no cgroup file's name"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(resources: &Resources) -> Vec<(String, String)> {
        settings(resources)
            .unwrap()
            .into_iter()
            .map(|setting| (setting.file, setting.value))
            .collect()
    }

    fn pair(file: &str, value: &str) -> (String, String) {
        (file.to_owned(), value.to_owned())
    }

    #[test]
    fn nothing_asked_nothing_written() {
        assert_eq!(written(&Resources::default()), []);
    }

    #[test]
    fn every_limit_has_its_file() {
        let resources = Resources {
            cpu_quota_us: 50_000,
            cpu_weight: 39,
            memory_limit_bytes: 1 << 20,
            memory_swap_limit_bytes: 3 << 20,
            pids_limit: 10,
            cpuset_cpus: "0-1".to_owned(),
            unified: [
                ("memory.high".to_owned(), "5".to_owned()),
                ("memory.oom.group".to_owned(), "1".to_owned()),
            ]
            .into(),
            hugepage_limits: vec![HugepageLimit {
                page_size: "2MB".to_owned(),
                limit_bytes: 4,
            }],
            ..Resources::default()
        };
        assert_eq!(
            written(&resources),
            [
                pair("cpu.max", "50000 100000"),
                pair("cpu.weight", "39"),
                pair("memory.max", "1048576"),
                pair("memory.swap.max", "2097152"),
                pair("pids.max", "10"),
                pair("cpuset.cpus", "0-1"),
                pair("hugetlb.2MB.max", "4"),
                pair("memory.high", "5"),
                pair("memory.oom.group", "1"),
            ]
        );
    }

    #[test]
    fn negative_means_no_limit() {
        let resources = Resources {
            cpu_quota_us: -1,
            cpu_period_us: 20_000,
            memory_limit_bytes: -1,
            memory_swap_limit_bytes: -1,
            pids_limit: -1,
            ..Resources::default()
        };
        assert_eq!(
            written(&resources),
            [
                pair("cpu.max", "max 20000"),
                pair("memory.max", "max"),
                pair("memory.swap.max", "max"),
                pair("pids.max", "max")
            ]
        );
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in [
            "../cgroup.procs",
            "cgroup.procs",
            "cgroup.kill",
            "memory/max",
            "memory",
            "",
        ] {
            let resources = Resources {
                unified: [(name.to_owned(), "1".to_owned())].into(),
                ..Resources::default()
            };
            assert!(settings(&resources).is_err(), "{name}");
        }
        let swap_below_memory = Resources {
            memory_limit_bytes: 2,
            memory_swap_limit_bytes: 1,
            ..Resources::default()
        };
        assert!(settings(&swap_below_memory).is_err());
    }
}
