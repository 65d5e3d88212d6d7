//! The host's clock of the timeline.

/// `CLOCK_MONOTONIC` in nanoseconds; 0 if the kernel has no such clock.
pub(crate) fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}
