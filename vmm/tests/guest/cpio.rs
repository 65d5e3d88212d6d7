//! A newc archive (Linux, Documentation/driver-api/early-userspace/buffer-format.rst) with busybox and an init script.

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Busybox in /bin and a script that mounts what every script needs, then goes on with `script`.
pub(crate) fn with_init(busybox: &[u8], script: &str) -> Vec<u8> {
    let init = format!(
        "#!/bin/busybox sh\nexport PATH=/bin\n/bin/busybox --install -s /bin\n\
         mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev\n{script}\n"
    );
    let mut archive = Vec::new();
    for directory in ["bin", "dev", "mnt", "proc", "sys"] {
        append(&mut archive, directory, DIRECTORY, &[]);
    }
    append(&mut archive, "bin/busybox", PROGRAM, busybox);
    append(&mut archive, "init", PROGRAM, init.as_bytes());
    append(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

fn append(archive: &mut Vec<u8>, name: &str, mode: u32, contents: &[u8]) {
    archive.extend(b"070701");
    let inode = archive.len() as u32;
    let name_length = name.len() as u32 + 1;
    // Inode, mode, uid, gid, links, time, size, device and rdevice numbers, length of the name, checksum.
    let fields = [
        inode,
        mode,
        0,
        0,
        1,
        0,
        contents.len() as u32,
        0,
        0,
        0,
        0,
        name_length,
        0,
    ];
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(contents);
    archive.resize(archive.len().next_multiple_of(4), 0);
}
