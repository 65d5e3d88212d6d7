//! A container's mounts. Small read-only files and directories of the host are sent into the guest as content; what must
//! stay shared with the host is refused by name.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use proto::{agent::v1 as agent, cri::v1 as cri};

use super::SpecError;
use crate::config::ContainerDefaults;

/// Where the pod's own files belong unless a mount of the request covers them.
const SANDBOX_FILES: [(&str, &str); 3] = [
    ("/etc/hosts", "hosts"),
    ("/etc/hostname", "hostname"),
    ("/etc/resolv.conf", "resolv.conf"),
];
/// More levels than any configMap or secret has.
const MAX_DEPTH: usize = 16;
/// Files of one mount.
const MAX_FILES: usize = 4096;

/// Every mount of the container but the standard file systems, which the agent knows.
pub(super) fn all(
    config: &cri::ContainerConfig,
    defaults: &ContainerDefaults,
) -> Result<Vec<agent::Mount>, SpecError> {
    let mut mounts = Vec::new();
    let mut budget = Budget::new(defaults);
    for (index, mount) in config.mounts.iter().enumerate() {
        mounts.push(one(&format!("config.mounts[{index}]"), mount, &mut budget)?);
    }
    for (destination, name) in SANDBOX_FILES {
        if !config
            .mounts
            .iter()
            .any(|mount| Path::new(&mount.container_path) == Path::new(destination))
        {
            mounts.push(sandbox_file(destination, name));
        }
    }
    // Parents first: a mount hides what was mounted below its destination before.
    mounts.sort_by_key(|mount| Path::new(&mount.destination).components().count());
    Ok(mounts)
}

fn sandbox_file(destination: &str, name: &str) -> agent::Mount {
    agent::Mount {
        destination: destination.to_owned(),
        source: Some(agent::mount::Source::Sandbox(agent::SandboxSource {
            name: name.to_owned(),
        })),
        ..agent::Mount::default()
    }
}

fn one(field: &str, mount: &cri::Mount, budget: &mut Budget) -> Result<agent::Mount, SpecError> {
    if !mount.container_path.starts_with('/') {
        let problem = format!("{:?} is not absolute", mount.container_path);
        return Err(SpecError::invalid(format!("{field}.container_path"), problem));
    }
    refuse_what_is_not_offered(field, mount)?;
    let source = content(field, mount, budget)?;
    Ok(agent::Mount {
        destination: mount.container_path.clone(),
        read_only: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        options: Vec::new(),
        source: Some(agent::mount::Source::Files(source)),
    })
}

fn refuse_what_is_not_offered(field: &str, mount: &cri::Mount) -> Result<(), SpecError> {
    let refuse = |name: &str, problem: &str| Err(SpecError::unsupported(format!("{field}.{name}"), problem));
    if mount.image.as_ref().is_some_and(|image| !image.image.is_empty()) {
        return refuse("image", "image volumes are not offered");
    }
    if mount.propagation() != cri::MountPropagation::PropagationPrivate {
        return refuse(
            "propagation",
            "mounts made on the host do not appear in the guest; only private is offered",
        );
    }
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        return refuse("uidMappings", "id-mapped mounts are not offered");
    }
    if !mount.mount_options.is_empty() {
        return refuse(
            "mount_options",
            "is not offered (RuntimeFeatures.mount_options says so)",
        );
    }
    if mount.recursive_read_only && !mount.readonly {
        let problem = "needs readonly beside it";
        return Err(SpecError::invalid(
            format!("{field}.recursive_read_only"),
            problem,
        ));
    }
    Ok(())
}

/// How much content may still be sent.
struct Budget {
    file_bytes: u64,
    left_bytes: u64,
    total_bytes: u64,
}

impl Budget {
    fn new(defaults: &ContainerDefaults) -> Self {
        let total_bytes = defaults.files_total_kib * 1024;
        Self {
            file_bytes: defaults.file_kib * 1024,
            left_bytes: total_bytes,
            total_bytes,
        }
    }
}

fn content(field: &str, mount: &cri::Mount, budget: &mut Budget) -> Result<agent::FilesSource, SpecError> {
    let field = format!("{field}.host_path");
    let host = Path::new(&mount.host_path);
    let bad = |error: std::io::Error| SpecError::invalid(field.clone(), error);
    // As kubelet's own volumes are reached: the path itself may be a symlink, what lies below is kept as it is.
    let host = fs_err::canonicalize(host).map_err(bad)?;
    let kind = fs_err::metadata(&host).map_err(bad)?;
    if kind.is_file() {
        // The termination log is the one file that is written into; nobody on the host reads it while it is.
        let file = read_file(&field, &host, "content", budget)?;
        return Ok(agent::FilesSource {
            name: String::new(),
            files: vec![file],
            single_file: true,
        });
    }
    if !kind.is_dir() {
        let problem = format!(
            "{}: neither a file nor a directory; sockets and devices are not offered",
            host.display()
        );
        return Err(SpecError::unsupported(field, problem));
    }
    if !mount.readonly {
        let problem = format!(
            "{}: a directory that stays shared with the host is not offered",
            host.display()
        );
        return Err(SpecError::unsupported(field, problem));
    }
    let mut files = Vec::new();
    collect(&field, &host, Path::new(""), &mut files, budget)?;
    // Two containers that mount the same volume see the same files.
    Ok(agent::FilesSource {
        name: host.display().to_string(),
        files,
        single_file: false,
    })
}

fn collect(
    field: &str,
    root: &Path,
    below: &Path,
    files: &mut Vec<agent::File>,
    budget: &mut Budget,
) -> Result<(), SpecError> {
    let bad = |error: std::io::Error| SpecError::invalid(field, error);
    if below.components().count() > MAX_DEPTH || files.len() > MAX_FILES {
        let problem = format!(
            "{}: more than {MAX_DEPTH} levels or {MAX_FILES} files",
            root.display()
        );
        return Err(SpecError::unsupported(field, problem));
    }
    let mut entries: Vec<PathBuf> = fs_err::read_dir(root.join(below))
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(bad)?;
    entries.sort();
    for entry in entries {
        let name = entry.file_name().map(Path::new).unwrap_or_else(|| Path::new(""));
        // `..2026_11_22` and `..data` are how kubelet swaps a volume; the names beside them are links to what is in it.
        if name.to_string_lossy().starts_with("..") {
            continue;
        }
        let inside = below.join(name);
        let kind = fs_err::metadata(&entry).map_err(bad)?;
        if kind.is_dir() {
            collect(field, root, &inside, files, budget)?;
        } else if kind.is_file() {
            files.push(read_file(field, &entry, &inside.to_string_lossy(), budget)?);
        } else {
            let problem = format!("{}: sockets and devices are not offered", entry.display());
            return Err(SpecError::unsupported(field, problem));
        }
    }
    Ok(())
}

fn read_file(field: &str, path: &Path, name: &str, budget: &mut Budget) -> Result<agent::File, SpecError> {
    let bad = |error: std::io::Error| SpecError::invalid(field, error);
    let about = fs_err::metadata(path).map_err(bad)?;
    if about.len() > budget.file_bytes || about.len() > budget.left_bytes {
        let problem = format!(
            "{} has {} bytes; at most {} in a file and {} in a container's mounts can be sent into the guest",
            path.display(),
            about.len(),
            budget.file_bytes,
            budget.total_bytes
        );
        return Err(SpecError::unsupported(field, problem));
    }
    budget.left_bytes -= about.len();
    Ok(agent::File {
        path: name.to_owned(),
        content: fs_err::read(path).map_err(bad)?,
        mode: about.mode() & 0o7777,
        uid: about.uid(),
        gid: about.gid(),
    })
}
