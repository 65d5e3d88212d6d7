//! Where the files of one Machine are. Names only: who writes and reads them is said beside each.

use std::path::{Path, PathBuf};

/// Longest id of a Machine, bytes; a directory name, and an id in the stdio protocol.
const MAX_ID: usize = 128;

/// The directory of one Machine, `<root>/<id>/`, mode 0700.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    id: String,
    directory: PathBuf,
}

/// Why a Machine's directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The id would not be one plain directory name.
    #[error(
        "machine id {id:?} is not 1 to {MAX_ID} letters, digits, '-', '_' or '.', beginning with a letter or digit"
    )]
    Id {
        /// What was given.
        id: String,
    },
    /// A file operation failed; the source names it.
    #[error("{operation} the machine directory {}", directory.display())]
    Io {
        /// "create", "remove", "list"
        operation: &'static str,
        /// Which directory.
        directory: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
}

impl Layout {
    /// Name of the control socket in the Machine's directory; the VMM makes it (`MachineConfig::control`).
    pub const CONTROL: &'static str = "control.sock";
    /// Name of the vsock socket in the Machine's directory; the VMM makes it (`Vsock::socket`).
    pub const VSOCK: &'static str = "vsock.sock";
    /// Name of the file that the VMM writes the console ring to at its end (`Console::dump`).
    pub const CONSOLE_LOG: &'static str = "console.log";
    /// Name of the shim's configuration in a host pod's directory.
    pub const SHIM_CONFIG: &'static str = "shim.json";
    /// Name of the scratch disk.
    pub const SCRATCH: &'static str = "scratch.img";

    /// The directory of Machine `id` below `root` (`/run/clearpod/machines`); nothing is made yet.
    ///
    /// # Errors
    /// [`LayoutError::Id`] when `id` is no plain name.
    pub fn new(root: &Path, id: &str) -> Result<Self, LayoutError> {
        let plain = id
            .bytes()
            .enumerate()
            .all(|(at, byte)| byte.is_ascii_alphanumeric() || (at > 0 && matches!(byte, b'-' | b'_' | b'.')));
        if !plain || id.is_empty() || id.len() > MAX_ID {
            return Err(LayoutError::Id { id: id.to_owned() });
        }
        Ok(Self {
            id: id.to_owned(),
            directory: root.join(id),
        })
    }

    /// Every Machine directory below `root`; entries that are no such directory are passed over. None when `root` is absent.
    ///
    /// # Errors
    /// When `root` cannot be read.
    pub fn list(root: &Path) -> Result<Vec<Self>, LayoutError> {
        let failed = |source| LayoutError::Io {
            operation: "list",
            directory: root.to_owned(),
            source,
        };
        let entries = match fs_err::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if let (true, Some(name)) = (is_directory, entry.file_name().to_str()) {
                found.extend(Self::new(root, name).ok());
            }
        }
        Ok(found)
    }

    /// Makes the directory (mode 0700) and its parents. Making it again is fine.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn create(&self) -> Result<(), LayoutError> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(|source| self.failed("create", source))
    }

    /// Removes the directory and what is in it. Removing it again is fine.
    ///
    /// # Errors
    /// When the file system refuses, or when something is mounted in it: that is not ours to remove.
    pub fn remove(&self) -> Result<(), LayoutError> {
        let mounts = super::mountinfo::all().map_err(|source| self.failed("look for mounts in", source))?;
        let mounted = fs_err::canonicalize(&self.directory)
            .is_ok_and(|directory| super::mountinfo::below(&mounts, &directory).next().is_some());
        if mounted {
            let busy = std::io::Error::from(std::io::ErrorKind::ResourceBusy);
            return Err(self.failed("remove, with something mounted in it,", busy));
        }
        match fs_err::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(self.failed("remove", error)),
            _ => Ok(()),
        }
    }

    fn failed(&self, operation: &'static str, source: std::io::Error) -> LayoutError {
        LayoutError::Io {
            operation,
            directory: self.directory.clone(),
            source,
        }
    }

    /// The Machine's id, which is its sandbox's.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory itself, the VMM's working directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// `machine.json`: `MachineConfig`, written by the launcher, read by the VMM.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.directory.join("machine.json")
    }

    /// `shim.json`: `HostConfig`, written by the launcher, read by the shim of a host pod.
    #[must_use]
    pub fn shim_config(&self) -> PathBuf {
        self.directory.join(Self::SHIM_CONFIG)
    }

    /// `process.json`: which process is the VMM or the shim, written and read by the launcher.
    #[must_use]
    pub fn process(&self) -> PathBuf {
        self.directory.join("process.json")
    }

    /// The control socket.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.directory.join(Self::CONTROL)
    }

    /// The socket through which guest ports are reached.
    #[must_use]
    pub fn vsock(&self) -> PathBuf {
        self.directory.join(Self::VSOCK)
    }

    /// The socket that the VMM connects to when the guest connects out to `port`.
    #[must_use]
    pub fn vsock_port(&self, port: u32) -> PathBuf {
        self.directory.join(format!("{}_{port}", Self::VSOCK))
    }

    /// Where volumes of the host are bound for the guest.
    #[must_use]
    pub fn shared(&self) -> PathBuf {
        self.directory.join("shared")
    }

    /// `virtiofsd.json`: which process serves [`Self::shared`].
    #[must_use]
    pub fn shares_process(&self) -> PathBuf {
        self.directory.join("virtiofsd.json")
    }

    /// Its standard output and error.
    #[must_use]
    pub fn shares_log(&self) -> PathBuf {
        self.directory.join("virtiofsd.log")
    }

    /// The socket over which it is connected to; gone when it is.
    #[must_use]
    pub fn shares_socket(&self) -> PathBuf {
        self.directory.join("fs.sock")
    }

    /// Standard output and error of the VMM, or of the shim.
    #[must_use]
    pub fn vmm_log(&self) -> PathBuf {
        self.directory.join("vmm.log")
    }

    /// The console ring, after the Machine's end.
    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        self.directory.join(Self::CONSOLE_LOG)
    }

    /// The scratch disk when it lies in this directory; a daemon with a disk-backed state root keeps it there instead,
    /// because `/run` is memory.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.directory.join(Self::SCRATCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_would_leave_the_root_is_refused() {
        let long = "x".repeat(MAX_ID + 1);
        for id in [
            "",
            ".",
            "..",
            "a/b",
            "../a",
            "-a",
            "a b",
            "a\0",
            "ä",
            long.as_str(),
        ] {
            assert!(
                matches!(Layout::new(Path::new("/r"), id), Err(LayoutError::Id { .. })),
                "{id:?}"
            );
        }
        assert!(Layout::new(Path::new("/r"), &"f".repeat(64)).is_ok());
    }

    #[test]
    fn directories_are_made_listed_and_removed_and_again() {
        let root = tempfile::tempdir().unwrap();
        let machines = root.path().join("machines");
        assert_eq!(Layout::list(&machines).unwrap(), []);
        let layout = Layout::new(&machines, "a1").unwrap();
        layout.create().unwrap();
        layout.create().unwrap();
        fs_err::write(layout.vmm_log(), "x").unwrap();
        fs_err::write(machines.join("stray file"), "x").unwrap();
        assert_eq!(Layout::list(&machines).unwrap(), std::slice::from_ref(&layout));
        layout.remove().unwrap();
        layout.remove().unwrap();
        assert_eq!(Layout::list(&machines).unwrap(), []);
    }
}
