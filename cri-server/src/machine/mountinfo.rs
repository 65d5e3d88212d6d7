//! What is mounted in the daemon's namespace: `/proc/thread-self/mountinfo`, proc_pid_mountinfo(5), as far as it is needed.

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountPoint {
    pub(crate) id: u64,
    /// Directory of its file system that is mounted.
    pub(crate) root: PathBuf,
    /// Where.
    pub(crate) at: PathBuf,
    /// Mounts of others appear below it.
    pub(crate) receives: bool,
}

/// All of them, parents first.
pub(crate) fn all() -> io::Result<Vec<MountPoint>> {
    Ok(parse(&fs_err::read("/proc/thread-self/mountinfo")?))
}

/// Those strictly below `directory`, an absolute path without links.
pub(crate) fn below<'m>(mounts: &'m [MountPoint], directory: &'m Path) -> impl Iterator<Item = &'m Path> {
    let inside = move |mount: &'m MountPoint| mount.at.strip_prefix(directory).ok();
    mounts
        .iter()
        .filter_map(inside)
        .filter(|relative| !relative.as_os_str().is_empty())
}

/// A line that is not understood is left out: a newer kernel may add such, and none of ours is among them.
fn parse(text: &[u8]) -> Vec<MountPoint> {
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

fn line(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let (root, at) = (fields.nth(2)?, fields.next()?);
    let mut optional = fields.skip(1).take_while(|field| *field != b"-");
    Some(MountPoint {
        id,
        root: unescaped(root),
        at: unescaped(at),
        receives: optional.any(|field| field.starts_with(b"shared:") || field.starts_with(b"master:")),
    })
}

/// Blanks and backslashes are written as three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_their_escapes() {
        let text = b"22 27 0:21 / /proc rw - proc proc rw\n\
            36 35 98:0 /a\\040b /mnt\\134x rw,noatime shared:7 master:1 - ext4 /dev/root rw\n\
            junk\n\
            37 36 0:5 / /mnt\\134x/below rw master:2 - tmpfs shared:no rw\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[0].at, Path::new("/proc"));
        assert!(!mounts[0].receives);
        assert_eq!(
            (mounts[1].id, mounts[1].root.as_path(), mounts[1].at.as_path()),
            (36, Path::new("/a b"), Path::new("/mnt\\x"))
        );
        assert!(mounts[1].receives && mounts[2].receives);
        let inside: Vec<&Path> = below(&mounts, Path::new("/mnt\\x")).collect();
        assert_eq!(inside, [Path::new("below")]);
    }

    #[test]
    fn this_process_has_a_root() {
        assert!(all().unwrap().iter().any(|mount| mount.at == Path::new("/")));
    }
}
