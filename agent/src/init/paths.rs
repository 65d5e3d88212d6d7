//! Paths inside a container's root: resolved so that no symbolic link of an image or a volume leads out of it.
//!
//! Everything is opened relative to the root with openat2(2). Missing parts are created one component at a time, and
//! links are followed by hand, so that a link whose target does not exist yet (`/var/run -> /run`) is created, too.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// As many links as the kernel follows, path_resolution(7).
const MAX_LINKS: u32 = 40;
/// PATH_MAX: longer paths are refused before anything is created.
const MAX_PATH: usize = 4096;

/// What the last component is to be when it does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    Directory,
    File,
}

/// Opens `path` below `root`; symbolic links are followed as if `root` were `/`.
///
/// # Errors
/// What openat2(2) answers.
pub(crate) fn open(root: impl AsFd, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(
        root,
        relative(path),
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )?)
}

/// Opens `path` below `root` and refuses any symbolic link in it.
///
/// # Errors
/// What openat2(2) answers: ELOOP for a link.
pub(crate) fn open_exact(root: impl AsFd, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    Ok(rustix::fs::openat2(
        root,
        relative(path),
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )?)
}

/// Opens (`O_PATH`) `path` below `root`, creating what is missing.
///
/// # Errors
/// What openat2(2), mkdirat(2) and readlinkat(2) answer; ELOOP for too many links, ENAMETOOLONG.
pub(crate) fn open_or_create(root: BorrowedFd<'_>, path: &str, missing: Missing) -> io::Result<OwnedFd> {
    if path.len() > MAX_PATH {
        return Err(Errno::NAMETOOLONG.into());
    }
    let mut walk = Walk {
        root,
        resolved: Vec::new(),
        rest: components(path),
        links: 0,
    };
    let mut here = rustix::io::fcntl_dupfd_cloexec(root, 0)?;
    while let Some(name) = walk.rest.pop_front() {
        let last = if walk.rest.is_empty() {
            missing
        } else {
            Missing::Directory
        };
        here = walk.step(&here, name, last)?;
    }
    Ok(here)
}

struct Walk<'a> {
    root: BorrowedFd<'a>,
    /// Components of where we are: none of them a link.
    resolved: Vec<String>,
    rest: VecDeque<String>,
    links: u32,
}

impl Walk<'_> {
    fn step(&mut self, here: &OwnedFd, name: String, missing: Missing) -> io::Result<OwnedFd> {
        if name == ".." {
            self.resolved.pop();
            return self.reopen();
        }
        let next = match open_component(here, &name) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                create_component(here, &name, missing)?;
                open_component(here, &name)?
            }
            opened => opened?,
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&next)?.st_mode);
        if kind != FileType::Symlink {
            self.resolved.push(name);
            return Ok(next);
        }
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::LOOP.into());
        }
        let target = rustix::fs::readlinkat(here, name.as_str(), Vec::new())?;
        let target = target.into_string().map_err(|_| Errno::ILSEQ)?;
        if target.starts_with('/') {
            self.resolved.clear();
        }
        for component in components(&target).into_iter().rev() {
            self.rest.push_front(component);
        }
        self.reopen()
    }

    fn reopen(&self) -> io::Result<OwnedFd> {
        open_exact(
            self.root,
            &self.resolved.join("/"),
            OFlags::PATH | OFlags::DIRECTORY,
        )
    }
}

/// One component, not followed; mounts are crossed.
fn open_component(directory: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, name, flags, Mode::empty())?)
}

fn create_component(directory: impl AsFd, name: &str, missing: Missing) -> io::Result<()> {
    let created = match missing {
        Missing::Directory => rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755)),
        Missing::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match created {
        // Somebody else who shares the volume was faster.
        Err(Errno::EXIST) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn components(path: &str) -> VecDeque<String> {
    path.split('/')
        .filter(|name| !name.is_empty() && *name != ".")
        .map(str::to_owned)
        .collect()
}

/// openat2 takes an absolute path below IN_ROOT as well, but an empty one is ENOENT.
fn relative(path: &str) -> &str {
    match path.trim_start_matches('/') {
        "" => ".",
        rest => rest,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let directory = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(directory.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        (directory, fd)
    }

    #[test]
    fn what_is_missing_is_created_through_dangling_links() {
        let (directory, root) = root();
        fs::create_dir(directory.path().join("var")).unwrap();
        symlink("/run", directory.path().join("var/run")).unwrap();
        open_or_create(root.as_fd(), "/var/run/secrets/token", Missing::File).unwrap();
        assert!(directory.path().join("run/secrets/token").is_file());
    }

    #[test]
    fn links_that_point_out_of_the_root_stay_inside() {
        let (directory, root) = root();
        symlink("../../../../../../tmp", directory.path().join("up")).unwrap();
        symlink("/etc", directory.path().join("absolute")).unwrap();
        open_or_create(root.as_fd(), "/up/made", Missing::Directory).unwrap();
        open_or_create(root.as_fd(), "/absolute/made", Missing::Directory).unwrap();
        open_or_create(root.as_fd(), "/../../over", Missing::Directory).unwrap();
        for made in ["tmp/made", "etc/made", "over"] {
            assert!(directory.path().join(made).is_dir(), "{made}");
        }
    }

    #[test]
    fn a_circle_of_links_ends() {
        let (directory, root) = root();
        symlink("b", directory.path().join("a")).unwrap();
        symlink("a", directory.path().join("b")).unwrap();
        let error = open_or_create(root.as_fd(), "/a/x", Missing::Directory).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn an_exact_path_refuses_links() {
        let (directory, root) = root();
        fs::create_dir(directory.path().join("elsewhere")).unwrap();
        symlink("elsewhere", directory.path().join("proc")).unwrap();
        let error = open_exact(&root, "/proc", OFlags::PATH).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        open_exact(&root, "/elsewhere", OFlags::PATH).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_an_error_and_not_replaced() {
        let (directory, root) = root();
        fs::write(directory.path().join("file"), "kept").unwrap();
        assert!(open_or_create(root.as_fd(), "/file/below", Missing::Directory).is_err());
        assert_eq!(fs::read(directory.path().join("file")).unwrap(), b"kept");
    }
}
