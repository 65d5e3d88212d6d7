//! Which disks are mounted, where, and how many containers use each; the last one to leave unmounts it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proto::agent::v1::{Disk, ErrorCode};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};
use tokio::sync::Mutex;

use crate::disk::pci::{PciAddress, PciBus};
use crate::error::{Context as _, Failure};

/// From the device node to a device that can be opened; less than a millisecond on hardware, more where the guest gets little time.
const OPENS_WITHIN: Duration = Duration::from_secs(20);
const OPEN_PAUSE: Duration = Duration::from_millis(1);

/// The mounted disks of the Machine.
#[derive(Debug)]
pub(crate) struct Disks {
    bus: PciBus,
    /// Where device nodes are.
    dev: PathBuf,
    /// Below it, one directory per disk, named by its address.
    mounts: PathBuf,
    used: Mutex<HashMap<PciAddress, Used>>,
}

#[derive(Debug)]
struct Used {
    disk: Disk,
    by: usize,
}

/// The right to use a mounted disk; given back to [`Disks::release`].
#[derive(Debug)]
pub(crate) struct Lease {
    address: PciAddress,
    pub(crate) path: PathBuf,
}

impl Disks {
    pub(crate) fn new(bus: PciBus, dev: impl Into<PathBuf>, mounts: impl Into<PathBuf>) -> Self {
        Self {
            bus,
            dev: dev.into(),
            mounts: mounts.into(),
            used: Mutex::default(),
        }
    }

    pub(crate) fn bus(&self) -> &PciBus {
        &self.bus
    }

    /// The mount of `disk`, which is made if nobody uses it yet.
    ///
    /// # Errors
    /// `InvalidArgument` naming `field`, `DeviceMissing`, `Mount`; `InvalidArgument` also when the disk is in use with
    /// other options.
    pub(crate) async fn acquire(&self, field: &str, disk: &Disk) -> Result<Lease, Failure> {
        let address = PciAddress::parse(&format!("{field}.pci_address"), &disk.pci_address)?;
        if !matches!(disk.filesystem.as_str(), "erofs" | "ext4") {
            let text = format!(
                "{field}.filesystem: {:?} is neither erofs nor ext4",
                disk.filesystem
            );
            return Err(Failure::invalid(text));
        }
        let path = self.mounts.join(address.as_str());
        let mut used = self.used.lock().await;
        if let Some(used) = used.get_mut(&address) {
            if used.disk != *disk {
                let text = format!(
                    "{field}: {} is already mounted with other options",
                    address.as_str()
                );
                return Err(Failure::invalid(text));
            }
            used.by += 1;
            return Ok(Lease { address, path });
        }
        let device = self.dev.join(self.bus.block_device(&address).await?);
        self.mount(disk.clone(), device, path.clone()).await?;
        used.insert(
            address.clone(),
            Used {
                disk: disk.clone(),
                by: 1,
            },
        );
        Ok(Lease { address, path })
    }

    async fn mount(&self, disk: Disk, device: PathBuf, target: PathBuf) -> Result<(), Failure> {
        let text = format!(
            "mount {} as {} on {}",
            device.display(),
            disk.filesystem,
            target.display()
        );
        tokio::task::spawn_blocking(move || {
            fs::create_dir_all(&target)?;
            wait_until_open(&device)?;
            mount(&disk, &device, &target)
        })
        .await
        .map_err(io::Error::other)
        .and_then(|mounted| mounted)
        .context(ErrorCode::Mount, || text)
    }

    /// Gives a lease back; unmounts the disk if it was the last.
    ///
    /// # Errors
    /// `Mount` when the kernel does not let go of it: then it stays mounted and known.
    pub(crate) async fn release(&self, lease: &Lease) -> Result<(), Failure> {
        let mut used = self.used.lock().await;
        let Some(entry) = used.get_mut(&lease.address) else {
            return Ok(());
        };
        entry.by -= 1;
        if entry.by > 0 {
            return Ok(());
        }
        let path = lease.path.clone();
        tokio::task::spawn_blocking(move || {
            unmount(&path, UnmountFlags::NOFOLLOW)?;
            fs::remove_dir(&path)
        })
        .await
        .map_err(io::Error::other)
        .and_then(|unmounted| unmounted)
        .context(ErrorCode::Mount, || format!("unmount {}", lease.path.display()))?;
        used.remove(&lease.address);
        Ok(())
    }

    /// Unmounts whatever is mounted, used or not: at the Machine's end, so that a volume's file system is clean.
    pub(crate) async fn unmount_all(&self) {
        for (address, _) in self.used.lock().await.drain() {
            let path = self.mounts.join(address.as_str());
            if let Err(error) = unmount(&path, UnmountFlags::NOFOLLOW) {
                tracing::warn!(path = %path.display(), %error, "file system left mounted");
            }
        }
    }
}

/// Mounts a block device's file system at `target`.
fn mount(disk: &Disk, device: &Path, target: &Path) -> io::Result<()> {
    let context = fsopen(disk.filesystem.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", device)?;
    if disk.read_only {
        fsconfig_set_flag(&context, "ro")?;
    } else {
        // The host's sparse file gives freed blocks back.
        fsconfig_set_flag(&context, "discard")?;
    }
    if disk.dax {
        fsconfig_set_string(&context, "dax", "always")?;
    }
    fsconfig_create(&context)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOATIME;
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, disk.read_only);
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    Ok(move_mount(
        &mount,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}
/// The kernel shows a new disk in sysfs and /dev before it can be opened (`device_add` comes before `bdev_add` in
/// `add_disk`); in between the answer is ENXIO.
fn wait_until_open(device: &Path) -> io::Result<()> {
    let deadline = Instant::now() + OPENS_WITHIN;
    loop {
        match fs::File::open(device) {
            Err(error) if not_yet(&error) && Instant::now() < deadline => std::thread::sleep(OPEN_PAUSE),
            opened => return opened.map(drop),
        }
    }
}

fn not_yet(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENXIO)
}
