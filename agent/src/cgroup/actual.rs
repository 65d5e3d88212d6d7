//! The limits that a cgroup has, read back from its files: what the kernel made of what was written.

use std::path::Path;

use proto::agent::v1::Resources;

use super::files::text;
use super::limits;

/// Longest content of a file of `unified` that is reported.
const MAX_UNIFIED: usize = 1024;

/// Limits of the cgroup at `path`. A file that is not there leaves its field 0 or empty; "max" is -1. Of `unified` those
/// files are read that `wanted` names.
pub(super) fn read(path: &Path, wanted: &Resources) -> Resources {
    let file = |name: &str| text(&path.join(name)).trim().to_owned();
    let (cpu_quota_us, cpu_period_us) = cpu_max(&file("cpu.max"));
    let memory_limit_bytes = limit(&file("memory.max"));
    let unified = wanted.unified.keys().filter(|name| limits::is_name(name));
    Resources {
        cpu_quota_us,
        cpu_period_us,
        cpu_weight: file("cpu.weight").parse().unwrap_or(0),
        memory_limit_bytes,
        memory_swap_limit_bytes: with_swap(memory_limit_bytes, limit(&file("memory.swap.max"))),
        pids_limit: limit(&file("pids.max")),
        cpuset_cpus: file("cpuset.cpus"),
        cpuset_mems: file("cpuset.mems"),
        unified: unified
            .map(|name| {
                let mut content = file(name);
                let end = (0..=MAX_UNIFIED.min(content.len()))
                    .rev()
                    .find(|end| content.is_char_boundary(*end));
                content.truncate(end.unwrap_or(0));
                (name.clone(), content)
            })
            .collect(),
        hugepage_limits: Vec::new(),
    }
}

/// "50000 100000" or "max 100000".
fn cpu_max(text: &str) -> (i64, u64) {
    match text.split_once(' ') {
        Some((quota, period)) => (limit(quota), period.parse().unwrap_or(0)),
        None => (0, 0),
    }
}

fn limit(text: &str) -> i64 {
    match text {
        "max" => -1,
        number => number.parse().unwrap_or(0),
    }
}

/// CRI counts memory and swap together.
fn with_swap(memory: i64, swap: i64) -> i64 {
    match (memory, swap) {
        (1.., 0..) => memory.saturating_add(swap),
        (_, -1) => -1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_become_limits_again() {
        let directory = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("cpu.max", "50000 100000\n"),
            ("cpu.weight", "39\n"),
            ("memory.max", "1048576\n"),
            ("memory.swap.max", "4096\n"),
            ("pids.max", "max\n"),
            ("cpuset.cpus", "0-1\n"),
            ("memory.high", "max\n"),
        ] {
            fs::write(directory.path().join(file), text).unwrap();
        }
        let name = |name: &str| (name.to_owned(), "1".to_owned());
        let wanted = Resources {
            unified: [name("memory.high"), name("../secret")].into(),
            ..Resources::default()
        };
        let actual = read(directory.path(), &wanted);
        assert_eq!(
            (actual.cpu_quota_us, actual.cpu_period_us, actual.cpu_weight),
            (50_000, 100_000, 39)
        );
        assert_eq!(
            (
                actual.memory_limit_bytes,
                actual.memory_swap_limit_bytes,
                actual.pids_limit
            ),
            (1 << 20, (1 << 20) + 4096, -1)
        );
        assert_eq!(actual.cpuset_cpus, "0-1");
        assert_eq!(
            actual.unified,
            [("memory.high".to_owned(), "max".to_owned())].into()
        );
    }

    #[test]
    fn without_controllers_there_are_no_limits() {
        assert_eq!(
            read(Path::new("/nonexistent"), &Resources::default()),
            Resources::default()
        );
        assert_eq!(
            (with_swap(-1, -1), with_swap(-1, 5), with_swap(7, -1)),
            (-1, 0, -1)
        );
    }
}
