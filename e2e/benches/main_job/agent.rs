//! What the agent takes in a guest: a Machine of its own boots the real initramfs with one more program in it, which starts
//! the agent as PID 1 and from beside it tells its memory on the console.

use std::{path::Path, thread::sleep, time::Duration};

use anyhow::{Context, Result, bail};
use e2e::process::field_kib;
use proto::machine::{Request, Response};
use serde_json::{Value, json};

use crate::{
    alone::{COMMAND_LINE, Machine, Payload},
    probe,
};

/// Long enough for several lines after the agent is ready.
const SETTLE: Duration = Duration::from_secs(4);
const SCRIPT: &str = "$b mount -t proc proc /probe/proc\n$b mknod /dev/null c 1 3\n\
    (while $b sleep 1; do $b grep -e VmRSS -e '^Rss' /probe/proc/1/status; done) &\n";
const FIELDS: [&str; 4] = ["VmRSS", "RssAnon", "RssFile", "RssShmem"];

/// Sizes of the agent's binary and of its memory when it is ready and idle.
pub(crate) fn measure(bundle: &Path, payload: &Payload) -> Result<Value> {
    let directory = tempfile::tempdir()?;
    let payload = probe::payload(bundle, payload, SCRIPT, directory.path())?;
    let machine = Machine::configure(&payload, &format!("{COMMAND_LINE} {}", probe::COMMAND_LINE))?;
    let mut running = machine.start(&bundle.join("bin/clearpod-vmm"))?;
    machine.ready(&mut running)?;
    sleep(SETTLE);
    let Response::Console { text, .. } = machine.ask(&Request::Console {})? else {
        bail!("the VMM shows no console");
    };
    drop(running);
    let mut said = json!({"binary_bytes": fs_err::metadata(bundle.join("bin/clearpod-agent"))?.len()});
    for field in FIELDS {
        let newest = text.lines().rev().find_map(|line| field_kib(line, field));
        said[format!("{field}_kib")] = newest
            .with_context(|| format!("{field} of the agent is not on the console:\n{text}"))?
            .into();
    }
    Ok(said)
}
