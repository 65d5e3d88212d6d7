//! The real initramfs with a script in it that runs before the agent does, and says on the console what it sees.

use std::path::Path;

use anyhow::Result;

use crate::alone::Payload;

/// Lets the script run: a word for the command line.
pub(crate) const COMMAND_LINE: &str = "rdinit=/probe/init";

/// `payload` with `script`, lines for busybox's shell, in which `$b` is busybox; it has an empty directory /probe/proc. The agent
/// starts after it, as PID 1. The initramfs is written to `directory`.
///
/// # Errors
/// Of files.
pub(crate) fn payload(bundle: &Path, payload: &Payload, script: &str, directory: &Path) -> Result<Payload> {
    // Of several archives after one another the kernel unpacks each.
    let mut archive = fs_err::read(&payload.initramfs)?;
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(newc(&fs_err::read(bundle.join("bin/busybox"))?, script));
    let initramfs = directory.join("initramfs");
    fs_err::write(&initramfs, archive)?;
    Ok(Payload {
        initramfs,
        ..payload.clone()
    })
}

/// A newc archive (Linux, Documentation/driver-api/early-userspace/buffer-format.rst) with busybox and a script.
fn newc(busybox: &[u8], script: &str) -> Vec<u8> {
    let script = format!("#!/probe/busybox sh\nb=/probe/busybox\n{script}exec /init\n");
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
