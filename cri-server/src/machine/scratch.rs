//! The writable disk of a sandbox: a sparse ext4 image, copied from a template that is made once per size.
//!
//! No journal: the disk dies with its Machine, so there is no crash to recover from, and a journal would write everything
//! twice and start out as allocated space. The template says that its inode tables are zero already (they are holes), or
//! else the guest's kernel would fill every one of them in the background after the first mount: 160 MiB for a 10 GiB disk
//! that nobody uses. A template of 10 GiB takes about 230 KiB on the host.

use std::{
    fs::File,
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use tokio::{process::Command, sync::OnceCell, time::timeout};

/// mkfs.ext4 of a sparse file takes some 20 ms.
const MKFS_DEADLINE: Duration = Duration::from_secs(60);
/// What is different between templates besides their size; change it whenever the options change.
const FORMAT: u32 = 1;
/// Smallest disk that ext4 is worth on, bytes.
const MIN_SIZE: u64 = 4 * 1024 * 1024;
const MIB: u64 = 1024 * 1024;

/// Makes scratch disks of one size.
#[derive(Debug)]
pub struct ScratchTemplate {
    directory: PathBuf,
    size_bytes: u64,
    made: OnceCell<PathBuf>,
}

/// Why there is no scratch disk.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// The configured size cannot be.
    #[error("a scratch disk of {size_bytes} bytes is less than {MIN_SIZE} bytes or no multiple of 1 MiB")]
    Size {
        /// What was asked for.
        size_bytes: u64,
    },
    /// A file operation failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was done.
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// mkfs.ext4 ran and failed.
    #[error("mkfs.ext4 failed ({status}): {message}")]
    Mkfs {
        /// How it ended.
        status: String,
        /// What it wrote to standard error.
        message: String,
    },
}

impl ScratchTemplate {
    /// Templates are kept in `directory` (made when needed); disks hold `size_bytes`, a multiple of 1 MiB.
    ///
    /// # Errors
    /// [`ScratchError::Size`]
    pub fn new(directory: PathBuf, size_bytes: u64) -> Result<Self, ScratchError> {
        if size_bytes < MIN_SIZE || !size_bytes.is_multiple_of(MIB) {
            return Err(ScratchError::Size { size_bytes });
        }
        Ok(Self {
            directory,
            size_bytes,
            made: OnceCell::new(),
        })
    }

    /// Makes the template if there is none. [`Self::make_disk`] does so too; the first sandbox is quicker when this ran.
    ///
    /// # Errors
    /// [`ScratchError`]; the next call tries again.
    pub async fn prepare(&self) -> Result<&Path, ScratchError> {
        let made = self.made.get_or_try_init(|| async {
            let name = format!("scratch-v{FORMAT}-{}MiB.ext4", self.size_bytes / MIB);
            let template = self.directory.join(name);
            if !fs_err::tokio::try_exists(&template).await.unwrap_or(false) {
                self.make_template(&template).await?;
            }
            Ok(template)
        });
        Ok(made.await?)
    }

    /// Makes a disk at `path`, where none may be; its directory exists.
    ///
    /// # Errors
    /// [`ScratchError`]; no file is left behind then.
    pub async fn make_disk(&self, path: &Path) -> Result<(), ScratchError> {
        let template = self.prepare().await?.to_owned();
        let target = path.to_owned();
        let copied = tokio::task::spawn_blocking(move || {
            let copied = copy_sparse(&template, &target);
            if copied
                .as_ref()
                .is_err_and(|error| error.kind() != io::ErrorKind::AlreadyExists)
            {
                // Only our own half-made file; that there is none is fine.
                drop(std::fs::remove_file(&target));
            }
            copied
        });
        copied
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(|source| ScratchError::Io {
                operation: "make the scratch disk",
                path: path.to_owned(),
                source,
            })
    }

    async fn make_template(&self, template: &Path) -> Result<(), ScratchError> {
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| ScratchError::Io {
                operation,
                path,
                source,
            }
        };
        fs_err::tokio::create_dir_all(&self.directory)
            .await
            .map_err(failed("create", &self.directory))?;
        // Renamed into place when whole: a killed daemon leaves a template that is not used and is overwritten.
        let unfinished = template.with_extension("new");
        let blank = File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&unfinished)
            .map_err(failed("create", &unfinished))?;
        blank
            .set_len(self.size_bytes)
            .map_err(failed("size", &unfinished))?;
        mkfs(&unfinished).await?;
        tokio::task::spawn_blocking(move || blank.sync_all())
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(failed("write out", &unfinished))?;
        fs_err::tokio::rename(&unfinished, template)
            .await
            .map_err(failed("put in place", template))
    }
}

async fn mkfs(image: &Path) -> Result<(), ScratchError> {
    let failed = |source| ScratchError::Io {
        operation: "run mkfs.ext4 (package e2fsprogs, 1.47 or newer) on",
        path: image.to_owned(),
        source,
    };
    let run = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-b", "4096", "-m", "0"])
        .args(["-O", "^has_journal,^resize_inode"])
        .args(["-E", "nodiscard,assume_storage_prezeroed=1,root_owner=0:0"])
        .arg(image)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(MKFS_DEADLINE, run)
        .await
        .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
        .map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    Err(ScratchError::Mkfs {
        status: output.status.to_string(),
        message: crate::guest::text::one_line(&String::from_utf8_lossy(&output.stderr), 1024),
    })
}

/// Shares the blocks where the file system can (XFS, btrfs), else copies what is not a hole.
fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(to)?;
    if ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    let len = source.metadata()?.len();
    target.set_len(len)?;
    let mut at = 0;
    while at < len {
        let data = match seek(&source, SeekFrom::Data(at)) {
            Ok(data) => data,
            // lseek(2): nothing but a hole up to the end.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = seek(&source, SeekFrom::Hole(data))?;
        copy_range(&source, &target, data, hole)?;
        at = hole;
    }
    Ok(())
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let mut buffer = vec![0; 64 * 1024];
    let mut at = start;
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let Some(chunk) = buffer.get_mut(..wanted) else {
            break;
        };
        source.read_exact_at(chunk, at)?;
        target.write_all_at(chunk, at)?;
        at += wanted as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for size in [0, 1024, MIN_SIZE - MIB, MIN_SIZE + 1] {
            assert!(ScratchTemplate::new(PathBuf::from("t"), size).is_err(), "{size}");
        }
    }

    #[test]
    fn a_copy_has_the_data_and_the_holes() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 * MIB).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"middle", 33 * MIB + 17).unwrap();
        copy_sparse(&from, &to).unwrap();
        assert!(fs_err::read(&from).unwrap() == fs_err::read(&to).unwrap());
        assert!(fs_err::metadata(&to).unwrap().blocks() * 512 <= MIB);
        assert_eq!(
            copy_sparse(&from, &to).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
    }

    #[tokio::test]
    async fn a_disk_of_10_gib_takes_less_than_a_mebibyte_and_its_inode_tables_need_no_zeroing() {
        let directory = tempfile::tempdir().unwrap();
        let template = ScratchTemplate::new(directory.path().join("templates"), 10 * 1024 * MIB).unwrap();
        let disk = directory.path().join("scratch.img");
        if let Err(error) = template.make_disk(&disk).await {
            // A machine without e2fsprogs can run every other test.
            let required = std::env::var("CLEARPOD_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name == "mkfs"), "{error}");
            eprintln!("SKIPPED scratch disk test: mkfs.ext4 does not work here: {error}");
            return;
        }
        let metadata = fs_err::metadata(&disk).unwrap();
        assert_eq!(metadata.len(), 10 * 1024 * MIB);
        assert!(metadata.blocks() * 512 < MIB, "{} blocks", metadata.blocks());
        let dump = std::process::Command::new("/sbin/dumpe2fs")
            .arg(&disk)
            .output()
            .unwrap();
        let text = String::from_utf8(dump.stdout).unwrap();
        let groups = text.lines().filter(|line| line.starts_with("Group ")).count();
        // All but the last group, whose table mkfs has written.
        assert!(text.matches("ITABLE_ZEROED").count() + 1 >= groups, "{text}");
        assert!(!text.contains("has_journal"));
    }
}
