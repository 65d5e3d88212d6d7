//! The guest's clocks as numbers of nanoseconds.

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

const NANOS: u64 = 1_000_000_000;

/// CLOCK_REALTIME.
pub(crate) fn realtime_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Realtime))
}

/// CLOCK_BOOTTIME: since the kernel started, suspension included.
pub(crate) fn boottime_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Boottime))
}

/// Sets CLOCK_REALTIME.
///
/// # Errors
/// What clock_settime(2) answers.
pub(crate) fn set_realtime(ns: u64) -> rustix::io::Result<()> {
    let time = Timespec {
        tv_sec: i64::try_from(ns / NANOS).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ns % NANOS).unwrap_or(0),
    };
    clock_settime(ClockId::Realtime, time)
}

/// Moves CLOCK_REALTIME by a difference; what it is then.
///
/// # Errors
/// What clock_settime(2) answers: EINVAL for a time before boot.
pub(crate) fn move_realtime(by_ns: i64) -> rustix::io::Result<u64> {
    if by_ns != 0 {
        set_realtime(realtime_ns().saturating_add_signed(by_ns))?;
    }
    Ok(realtime_ns())
}

/// Clocks that are read here do not run before 1970 or before boot.
fn nanoseconds(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(NANOS)
        .saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}
