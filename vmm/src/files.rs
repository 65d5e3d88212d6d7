//! Files that the daemon prepared: a path that we open, or a descriptor that we were given. Each descriptor is taken
//! once.

#![expect(unsafe_code, reason = "an inherited descriptor is a number until it is owned")]

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proto::machine::FileSource;

/// Why a file cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("cannot open {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("descriptor {0} is not open, or is one of the three standard ones")]
    NotInherited(u32),
    #[error("descriptor {0} is used twice")]
    UsedTwice(u32),
    #[error("cannot make {path}")]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("descriptor {0} is that of no empty file")]
    NotEmpty(u32),
    #[error("descriptor {index} does not exist: {count} came with the request")]
    NotSent { index: u32, count: usize },
}

/// Descriptors that this process may have open: one for each of vsock's connections and for each device of a full bus, and
/// then some. Services often start with 1,024, the number of connections alone.
const OPEN_FILES: u64 = 4096;

/// Raises the soft limit of open files (getrlimit(2)) as far as [`OPEN_FILES`] and the hard limit allow.
pub(crate) fn allow_many() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = OPEN_FILES.min(hard);
        if soft >= wanted {
            return Ok(());
        }
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
    });
    if let Err(error) = raised {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
}

/// Where `FileSource::Fd` points to.
#[derive(Debug)]
pub(crate) enum Descriptors {
    /// Numbers of descriptors that the process was started with; the set holds those already taken.
    Inherited(BTreeSet<u32>),
    /// Positions among those that came with a request.
    Sent(Vec<Option<OwnedFd>>),
}

impl Descriptors {
    /// At start.
    pub(crate) fn inherited() -> Self {
        Self::Inherited(BTreeSet::new())
    }

    /// With a request.
    pub(crate) fn sent(descriptors: Vec<OwnedFd>) -> Self {
        Self::Sent(descriptors.into_iter().map(Some).collect())
    }

    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self::Sent(Vec::new())
    }

    fn take(&mut self, number: u32) -> Result<File, FileError> {
        match self {
            Self::Inherited(taken) => {
                if !taken.insert(number) {
                    return Err(FileError::UsedTwice(number));
                }
                adopt(number).map(File::from)
            }
            Self::Sent(descriptors) => {
                let count = descriptors.len();
                let position = descriptors.get_mut(number as usize);
                let descriptor = position.ok_or(FileError::NotSent { index: number, count })?;
                descriptor
                    .take()
                    .map(File::from)
                    .ok_or(FileError::UsedTwice(number))
            }
        }
    }
}

/// The file behind `source`; for a path, opened for reading and, if `writable`, for writing.
pub(crate) fn open(
    source: &FileSource,
    descriptors: &mut Descriptors,
    writable: bool,
) -> Result<File, FileError> {
    match source {
        FileSource::Path(path) => {
            OpenOptions::new()
                .read(true)
                .write(writable)
                .open(path)
                .map_err(|source| FileError::Open {
                    path: path.clone(),
                    source,
                })
        }
        FileSource::Fd(number) => descriptors.take(*number),
    }
}

/// A new file for `source`, to be written: a path that does not exist yet, or a descriptor of an empty file.
pub(crate) fn create(source: &FileSource, descriptors: &mut Descriptors) -> Result<File, FileError> {
    match source {
        FileSource::Path(path) => {
            let made = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(path);
            made.map_err(|source| FileError::Create {
                path: path.clone(),
                source,
            })
        }
        FileSource::Fd(number) => {
            let file = descriptors.take(*number)?;
            let empty = file
                .metadata()
                .is_ok_and(|found| found.is_file() && found.len() == 0);
            empty.then_some(file).ok_or(FileError::NotEmpty(*number))
        }
    }
}

/// Makes an inherited number ours, and closes it on exec.
fn adopt(number: u32) -> Result<OwnedFd, FileError> {
    let standard = 0..=2;
    let raw = RawFd::try_from(number).map_err(|_| FileError::NotInherited(number))?;
    if standard.contains(&raw) || !is_open(raw) {
        return Err(FileError::NotInherited(number));
    }
    // SAFETY: the number is open, and nobody in this process owns it: the configuration is read before anything that
    // opens descriptors which live on, and `Descriptors` hands out each number once.
    let owned = unsafe { OwnedFd::from_raw_fd(raw) };
    fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|_| FileError::NotInherited(number))?;
    Ok(owned)
}

fn is_open(raw: RawFd) -> bool {
    // SAFETY: F_GETFD takes no pointer and changes nothing; a number that is not open is EBADF.
    unsafe { libc::fcntl(raw, libc::F_GETFD) >= 0 }
}
