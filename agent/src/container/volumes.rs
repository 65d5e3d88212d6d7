//! Where the content of a container's mounts is: shared directories, tmpfs and files by name, disks.
//!
//! Each volume is made when its first container asks for it and goes with the last. Volumes with a name are the same in
//! every container of the pod; without one they belong to one container.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use proto::agent::v1::mount::Source as WireSource;
use proto::agent::v1::{ErrorCode, File, FilesSource, Mount as WireMount, TmpfsSource};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tokio::sync::Mutex;

use crate::container::mount_plan;
use crate::disk::{Disks, Lease};
use crate::error::{Context as _, Failure};
use crate::init::order::{Content, Source};

/// Most files in one volume that comes with a request, and most bytes of a path in it.
const MAX_FILES: usize = 4096;
const MAX_FILE_PATH: usize = 4096;

/// The volumes of the pod.
#[derive(Debug)]
pub(crate) struct Volumes {
    /// The agent's directory.
    run: PathBuf,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    volumes: HashMap<Key, Entry>,
    /// Names are the daemon's and may hold anything: directories are numbered.
    next: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Tmpfs(String),
    Files(String),
    Shared(String),
}

#[derive(Debug)]
struct Entry {
    path: PathBuf,
    by: usize,
}

/// What a container holds of the volumes; given back to [`Volumes::release`].
#[derive(Debug)]
pub(super) enum Held {
    Volume(VolumeLease),
    Disk(Lease),
}

#[derive(Debug)]
pub(super) struct VolumeLease(Key);

impl Volumes {
    pub(crate) fn new(run: impl Into<PathBuf>) -> Self {
        Self {
            run: run.into(),
            used: Mutex::default(),
        }
    }

    /// Makes the content of one mount available; `held` gets what has to be given back.
    ///
    /// # Errors
    /// `InvalidArgument` naming `field`, `Mount`, and what disks answer.
    pub(super) async fn source(
        &self,
        disks: &Disks,
        field: &str,
        container_id: &str,
        mount: &WireMount,
        held: &mut Vec<Held>,
    ) -> Result<Source, Failure> {
        let source = mount.source.as_ref();
        let source = source.ok_or_else(|| Failure::invalid(format!("{field}.source: missing")))?;
        match source {
            WireSource::Standard(standard) => {
                mount_plan::standard(field, &mount.destination, &standard.filesystem)
            }
            WireSource::Sandbox(sandbox) => self.sandbox(field, &sandbox.name),
            WireSource::Tmpfs(tmpfs) if tmpfs.name.is_empty() => Ok(private_tmpfs(tmpfs)),
            WireSource::Tmpfs(tmpfs) => {
                let make = |path: &Path| mount_tmpfs(path, tmpfs);
                let base = self
                    .acquire(field, Key::Tmpfs(tmpfs.name.clone()), make, held)
                    .await?;
                Ok(bind(base, ""))
            }
            WireSource::Shared(shared) => {
                let tag = shared.tag.clone();
                let flags = MountFlags::NOSUID | MountFlags::NODEV;
                let make = |path: &Path| mount_at("virtiofs", &tag, path, flags, "");
                let base = self
                    .acquire(field, Key::Shared(shared.tag.clone()), make, held)
                    .await?;
                Ok(bind(base, &shared.path))
            }
            WireSource::Host(_) => {
                let text = format!("{field}.host: a guest has no path of the host");
                Err(Failure::new(ErrorCode::Unsupported, text))
            }
            WireSource::Files(files) => self.files(field, container_id, mount, files, held).await,
            WireSource::Disk(disk) => {
                let of = disk
                    .disk
                    .as_ref()
                    .ok_or_else(|| Failure::invalid(format!("{field}.disk: missing")))?;
                let lease = disks.acquire(&format!("{field}.disk"), of).await?;
                let base = lease.path.clone();
                held.push(Held::Disk(lease));
                Ok(bind(base, &disk.path))
            }
        }
    }

    /// The files and directories that `sandbox.rs` keeps.
    fn sandbox(&self, field: &str, name: &str) -> Result<Source, Failure> {
        match name {
            "shm" => Ok(bind(self.run.join("shm"), "")),
            "resolv.conf" | "hosts" | "hostname" | "machine-id" => Ok(bind(self.run.join("sandbox"), name)),
            other => Err(Failure::invalid(format!(
                "{field}.sandbox.name: there is no {other:?}"
            ))),
        }
    }

    async fn files(
        &self,
        field: &str,
        container_id: &str,
        mount: &WireMount,
        files: &FilesSource,
        held: &mut Vec<Held>,
    ) -> Result<Source, Failure> {
        check_files(field, files)?;
        // A private volume's name begins with a byte that no volume of the daemon's has.
        let name = match files.name.as_str() {
            "" => format!("\0{container_id}{}", mount.destination),
            name => name.to_owned(),
        };
        let make = |path: &Path| fs::create_dir_all(path);
        let base = self.acquire(field, Key::Files(name), make, held).await?;
        for file in &files.files {
            write_file(&base, file).context(ErrorCode::Mount, || {
                format!("{field}.files: write {:?}", file.path)
            })?;
        }
        match (files.single_file, files.files.first()) {
            (true, Some(file)) => Ok(bind(base, &file.path)),
            _ => Ok(bind(base, "")),
        }
    }

    async fn acquire(
        &self,
        field: &str,
        key: Key,
        make: impl FnOnce(&Path) -> io::Result<()>,
        held: &mut Vec<Held>,
    ) -> Result<PathBuf, Failure> {
        let mut used = self.used.lock().await;
        if let Some(entry) = used.volumes.get_mut(&key) {
            entry.by += 1;
            held.push(Held::Volume(VolumeLease(key)));
            return Ok(entry.path.clone());
        }
        let path = self.run.join("volumes").join(used.next.to_string());
        used.next += 1;
        make(&path).context(ErrorCode::Mount, || {
            format!("{field}: make the volume at {}", path.display())
        })?;
        used.volumes.insert(
            key.clone(),
            Entry {
                path: path.clone(),
                by: 1,
            },
        );
        held.push(Held::Volume(VolumeLease(key)));
        Ok(path)
    }

    /// Gives one back; the last one to leave removes the volume.
    ///
    /// # Errors
    /// `Mount` when it cannot be removed.
    pub(super) async fn release(&self, disks: &Disks, held: &Held) -> Result<(), Failure> {
        let lease = match held {
            Held::Disk(lease) => return disks.release(lease).await,
            Held::Volume(lease) => lease,
        };
        let mut used = self.used.lock().await;
        let Some(entry) = used.volumes.get_mut(&lease.0) else {
            return Ok(());
        };
        entry.by = entry.by.saturating_sub(1);
        if entry.by > 0 {
            return Ok(());
        }
        let path = entry.path.clone();
        let remove = || match &lease.0 {
            Key::Tmpfs(_) | Key::Shared(_) => {
                unmount(&path, UnmountFlags::NOFOLLOW)?;
                fs::remove_dir(&path)
            }
            Key::Files(_) => fs::remove_dir_all(&path),
        };
        remove().context(ErrorCode::Mount, || {
            format!("remove the volume at {}", path.display())
        })?;
        used.volumes.remove(&lease.0);
        Ok(())
    }
}

fn bind(base: PathBuf, path: &str) -> Source {
    Source::Bind {
        base,
        path: path.to_owned(),
    }
}

fn private_tmpfs(tmpfs: &TmpfsSource) -> Source {
    let (mode, size) = (format!("{:o}", tmpfs_mode(tmpfs)), tmpfs.size_bytes.to_string());
    let mut options = vec![("mode", mode.as_str())];
    if tmpfs.size_bytes > 0 {
        options.push(("size", size.as_str()));
    }
    mount_plan::new_file_system("tmpfs", &options, Content::Empty)
}

fn mount_tmpfs(path: &Path, tmpfs: &TmpfsSource) -> io::Result<()> {
    let mut options = format!("mode={:o}", tmpfs_mode(tmpfs));
    if tmpfs.size_bytes > 0 {
        options.push_str(&format!(",size={}", tmpfs.size_bytes));
    }
    mount_at(
        "tmpfs",
        "tmpfs",
        path,
        MountFlags::NOSUID | MountFlags::NODEV,
        &options,
    )
}

/// 0 is the default: as /tmp, since a container's user has to be able to write.
fn tmpfs_mode(tmpfs: &TmpfsSource) -> u32 {
    if tmpfs.mode == 0 {
        0o1777
    } else {
        tmpfs.mode & 0o7777
    }
}

fn mount_at(filesystem: &str, source: &str, path: &Path, flags: MountFlags, options: &str) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let options = std::ffi::CString::new(options)?;
    Ok(mount(source, path, filesystem, flags, options.as_c_str())?)
}

fn check_files(field: &str, files: &FilesSource) -> Result<(), Failure> {
    if files.files.len() > MAX_FILES {
        let text = format!(
            "{field}.files: {} files, more than {MAX_FILES}",
            files.files.len()
        );
        return Err(Failure::invalid(text));
    }
    if files.single_file && files.files.len() != 1 {
        let text = format!(
            "{field}.files: a single file is asked for, and there are {}",
            files.files.len()
        );
        return Err(Failure::invalid(text));
    }
    let inside = |path: &str| {
        !path.is_empty()
            && path.len() <= MAX_FILE_PATH
            && !path.contains('\0')
            && path.split('/').all(|name| !matches!(name, "" | "." | ".."))
    };
    match files.files.iter().find(|file| !inside(&file.path)) {
        Some(file) => Err(Failure::invalid(format!(
            "{field}.files: {:?} is no path in the volume",
            file.path
        ))),
        None => Ok(()),
    }
}

/// Replaces the file in one step, since another container may be reading it.
fn write_file(base: &Path, file: &File) -> io::Result<()> {
    let path = base.join(&file.path);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut temporary = path.clone().into_os_string();
    temporary.push(".clearpod-new");
    fs::write(&temporary, &file.content)?;
    let mode = if file.mode == 0 { 0o644 } else { file.mode & 0o777 };
    chown(&temporary, Some(file.uid), Some(file.gid))?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(mode))?;
    fs::rename(&temporary, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(paths: &[&str], single_file: bool) -> FilesSource {
        let file = |path: &&str| File {
            path: (*path).to_owned(),
            content: b"x".to_vec(),
            mode: 0o400,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        };
        FilesSource {
            name: "config".to_owned(),
            files: paths.iter().map(file).collect(),
            single_file,
        }
    }

    #[test]
    fn paths_that_leave_the_volume_are_refused() {
        for wrong in ["", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "./a"] {
            assert!(
                check_files("mounts[0]", &files(&[wrong], false)).is_err(),
                "{wrong:?}"
            );
        }
        assert!(check_files("mounts[0]", &files(&["a", "b"], true)).is_err());
        check_files("mounts[0]", &files(&["..data/key", "key"], false)).unwrap();
    }

    #[tokio::test]
    async fn a_named_volume_lives_from_its_first_container_to_its_last() {
        let run = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(run.path());
        let disks = Disks::new(
            crate::disk::pci::PciBus::new("/nonexistent"),
            "/dev",
            run.path().join("disks"),
        );
        let mount = WireMount {
            destination: "/etc/config".to_owned(),
            source: Some(WireSource::Files(files(&["dir/key"], false))),
            ..WireMount::default()
        };
        let mut held = Vec::new();
        let first = volumes
            .source(&disks, "mounts[0]", "a", &mount, &mut held)
            .await
            .unwrap();
        let second = volumes
            .source(&disks, "mounts[0]", "b", &mount, &mut held)
            .await
            .unwrap();
        assert_eq!(first, second);
        let key = run.path().join("volumes/0/dir/key");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o400);
        volumes.release(&disks, &held[0]).await.unwrap();
        assert!(key.exists());
        volumes.release(&disks, &held[1]).await.unwrap();
        assert!(!key.exists());
    }
}
