//! Memory in which the emulated processor keeps nothing.

use std::hint::black_box;

use anyhow::Result;
use e2e::{is_emulated, process::field_kib};

/// More than two guests leave behind.
const ENOUGH: usize = 2 << 30;
const PAGE: usize = 4096;

/// Writes once to the memory that the next guest gets, on an emulated node only. QEMU's TCG keeps its translations of code by
/// physical page, and as long as it has some of a page, each write to it looks through all of them: where an earlier guest had
/// its kernel, clearing 2 MiB takes 50 to 200 ms instead of 1, so a boot took 0 to 500 ms more, by chance. Hardware has no
/// such thing.
///
/// # Errors
/// Of /proc.
pub(crate) fn forget_earlier_guests() -> Result<()> {
    if !is_emulated() {
        return Ok(());
    }
    let meminfo = fs_err::read_to_string("/proc/meminfo")?;
    let free = field_kib(&meminfo, "MemFree").map_or(0, |kib| usize::try_from(kib).unwrap_or(0) << 10);
    let mut memory = vec![0_u8; ENOUGH.min(free / 2)];
    for page in memory.chunks_mut(PAGE) {
        if let Some(byte) = page.first_mut() {
            *byte = 1;
        }
    }
    black_box(&memory);
    Ok(())
}
