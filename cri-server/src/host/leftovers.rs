//! What a host pod leaves when its shim is killed: containers that run on, and mounts. Idempotent, and from the pod's directory
//! alone: the shim's configuration in it says which runtime made the containers.

use std::{error::Error, io, path::Path, process::Stdio, time::Duration};

use nix::mount::{MntFlags, umount2};
use proto::host::{HostConfig, RUNTIME_ROOT};

use crate::machine::{Layout, MachineCgroup, mountinfo};

type Failure = Box<dyn Error + Send + Sync>;

/// For the runtime to delete one container.
const DELETE_WITHIN: Duration = Duration::from_secs(20);

/// Ends the containers of the pod at `layout` and takes down its mounts. The shim has ended before. A Machine's directory has
/// nothing of the kind, and neither has one that does not exist.
pub(crate) async fn end_leftovers(layout: &Layout, cgroup: Option<&MachineCgroup>) -> Result<(), Failure> {
    let text = match fs_err::tokio::read(layout.shim_config()).await {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if let Some(cgroup) = cgroup {
        cgroup.kill()?;
    }
    // A configuration that is not whole was never used.
    if let Ok(config) = serde_json::from_slice::<HostConfig>(&text) {
        delete_containers(layout, &config).await?;
    }
    let directory = layout.directory().to_owned();
    tokio::task::spawn_blocking(move || unmount_below(&directory)).await??;
    Ok(())
}

async fn delete_containers(layout: &Layout, config: &HostConfig) -> Result<(), Failure> {
    let root = layout.directory().join(RUNTIME_ROOT);
    let entries = match fs_err::read_dir(&root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for entry in entries {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let mut command = tokio::process::Command::new(&config.runtime);
        command.arg("--root").arg(&root);
        if config.cgroup.is_none() {
            command.args(["--cgroup-manager", "disabled"]);
        }
        command.args(["delete", "--force"]).arg(entry.file_name());
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(DELETE_WITHIN, command.output()).await;
        let output = output.map_err(|_| format!("{} delete takes too long", config.runtime.display()))??;
        // A container whose creation was cut short is a directory that the runtime makes nothing of; the cgroup was killed.
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            tracing::warn!(container = ?entry.file_name(), status = %output.status, %words, "the OCI runtime does not delete it");
        }
    }
    Ok(())
}

/// Lazily, so that nobody who looks around in a mount keeps the pod from ending.
fn unmount_below(directory: &Path) -> io::Result<()> {
    let directory = fs_err::canonicalize(directory)?;
    let mounts = mountinfo::all()?;
    let mut below: Vec<_> = mountinfo::below(&mounts, &directory).collect();
    // The newest first: what lies over another one comes down before it.
    below.reverse();
    for relative in below {
        let point = directory.join(relative);
        match umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // EINVAL: gone with one below it.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(errno) => {
                let text = format!("unmount {}: {errno}", point.display());
                return Err(io::Error::other(text));
            }
        }
    }
    Ok(())
}
