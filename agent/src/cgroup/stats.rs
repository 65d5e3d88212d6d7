//! Numbers of a cgroup, read back from its files: cgroup-v2.rst, and psi.rst for pressure.
//!
//! A file that is not there (its controller is off) counts as zero.

use std::path::Path;

use proto::agent::v1::{CgroupStats, DeviceIo, Pressure, PressureLine};

use super::files::text;
use super::processes_below;

/// Cgroups of one container whose processes are counted: it can make as many as it likes.
const MAX_CGROUPS: usize = 256;
/// Disks of one cgroup that are told apart.
const MAX_DEVICES: usize = 64;

/// Reads everything of the cgroup at `path`.
pub(crate) fn read(path: &Path) -> CgroupStats {
    let file = |name: &str| text(&path.join(name));
    let mut stats = CgroupStats::default();
    cpu(&mut stats, &file("cpu.stat"));
    memory(
        &mut stats,
        &file("memory.current"),
        &file("memory.stat"),
        &file("memory.max"),
    );
    stats.memory_peak_bytes = single(&file("memory.peak"));
    stats.memory_swap_bytes = single(&file("memory.swap.current"));
    stats.memory_swap_limit_bytes = single(&file("memory.swap.max"));
    let events = file("memory.events");
    stats.memory_limit_hits = value(&events, "max");
    stats.oom_events = value(&events, "oom_kill");
    stats.pids = single(&file("pids.current"));
    let processes = processes_below(path, MAX_CGROUPS).unwrap_or_default();
    stats.processes = u64::try_from(processes.len()).unwrap_or(u64::MAX);
    stats.pids_limit = single(&file("pids.max"));
    io(&mut stats, &file("io.stat"));
    stats.cpu_pressure = pressure(&file("cpu.pressure"));
    stats.memory_pressure = pressure(&file("memory.pressure"));
    stats.io_pressure = pressure(&file("io.pressure"));
    stats
}

/// Value of `key` in a file of `key value` lines; 0 if it is not there.
pub(crate) fn value(lines: &str, key: &str) -> u64 {
    let named = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    };
    lines.lines().find_map(named).unwrap_or(0)
}

/// A file of one number; "max" is no limit, 0.
pub(crate) fn single(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

pub(crate) fn cpu(stats: &mut CgroupStats, cpu_stat: &str) {
    let ns = |key| value(cpu_stat, key).saturating_mul(1000);
    stats.cpu_usage_ns = ns("usage_usec");
    stats.cpu_user_ns = ns("user_usec");
    stats.cpu_system_ns = ns("system_usec");
    stats.cpu_throttled_ns = ns("throttled_usec");
    stats.cpu_throttled_periods = value(cpu_stat, "nr_throttled");
    stats.cpu_periods = value(cpu_stat, "nr_periods");
}

fn memory(stats: &mut CgroupStats, current: &str, stat: &str, max: &str) {
    stats.memory_usage_bytes = single(current);
    stats.memory_working_set_bytes = stats
        .memory_usage_bytes
        .saturating_sub(value(stat, "inactive_file"));
    stats.memory_rss_bytes = value(stat, "anon");
    stats.memory_cache_bytes = value(stat, "file");
    stats.memory_kernel_bytes = value(stat, "kernel");
    stats.memory_mapped_file_bytes = value(stat, "file_mapped");
    stats.memory_page_faults = value(stat, "pgfault");
    stats.memory_major_page_faults = value(stat, "pgmajfault");
    stats.memory_limit_bytes = single(max);
    stats.memory_available_bytes = stats
        .memory_limit_bytes
        .saturating_sub(stats.memory_working_set_bytes);
}

/// Lines of "major:minor rbytes=1 wbytes=2 rios=3 wios=4 ...", one per device.
fn io(stats: &mut CgroupStats, io_stat: &str) {
    for field in io_stat.split_whitespace() {
        let Some((key, number)) = field.split_once('=') else {
            continue;
        };
        let total = match key {
            "rbytes" => &mut stats.io_read_bytes,
            "wbytes" => &mut stats.io_write_bytes,
            "rios" => &mut stats.io_reads,
            "wios" => &mut stats.io_writes,
            _ => continue,
        };
        *total = total.saturating_add(single(number));
    }
}

/// io.stat of the cgroup at `path`, disk by disk, with their names as `sysfs` has them.
pub(crate) fn devices(path: &Path, sysfs: &Path) -> Vec<DeviceIo> {
    let stat = text(&path.join("io.stat"));
    let device = |line: &str| {
        let (number, _) = line.split_once(' ')?;
        let (major, minor) = number.split_once(':')?;
        let mut totals = CgroupStats::default();
        io(&mut totals, line);
        // sysfs: /sys/dev/block/254:0 is a link to .../block/vda
        let link = std::fs::read_link(sysfs.join("dev/block").join(number)).unwrap_or_default();
        let name = link
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        Some(DeviceIo {
            name: name.to_owned(),
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            read_bytes: totals.io_read_bytes,
            write_bytes: totals.io_write_bytes,
            reads: totals.io_reads,
            writes: totals.io_writes,
        })
    };
    stat.lines().filter_map(device).take(MAX_DEVICES).collect()
}

fn pressure(text: &str) -> Option<Pressure> {
    if text.is_empty() {
        return None;
    }
    let line = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let field = |key: &str| line.split_whitespace().find_map(|field| field.strip_prefix(key));
        Some(PressureLine {
            avg10_centi: centi(field("avg10=")?),
            avg60_centi: centi(field("avg60=")?),
            avg300_centi: centi(field("avg300=")?),
            total_us: single(field("total=")?),
        })
    };
    Some(Pressure {
        some: line("some "),
        full: line("full "),
    })
}

/// "12.34" to 1234: the kernel always prints two decimals.
fn centi(text: &str) -> u32 {
    text.replace('.', "").parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn disks_are_told_apart_and_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("dev/block")).unwrap();
        std::os::unix::fs::symlink(
            "../../devices/x/block/vda",
            directory.path().join("dev/block/254:0"),
        )
        .unwrap();
        let text = "254:0 rbytes=10 wbytes=20 rios=1 wios=2\n254:16 rbytes=5 wbytes=0\nnonsense x=1\n";
        fs::write(directory.path().join("io.stat"), text).unwrap();
        let [first, second] = devices(directory.path(), directory.path()).try_into().unwrap();
        assert_eq!((first.name.as_str(), first.minor, first.writes), ("vda", 0, 2));
        assert_eq!(
            (second.name.as_str(), second.minor, second.read_bytes),
            ("", 16, 5)
        );
    }

    #[test]
    fn files_become_numbers() {
        let directory = tempfile::tempdir().unwrap();
        for (file, text) in [
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 2\nthrottled_usec 7\n",
            ),
            ("memory.current", "1000\n"),
            ("memory.max", "4000\n"),
            (
                "memory.stat",
                "anon 300\nfile 500\nkernel 7\nfile_mapped 6\ninactive_file 200\npgfault 9\npgmajfault 1\n",
            ),
            ("memory.peak", "1500\n"),
            ("memory.swap.max", "max\n"),
            ("cgroup.procs", "1\n7\n"),
            (
                "memory.events",
                "low 0\nmax 8\noom 3\noom_kill 2\noom_group_kill 0\n",
            ),
            ("pids.current", "5\n"),
            ("pids.max", "max\n"),
            (
                "io.stat",
                "254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n254:16 rbytes=5 wbytes=0 rios=1 wios=0\n",
            ),
            (
                "cpu.pressure",
                "some avg10=1.50 avg60=0.25 avg300=0.00 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
            ),
        ] {
            fs::write(directory.path().join(file), text).unwrap();
        }
        let stats = read(directory.path());
        assert_eq!(
            (stats.cpu_usage_ns, stats.cpu_throttled_ns, stats.cpu_periods),
            (30_000, 7_000, 4)
        );
        assert_eq!(
            (stats.memory_working_set_bytes, stats.memory_available_bytes),
            (800, 3200)
        );
        assert_eq!((stats.memory_rss_bytes, stats.memory_cache_bytes), (300, 500));
        assert_eq!(
            (stats.memory_kernel_bytes, stats.memory_mapped_file_bytes),
            (7, 6)
        );
        assert_eq!(
            (stats.memory_peak_bytes, stats.memory_swap_limit_bytes),
            (1500, 0)
        );
        assert_eq!((stats.processes, stats.memory_limit_hits), (2, 8));
        assert_eq!((stats.oom_events, stats.pids, stats.pids_limit), (2, 5, 0));
        assert_eq!(
            (stats.io_read_bytes, stats.io_write_bytes, stats.io_reads),
            (15, 20, 2)
        );
        let some = stats.cpu_pressure.unwrap().some.unwrap();
        assert_eq!(
            (some.avg10_centi, some.avg60_centi, some.total_us),
            (150, 25, 123)
        );
        assert_eq!(stats.io_pressure, None);
    }

    #[test]
    fn nothing_there_is_zero() {
        assert_eq!(read(Path::new("/nonexistent")), CgroupStats::default());
    }
}
