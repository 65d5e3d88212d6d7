//! What a container's root is made of: image layers, mounted once per pod and kept until its end, and an overlay over them.
//!
//! A layer is an EROFS file. Linux mounts such files directly since 6.12; an older kernel gets a loop device, which goes with the
//! mount.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use proto::agent::v1::{Disk, ErrorCode};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::error::{Context as _, Failure};
use crate::lock::lock;
use crate::sys::loop_device;

/// Directory of mounted layers, below the pod's.
pub(super) const LAYERS: &str = "layers";
/// mount(2) takes a page of options, and the upper directory's path has to fit beside the layers' names.
const MAX_LAYERS: usize = 128;

/// The layers that are mounted, by the image file.
#[derive(Debug, Default)]
pub(super) struct Layers(Mutex<BTreeMap<PathBuf, PathBuf>>);

impl Layers {
    /// Mounts those of `layers` that are not yet; returns all, in their order, relative to the pod's directory.
    ///
    /// # Errors
    /// `InvalidArgument` naming the field, `Mount`.
    pub(super) fn mount(&self, layers: &[Disk]) -> Result<Vec<PathBuf>, Failure> {
        if layers.is_empty() || layers.len() > MAX_LAYERS {
            let text = format!("layers: {} are not between 1 and {MAX_LAYERS}", layers.len());
            return Err(Failure::invalid(text));
        }
        let mut mounted = lock(&self.0);
        let mut targets = Vec::new();
        for (index, layer) in layers.iter().enumerate() {
            let file = PathBuf::from(&layer.host_path);
            if !file.is_absolute() {
                let text = format!(
                    "layers[{index}].host_path: {:?} is no absolute path",
                    layer.host_path
                );
                return Err(Failure::invalid(text));
            }
            if let Some(target) = mounted.get(&file) {
                targets.push(target.clone());
                continue;
            }
            // Short, because an overlay's options have to fit into a page.
            let target = Path::new(LAYERS).join(mounted.len().to_string());
            mount_layer(&file, &target)
                .context(ErrorCode::Mount, || format!("mount layer {}", file.display()))?;
            mounted.insert(file, target.clone());
            targets.push(target);
        }
        Ok(targets)
    }

    /// At the pod's end.
    pub(super) fn unmount_all(&self) {
        for (_, target) in std::mem::take(&mut *lock(&self.0)) {
            unmount_if_mounted(&target);
        }
    }
}

fn mount_layer(file: &Path, target: &Path) -> io::Result<()> {
    fs::create_dir_all(target)?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV;
    match mount(file, target, "erofs", flags, None) {
        Err(Errno::NOTBLK) => {}
        mounted => return Ok(mounted?),
    }
    let device = loop_device::attach_read_only(&fs::File::open(file)?)?;
    Ok(mount(&device.path, target, "erofs", flags, None)?)
}

/// Puts a writable directory over `layers` (lowest first) at `target`.
///
/// # Errors
/// `InvalidArgument` when there are too many layers, `Mount`.
pub(super) fn mount_overlay(layers: &[PathBuf], writable: &Path, target: &Path) -> Result<(), Failure> {
    let (upper, work) = (writable.join("upper"), writable.join("work"));
    let mount_it = || -> io::Result<()> {
        for directory in [&upper, &work, &target.to_owned()] {
            fs::create_dir_all(directory)?;
        }
        // The root directory of a container is everybody's to read, whatever the umask of this process.
        fs::set_permissions(&upper, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let lower: Vec<String> = layers
            .iter()
            .rev()
            .map(|layer| layer.display().to_string())
            .collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            upper.display(),
            work.display()
        );
        let options = CString::new(options)?;
        Ok(mount(
            "overlay",
            target,
            "overlay",
            MountFlags::empty(),
            options.as_c_str(),
        )?)
    };
    mount_it().context(ErrorCode::Mount, || {
        format!("mount an overlay on {}", target.display())
    })
}

/// Lazily: a process that looks around in it must not keep the pod from ending.
///
/// # Errors
/// `Mount`, but not when nothing is mounted there.
pub(super) fn unmount_all_at(target: &Path) -> Result<(), Failure> {
    loop {
        match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => {
                return Err(error).context(ErrorCode::Mount, || format!("unmount {}", target.display()));
            }
        }
    }
}

/// The same at the pod's end, where nobody is left to be told: the daemon looks after it.
pub(super) fn unmount_if_mounted(target: &Path) {
    if let Err(error) = unmount_all_at(target) {
        tracing::warn!(target = %target.display(), %error, "left mounted");
    }
}
