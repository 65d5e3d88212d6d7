//! What the agent takes in a guest: a Machine of its own boots the real initramfs with one more program in it, which starts
//! the agent as PID 1 and from beside it tells its memory on the console.

use std::{path::Path, thread::sleep, time::Duration};

use anyhow::{Context, Result, bail};
use e2e::process::field_kib;
use proto::machine::{Request, Response};
use serde_json::{Value, json};

use crate::alone::{COMMAND_LINE, Machine, Payload};

/// Long enough for several lines after the agent is ready.
const SETTLE: Duration = Duration::from_secs(4);
const FIELDS: [&str; 4] = ["VmRSS", "RssAnon", "RssFile", "RssShmem"];

/// Sizes of the agent's binary and of its memory when it is ready and idle.
pub(crate) fn measure(bundle: &Path, payload: &Payload) -> Result<Value> {
    let directory = tempfile::tempdir()?;
    // Of several archives after one another the kernel unpacks each.
    let mut archive = fs_err::read(&payload.initramfs)?;
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(probe(&fs_err::read(bundle.join("bin/busybox"))?));
    let initramfs = directory.path().join("initramfs");
    fs_err::write(&initramfs, archive)?;
    let payload = Payload {
        initramfs,
        ..payload.clone()
    };
    let machine = Machine::configure(&payload, &format!("{COMMAND_LINE} rdinit=/probe/init"))?;
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

/// A newc archive (Linux, Documentation/driver-api/early-userspace/buffer-format.rst) with busybox and a script.
fn probe(busybox: &[u8]) -> Vec<u8> {
    let script = "#!/probe/busybox sh\nb=/probe/busybox\n$b mount -t proc proc /probe/proc\n$b mknod /dev/null c 1 3\n\
        (while $b sleep 1; do $b grep -e VmRSS -e '^Rss' /probe/proc/1/status; done) &\nexec /init\n";
    let mut archive = Vec::new();
    for (name, mode, content) in [
        ("probe", 0o040_755, &[][..]),
        ("probe/proc", 0o040_755, &[]),
        ("probe/busybox", 0o100_755, busybox),
        ("probe/init", 0o100_755, script.as_bytes()),
        ("TRAILER!!!", 0, &[]),
    ] {
        append(&mut archive, name, mode, content);
    }
    archive
}

fn append(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    // Inode (its place in the archive), mode, uid, gid, links, time, size, device and rdevice, length of the name, checksum.
    let (inode, size, name_size) = (archive.len(), content.len(), name.len() + 1);
    let header = format!(
        "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}{name}\0",
        0, 1
    );
    for part in [header.as_bytes(), content] {
        archive.extend(part);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
}
