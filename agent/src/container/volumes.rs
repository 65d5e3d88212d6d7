//! Where the content of a container's mounts is: shared directories, tmpfs and files by name, disks, images.
//!
//! Each volume is made when its first container asks for it and goes with the last. Volumes with a name are the same in
//! every container of the pod; without one they belong to one container. `files` writes, `mounts` mounts.

mod files;
mod mounts;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use proto::agent::v1::mount::Source as WireSource;
use proto::agent::v1::{
    Disk, ErrorCode, FilesSource, ImageSource, Mount as WireMount, SharedSource, TmpfsSource,
};
use rustix::mount::{UnmountFlags, unmount};
use tokio::sync::Mutex;

use crate::container::mount_plan;
use crate::disk::pci::PciAddress;
use crate::disk::{Disks, Lease};
use crate::error::{Context as _, Failure};
use crate::init::order::Source;
use crate::user_namespace::UserNamespace;

/// Most mounts of the host below one shared path that are told.
const MAX_SUBMOUNTS: usize = 4096;

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
    /// A path in a shared directory, by the directory's tag.
    SharedPath(String, String),
    /// PCI addresses of the layers, and whether their ids are mapped.
    Image(Vec<String>, bool),
}

#[derive(Debug)]
struct Entry {
    path: PathBuf,
    by: usize,
    lasting: bool,
}

/// What a container holds of the volumes; given back to [`Volumes::release`].
#[derive(Debug)]
pub(super) enum Held {
    Volume(VolumeLease),
    Disk(Lease),
}

#[derive(Debug)]
pub(super) struct VolumeLease(Key);

/// Who wants a volume.
#[derive(Debug)]
pub(super) struct User<'a> {
    /// Of the mount in the request, for messages.
    pub(super) field: &'a str,
    pub(super) container_id: &'a str,
    /// The one whose ids the mount is to show.
    pub(super) namespace: Option<&'a UserNamespace>,
}

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
        user: &User<'_>,
        mount: &WireMount,
        held: &mut Vec<Held>,
    ) -> Result<Source, Failure> {
        let field = user.field;
        let source = mount.source.as_ref();
        let source = source.ok_or_else(|| Failure::invalid(format!("{field}.source: missing")))?;
        match source {
            WireSource::Standard(standard) => {
                mount_plan::standard(field, &mount.destination, &standard.filesystem)
            }
            WireSource::Sandbox(sandbox) => self.sandbox(field, &sandbox.name),
            WireSource::Tmpfs(tmpfs) if tmpfs.name.is_empty() => Ok(mounts::private_tmpfs(tmpfs)),
            WireSource::Tmpfs(tmpfs) => self.tmpfs(field, tmpfs, held).await,
            WireSource::Shared(shared) => self.shared(disks, field, shared, held).await,
            WireSource::Host(_) => {
                let text = format!("{field}.host: a guest has no path of the host");
                Err(Failure::new(ErrorCode::Unsupported, text))
            }
            WireSource::Files(files) => self.files(user, mount, files, held).await,
            WireSource::Disk(disk) => {
                let of = disk
                    .disk
                    .as_ref()
                    .ok_or_else(|| Failure::invalid(format!("{field}.disk: missing")))?;
                let base = disk_at(disks, &format!("{field}.disk"), of, held).await?;
                Ok(bind(base, &disk.path))
            }
            WireSource::Image(image) => self.image(disks, user, image, held).await,
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

    async fn tmpfs(&self, field: &str, tmpfs: &TmpfsSource, held: &mut Vec<Held>) -> Result<Source, Failure> {
        if !tmpfs.path.is_empty() && !files::is_inside(&tmpfs.path) {
            let text = format!("{field}.tmpfs.path: {:?} is no path in the volume", tmpfs.path);
            return Err(Failure::invalid(text));
        }
        let key = Key::Tmpfs(tmpfs.name.clone());
        let make = |path: &Path| mounts::tmpfs(path, tmpfs);
        let base = self.acquire(field, key.clone(), make, held).await?;
        if tmpfs.lasting
            && let Some(entry) = self.used.lock().await.volumes.get_mut(&key)
        {
            entry.lasting = true;
        }
        if !tmpfs.path.is_empty() {
            mounts::make_directory(&base, tmpfs).context(ErrorCode::Mount, || {
                format!("{field}.tmpfs: make {:?}", tmpfs.path)
            })?;
        }
        Ok(bind(base, &tmpfs.path))
    }

    async fn shared(
        &self,
        disks: &Disks,
        field: &str,
        shared: &SharedSource,
        held: &mut Vec<Held>,
    ) -> Result<Source, Failure> {
        let paths = || [&shared.path].into_iter().chain(&shared.submounts);
        if shared.submounts.len() > MAX_SUBMOUNTS || !paths().all(|path| files::is_inside(path)) {
            let text = format!(
                "{field}.shared: {:?} or one of the {} paths below it is no path in a directory",
                shared.path,
                shared.submounts.len()
            );
            return Err(Failure::invalid(text));
        }
        let address = PciAddress::parse(&format!("{field}.shared.pci_address"), &shared.pci_address)?;
        disks.bus().driven(&address).await?;
        let tag = &shared.tag;
        let make = |path: &Path| mounts::shared(path, tag);
        let base = self.acquire(field, Key::Shared(tag.clone()), make, held).await?;
        let path = base.join(&shared.path);
        let key = Key::SharedPath(tag.clone(), shared.path.clone());
        self.acquire_at(field, key, path, |path| mounts::reach(path, shared), held)
            .await?;
        Ok(bind(base, &shared.path))
    }

    async fn image(
        &self,
        disks: &Disks,
        user: &User<'_>,
        image: &ImageSource,
        held: &mut Vec<Held>,
    ) -> Result<Source, Failure> {
        let field = user.field;
        if image.layers.is_empty() {
            return Err(Failure::invalid(format!("{field}.image.layers: none")));
        }
        let mut layers = Vec::new();
        for (index, layer) in image.layers.iter().enumerate() {
            layers.push(disk_at(disks, &format!("{field}.image.layers[{index}]"), layer, held).await?);
        }
        layers.reverse();
        let addresses = image.layers.iter().map(|layer| layer.pci_address.clone());
        let key = Key::Image(addresses.collect(), user.namespace.is_some());
        let make = |path: &Path| match user.namespace {
            Some(namespace) => mounts::mapped_image(path, &layers, namespace.namespace()),
            None => mounts::image(path, &layers),
        };
        let base = self.acquire(field, key, make, held).await?;
        match mounts::has(&base, &image.path) {
            Ok(()) => Ok(bind(base, &image.path)),
            Err(error) => Err(Failure::invalid(format!(
                "{field}.image.path: {:?} in the image: {error}",
                image.path
            ))),
        }
    }

    async fn files(
        &self,
        user: &User<'_>,
        mount: &WireMount,
        files: &FilesSource,
        held: &mut Vec<Held>,
    ) -> Result<Source, Failure> {
        let (field, container_id) = (user.field, user.container_id);
        files::check(field, files)?;
        // A private volume's name begins with a byte that no volume of the daemon's has.
        let name = match files.name.as_str() {
            "" => format!("\0{container_id}{}", mount.destination),
            name => name.to_owned(),
        };
        let make = |path: &Path| fs::create_dir_all(path);
        let base = self.acquire(field, Key::Files(name), make, held).await?;
        // No update may be written at the same time. What is there is newer: updates come after it.
        let _writing = self.used.lock().await;
        if files.generation.is_empty() || !files::is_populated(&base) {
            files::write(&base, files)
                .context(ErrorCode::Mount, || format!("{field}.files: write the volume"))?;
        }
        match (files.single_file, files.files.first()) {
            (true, Some(file)) => Ok(bind(base, &file.path)),
            _ => Ok(bind(base, "")),
        }
    }

    /// Gives a volume of files its next generation.
    ///
    /// # Errors
    /// `InvalidArgument`, `NotFound`, `Mount`; after that the volume is what it was, or what it is to be.
    pub(crate) async fn update_files(&self, source: &FilesSource) -> Result<(), Failure> {
        files::check("source", source)?;
        if source.generation.is_empty() {
            return Err(Failure::invalid("source.generation: missing"));
        }
        let used = self.used.lock().await;
        let entry = used.volumes.get(&Key::Files(source.name.clone()));
        let Some(entry) = entry else {
            let text = format!("no container has the volume {:?}", source.name);
            return Err(Failure::new(ErrorCode::NotFound, text));
        };
        files::write(&entry.path, source).context(ErrorCode::Mount, || {
            format!("update the volume {:?}", source.name)
        })
    }

    async fn acquire(
        &self,
        field: &str,
        key: Key,
        make: impl FnOnce(&Path) -> io::Result<()>,
        held: &mut Vec<Held>,
    ) -> Result<PathBuf, Failure> {
        let path = {
            let mut used = self.used.lock().await;
            used.next += 1;
            self.run.join("volumes").join((used.next - 1).to_string())
        };
        self.acquire_at(field, key, path, make, held).await
    }

    /// One more user of the volume, which is made at `path` if there is none yet; where it is.
    async fn acquire_at(
        &self,
        field: &str,
        key: Key,
        path: PathBuf,
        make: impl FnOnce(&Path) -> io::Result<()>,
        held: &mut Vec<Held>,
    ) -> Result<PathBuf, Failure> {
        let mut used = self.used.lock().await;
        if let Some(entry) = used.volumes.get_mut(&key) {
            entry.by += 1;
            held.push(Held::Volume(VolumeLease(key)));
            return Ok(entry.path.clone());
        }
        make(&path).context(ErrorCode::Mount, || {
            format!("{field}: make the volume at {}", path.display())
        })?;
        used.volumes.insert(
            key.clone(),
            Entry {
                path: path.clone(),
                by: 1,
                lasting: false,
            },
        );
        held.push(Held::Volume(VolumeLease(key)));
        Ok(path)
    }

    /// Gives one back; the last one to leave removes the volume, unless it lasts.
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
        if entry.by > 0 || entry.lasting {
            return Ok(());
        }
        let path = entry.path.clone();
        let remove = || match &lease.0 {
            Key::Tmpfs(_) | Key::Image(..) => {
                unmount(&path, UnmountFlags::NOFOLLOW)?;
                fs::remove_dir(&path)
            }
            // What the host has mounted below may be mounted here as well.
            Key::Shared(_) => {
                unmount(&path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?;
                fs::remove_dir(&path)
            }
            Key::SharedPath(..) => mounts::leave(&path),
            Key::Files(_) => fs::remove_dir_all(&path),
        };
        remove().context(ErrorCode::Mount, || {
            format!("remove the volume at {}", path.display())
        })?;
        used.volumes.remove(&lease.0);
        Ok(())
    }
}

async fn disk_at(disks: &Disks, field: &str, disk: &Disk, held: &mut Vec<Held>) -> Result<PathBuf, Failure> {
    let lease = disks.acquire(field, disk).await?;
    let path = lease.path.clone();
    held.push(Held::Disk(lease));
    Ok(path)
}

fn bind(base: PathBuf, path: &str) -> Source {
    Source::Bind {
        base,
        path: path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proto::agent::v1::File;

    use super::*;

    fn place() -> (tempfile::TempDir, Volumes, Disks) {
        let run = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(run.path());
        let bus = crate::disk::pci::PciBus::new("/nonexistent");
        let disks = Disks::new(bus, "/dev", run.path().join("disks"));
        (run, volumes, disks)
    }

    fn files(generation: &str, content: &str) -> FilesSource {
        FilesSource {
            name: "config".to_owned(),
            files: vec![File {
                path: "dir/key".to_owned(),
                content: content.as_bytes().to_vec(),
                mode: 0o400,
                uid: rustix::process::getuid().as_raw(),
                gid: rustix::process::getgid().as_raw(),
            }],
            single_file: false,
            generation: generation.to_owned(),
        }
    }

    fn user(container_id: &str) -> User<'_> {
        User {
            field: "mounts[0]",
            container_id,
            namespace: None,
        }
    }

    fn mount(source: WireSource) -> WireMount {
        WireMount {
            destination: "/etc/config".to_owned(),
            source: Some(source),
            ..WireMount::default()
        }
    }

    #[tokio::test]
    async fn a_named_volume_lives_from_its_first_container_to_its_last() {
        let (run, volumes, disks) = place();
        let mount = mount(WireSource::Files(files("", "x")));
        let mut held = Vec::new();
        let first = volumes
            .source(&disks, &user("a"), &mount, &mut held)
            .await
            .unwrap();
        let second = volumes
            .source(&disks, &user("b"), &mount, &mut held)
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

    #[tokio::test]
    async fn an_update_reaches_the_volume_and_an_older_request_does_not() {
        let (run, volumes, disks) = place();
        let first = mount(WireSource::Files(files("..1", "one")));
        let mut held = Vec::new();
        volumes
            .source(&disks, &user("a"), &first, &mut held)
            .await
            .unwrap();
        let read = || fs::read_to_string(run.path().join("volumes/0/dir/key")).unwrap();
        assert_eq!(read(), "one");
        volumes.update_files(&files("..2", "two")).await.unwrap();
        assert_eq!(read(), "two");
        volumes
            .source(&disks, &user("b"), &first, &mut held)
            .await
            .unwrap();
        assert_eq!(read(), "two");
        for held in &held {
            volumes.release(&disks, held).await.unwrap();
        }
        let failure = volumes.update_files(&files("..3", "")).await.unwrap_err();
        assert_eq!(failure.code(), ErrorCode::NotFound);
    }

    #[tokio::test]
    async fn what_names_no_place_in_a_volume_is_refused() {
        let (_run, volumes, disks) = place();
        let shared = |path: &str, below: &str| {
            WireSource::Shared(SharedSource {
                tag: "shared".to_owned(),
                path: path.to_owned(),
                pci_address: "0000:00:03.0".to_owned(),
                submounts: vec![below.to_owned()],
            })
        };
        let tmpfs = WireSource::Tmpfs(TmpfsSource {
            name: "memory".to_owned(),
            path: "../up".to_owned(),
            ..TmpfsSource::default()
        });
        let image = WireSource::Image(ImageSource::default());
        for source in [
            shared("..", "a"),
            shared("0", "/etc"),
            shared("", "a"),
            tmpfs,
            image,
        ] {
            let mut held = Vec::new();
            let asked = mount(source);
            let seventh = User {
                field: "mounts[7]",
                ..user("a")
            };
            let failure = volumes
                .source(&disks, &seventh, &asked, &mut held)
                .await
                .unwrap_err();
            assert_eq!(failure.code(), ErrorCode::InvalidArgument, "{failure}");
            assert!(failure.to_string().starts_with("mounts[7]."), "{failure}");
            assert!(held.is_empty());
        }
    }
}
