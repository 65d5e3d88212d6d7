//! A process's terminal: a pair from the container's own devpts, so that `/dev/pts` and `tty` agree inside.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use proto::agent::v1::ErrorCode;
use rustix::fs::{FileType, OFlags, major, minor};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::error::{Context as _, Failure};
use crate::init::mounts;
use crate::init::order::TerminalSize;
use crate::init::paths::{self, Missing};

/// A pseudo terminal: the master goes to the agent.
#[derive(Debug)]
pub(crate) struct Terminal {
    pub(crate) master: OwnedFd,
    pub(crate) slave: OwnedFd,
}

/// Opens a terminal in the devpts below `root`.
///
/// # Errors
/// [`ErrorCode::System`] when there is no devpts at /dev/pts, or something else in its place.
pub(crate) fn open(root: BorrowedFd<'_>, size: TerminalSize) -> Result<Terminal, Failure> {
    let open = || -> io::Result<Terminal> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = paths::open(root, "/dev/pts/ptmx", flags)?;
        // In a running container /dev is the container's: what was found there may be anything.
        let stat = rustix::fs::fstat(&master)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::CharacterDevice || (major(stat.st_rdev), minor(stat.st_rdev)) != PTMX {
            return Err(io::Error::from_raw_os_error(libc::ENOTTY));
        }
        rustix::pty::unlockpt(&master)?;
        let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, peer)?;
        rustix::termios::tcsetwinsize(&master, winsize(size))?;
        Ok(Terminal { master, slave })
    };
    open().context(ErrorCode::System, || "open a terminal in /dev/pts".to_owned())
}

/// devices.txt: /dev/ptmx.
const PTMX: (u32, u32) = (5, 2);

/// Shows the terminal as /dev/console.
///
/// # Errors
/// [`ErrorCode::Mount`].
pub(crate) fn attach_console(root: BorrowedFd<'_>, terminal: &Terminal) -> Result<(), Failure> {
    mounts::clone_tree(&terminal.slave)
        .and_then(|source| {
            let target = paths::open_or_create(root, "/dev/console", Missing::File)?;
            mounts::place(&source, &target)
        })
        .context(ErrorCode::Mount, || {
            "mount the terminal at /dev/console".to_owned()
        })
}

/// Makes the terminal the controlling one of this session.
///
/// # Errors
/// [`ErrorCode::System`] when the process leads no session.
pub(crate) fn control(terminal: &Terminal) -> Result<(), Failure> {
    rustix::process::ioctl_tiocsctty(&terminal.slave).context(ErrorCode::System, || {
        "make the terminal the controlling one".to_owned()
    })
}

/// As the terminal's ioctls want it.
pub(crate) fn winsize(size: TerminalSize) -> Winsize {
    Winsize {
        ws_row: size.height,
        ws_col: size.width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
