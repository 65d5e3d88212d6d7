//! What the host has, as far as a Machine can have it: no Machine is planned larger.

/// Memory in MiB, swap not counted (sysinfo(2)).
pub(crate) fn memory_mib() -> u64 {
    let host = rustix::system::sysinfo();
    host.totalram.saturating_mul(host.mem_unit.into()) / (1024 * 1024)
}

/// Memory that can be had without swapping, MiB; `None` when the kernel does not say (`MemAvailable`, proc_meminfo(5)).
pub(crate) fn available_mib() -> Option<u64> {
    available_of(&fs_err::read_to_string("/proc/meminfo").ok()?)
}

fn available_of(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

/// Processors that this process may use; 1 when that cannot be found out.
pub(crate) fn processors() -> u8 {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u8::try_from(count).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_is_told_or_not() {
        let meminfo =
            "MemTotal:       24598144 kB\nMemFree:         1048576 kB\nMemAvailable:    2097152 kB\n";
        assert_eq!(available_of(meminfo), Some(2048));
        assert_eq!(available_of("MemTotal: 1 kB\n"), None);
        assert_eq!(available_of("MemAvailable: many kB\n"), None);
        assert!(available_mib().is_some_and(|mib| mib <= memory_mib()));
    }
}
