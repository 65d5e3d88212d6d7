//! What the host has, as far as a Machine can have it: no Machine is planned larger.

/// Memory in MiB, swap not counted (sysinfo(2)).
pub(crate) fn memory_mib() -> u64 {
    let host = rustix::system::sysinfo();
    host.totalram.saturating_mul(host.mem_unit.into()) / (1024 * 1024)
}

/// Processors that this process may use; 1 when that cannot be found out.
pub(crate) fn processors() -> u8 {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u8::try_from(count).unwrap_or(u8::MAX)
}
