//! How long each of the kernel's initcalls takes, as `initcall_debug` tells on the console.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use proto::machine::{Request, Response};

use crate::alone::{Machine, Payload};

/// All that the kernel says has to fit into its own buffer until there is a console.
const TALKATIVE: &str = "initcall_debug ignore_loglevel log_buf_len=1M";

/// The longest, longest first, in microseconds, of one boot that is not quiet.
pub(crate) fn longest(vmm: &Path, payload: &Payload, most: usize) -> Result<Vec<(String, u64)>> {
    let machine = Machine::configure(payload, TALKATIVE)?;
    let mut running = machine.start(vmm)?;
    machine.ready(&mut running)?;
    let Response::Console { text, .. } = machine.ask(&Request::Console {})? else {
        bail!("the VMM does not tell what is on the console");
    };
    let mut initcalls: Vec<_> = text.lines().filter_map(parse).collect();
    ensure!(!initcalls.is_empty(), "no initcall on the console: {text}");
    initcalls.sort_by_key(|(_, us)| std::cmp::Reverse(*us));
    initcalls.truncate(most);
    Ok(initcalls)
}

/// `[    0.1234] initcall virtio_pci_driver_init+0x0/0x20 returned 0 after 1234 usecs`
fn parse(line: &str) -> Option<(String, u64)> {
    let (_, rest) = line.split_once("initcall ")?;
    let (name, rest) = rest.split_once('+')?;
    let (_, rest) = rest.split_once(" after ")?;
    Some((name.to_owned(), rest.split(' ').next()?.parse().ok()?))
}
