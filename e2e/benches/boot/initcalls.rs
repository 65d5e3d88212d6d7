//! How long each of the kernel's initcalls takes, as `initcall_debug` tells in the kernel's log.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use proto::machine::{Request, Response};

use crate::{
    alone::{Machine, Payload},
    probe,
};

/// Quiet: what is written to the console takes longer than most initcalls.
const COMMAND_LINE: &str = "quiet initcall_debug log_buf_len=1M";
/// `[    0.1234] initcall virtio_pci_driver_init+0x0/0x20 returned 0 after 1234 usecs` as `INITCALL 1234 virtio_pci_driver_init`,
/// longest first.
const SCRIPT: &str = "$b dmesg | $b sed -n 's/.*initcall \\([^+]*\\)+.* after \\([0-9]*\\) .*/INITCALL \\2 \\1/p' | \
    $b sort -k 2 -nr";

/// The longest, longest first, in microseconds, of one boot.
pub(crate) fn longest(bundle: &Path, payload: &Payload, most: usize) -> Result<Vec<(String, u64)>> {
    let directory = tempfile::tempdir()?;
    // No more of them: each character is an exit.
    let script = format!("{SCRIPT} | $b head -n {most}\n");
    let payload = probe::payload(bundle, payload, &script, directory.path())?;
    let machine = Machine::configure(&payload, &format!("{COMMAND_LINE} {}", probe::COMMAND_LINE))?;
    let mut running = machine.start(&bundle.join("bin/clearpod-vmm"))?;
    machine.ready(&mut running)?;
    let Response::Console { text, .. } = machine.ask(&Request::Console {})? else {
        bail!("the VMM does not tell what is on the console");
    };
    let initcalls: Vec<_> = text.lines().filter_map(parse).collect();
    ensure!(!initcalls.is_empty(), "no initcall on the console: {text}");
    Ok(initcalls)
}

fn parse(line: &str) -> Option<(String, u64)> {
    let (us, name) = line.strip_prefix("INITCALL ")?.split_once(' ')?;
    Some((name.trim_end().to_owned(), us.parse().ok()?))
}
