//! What becomes of each mount of a container: sent along, kept in guest memory, shared with the host, or refused by its
//! field. Opens and reads the host's files; everything else is the owner task's (`sandbox::volumes`).
//!
//! | the host's | becomes |
//! |---|---|
//! | /etc/hosts and the like, termination log, files of configMaps by subPath | a copy |
//! | configMap, secret, projected, downwardAPI | a copy that follows the host's |
//! | emptyDir in memory | a tmpfs of the guest |
//! | every other directory or file | itself, over virtio-fs |
//! | socket, pipe, device | refused |

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use proto::{
    agent::v1::{self as agent, mount::Source},
    cri::v1::{self as cri, MountPropagation},
};
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use super::{
    files::{self, Budget, ReadError},
    host_path::{self, HostPath},
    kubelet_path::{self, KubeletVolume},
};
use crate::{
    config::ContainerDefaults,
    id_map::{self, IdMap},
    machine::{
        Propagation,
        mountinfo::{self, MountPoint},
    },
    sandbox::RequestError,
};

/// Writable files that kubelet mounts into every container; the guest's copy is the container's own.
const OWN_COPIES: [&str; 3] = ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"];
/// What a mount can be asked to be beside read-only.
const OPTIONS: [&str; 7] = [
    "nosuid",
    "nodev",
    "noexec",
    "noatime",
    "nodiratime",
    "relatime",
    "strictatime",
];
/// Mounts of the host below one volume that get the volume's attributes for themselves.
const MAX_SUBMOUNTS: usize = 4096;

/// Where a memory emptyDir is, from its first use on: its containers have to find the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MemoryHome {
    Guest,
    Host,
}

/// Homes by the volume's path.
pub(crate) type MemoryHomes = BTreeMap<PathBuf, MemoryHome>;

/// One mount as it is to be made.
#[derive(Debug)]
pub(crate) struct PlannedMount {
    /// "mounts[3]"
    pub(crate) field: String,
    /// For the agent, without a source.
    pub(crate) mount: agent::Mount,
    pub(crate) volume: Volume,
}

/// What is mounted.
#[derive(Debug)]
pub(crate) enum Volume {
    /// Complete as it is.
    Sent(Source),
    /// An image's layers, which the Machine must have.
    Image { image: String, path: String },
    /// Kept up to date with the host's path.
    Followed {
        path: PathBuf,
        source: agent::FilesSource,
    },
    /// A tmpfs of the guest for the volume at `base`.
    Memory {
        base: PathBuf,
        source: agent::TmpfsSource,
    },
    /// What was opened is bound into the shared directory.
    Shared(SharedVolume),
}

/// A file or directory of the host.
#[derive(Debug)]
pub(crate) struct SharedVolume {
    pub(crate) path: PathBuf,
    pub(crate) source: HostPath,
    pub(crate) propagation: Propagation,
    /// Below it, relative.
    pub(crate) submounts: Vec<String>,
    /// It belongs to this memory emptyDir, which has its home on the host by that.
    pub(crate) memory: Option<PathBuf>,
    /// Of the user namespace whose ids the guest is to see.
    pub(crate) id_map: Option<IdMap>,
}

/// What of the pod decides on a container's mounts.
#[derive(Debug)]
pub(super) struct OfPod<'a> {
    pub(super) defaults: &'a ContainerDefaults,
    pub(super) homes: &'a MemoryHomes,
    pub(super) id_map: Option<IdMap>,
}

/// All mounts of a container, and where its termination message goes.
#[derive(Debug, Default)]
pub(crate) struct Mounts {
    pub(crate) planned: Vec<PlannedMount>,
    pub(crate) termination_log: Option<PathBuf>,
}

/// The pod's own files, then what the container asks for. Blocks.
pub(super) fn plan(
    mounts: &[cri::Mount],
    termination_log: &str,
    of_pod: &OfPod<'_>,
) -> Result<Mounts, RequestError> {
    let mut result = Mounts {
        planned: pod_files(mounts).map(sent).collect(),
        termination_log: None,
    };
    let mut planner = Planner {
        budget: Budget::new(of_pod.defaults),
        host_mounts: mountinfo::all().map_err(RequestError::failed("read the host's mounts"))?,
        homes: of_pod.homes,
    };
    for (index, mount) in mounts.iter().enumerate() {
        let field = format!("mounts[{index}]");
        check(&field, mount)?;
        let is_log = mount.container_path == termination_log;
        let id_mapped = id_map::of_mount(&field, mount, of_pod.id_map)?;
        let mut volume = planner.volume(&field, mount, is_log)?;
        // The host maps what it shares: the guest sees ids that are mapped already.
        let is_shared = if let Volume::Shared(shared) = &mut volume {
            shared.id_map = of_pod.id_map.filter(|_| id_mapped);
            true
        } else {
            false
        };
        if is_log && matches!(volume, Volume::Sent(_)) {
            result.termination_log = Some(PathBuf::from(&mount.host_path));
        }
        result.planned.push(PlannedMount {
            mount: agent::Mount {
                destination: mount.container_path.clone(),
                read_only: mount.readonly,
                recursive_read_only: mount.recursive_read_only,
                options: mount.mount_options.clone(),
                source: None,
                id_mapped: id_mapped && !is_shared,
            },
            field,
            volume,
        });
    }
    Ok(result)
}

/// The pod's own files and their places: those that the container does not mount itself.
pub(super) fn pod_files(mounts: &[cri::Mount]) -> impl Iterator<Item = (&'static str, Source)> {
    let missing = |path: &&str| !mounts.iter().any(|mount| mount.container_path == **path);
    let file = |path: &'static str| {
        let name = path.trim_start_matches("/etc/").to_owned();
        (path, Source::Sandbox(agent::SandboxSource { name }))
    };
    ["/etc/resolv.conf", "/etc/hosts", "/etc/hostname"]
        .into_iter()
        .filter(missing)
        .map(file)
}

fn sent((destination, source): (&str, Source)) -> PlannedMount {
    PlannedMount {
        field: destination.to_owned(),
        mount: agent::Mount {
            destination: destination.to_owned(),
            ..agent::Mount::default()
        },
        volume: Volume::Sent(source),
    }
}

/// What holds for mounts of either kind of pod.
pub(super) fn check_common(field: &str, mount: &cri::Mount) -> Result<(), RequestError> {
    if !mount.container_path.starts_with('/') {
        return Err(RequestError::invalid(
            format!("{field}.container_path"),
            "no absolute path",
        ));
    }
    let private = mount.propagation() == MountPropagation::PropagationPrivate;
    if mount.recursive_read_only && (!mount.readonly || !private) {
        let reason = "needs readonly and private propagation";
        return Err(RequestError::invalid(
            format!("{field}.recursive_read_only"),
            reason,
        ));
    }
    Ok(())
}

/// What of a mount can be judged by itself.
pub(super) fn check(field: &str, mount: &cri::Mount) -> Result<(), RequestError> {
    check_common(field, mount)?;
    let invalid = |name: &str, reason: &str| Err(RequestError::invalid(format!("{field}.{name}"), reason));
    let unsupported =
        |name: &str, reason: String| Err(RequestError::unsupported(format!("{field}.{name}"), reason));
    if mount.propagation() == MountPropagation::PropagationBidirectional {
        let reason = "Bidirectional: what a container mounts stays in its Machine; [host_pods] privileged = true runs \
            privileged pods, which may ask for it, on the host"
            .to_owned();
        return unsupported("propagation", reason);
    }
    let unknown = |option: &&String| !OPTIONS.contains(&option.as_str());
    if let Some(option) = mount.mount_options.iter().find(unknown) {
        return unsupported("mount_options", format!("{option:?} is none of {OPTIONS:?}"));
    }
    // selinux_relabel: labels of host files mean nothing in the guest, which has no SELinux; kubelet sets it always.
    if is_image(mount) {
        if !mount.host_path.is_empty() {
            return invalid("host_path", "an image is mounted, and has no path of the host");
        }
        if !mount.readonly {
            return invalid("readonly", "an image can be mounted read-only only");
        }
    } else if !mount.image_sub_path.is_empty() {
        return invalid("image_sub_path", "no image is mounted");
    }
    Ok(())
}

pub(super) fn is_image(mount: &cri::Mount) -> bool {
    mount.image.as_ref().is_some_and(|image| !image.image.is_empty())
}

struct Planner<'a> {
    budget: Budget,
    host_mounts: Vec<MountPoint>,
    homes: &'a MemoryHomes,
}

impl Planner<'_> {
    fn volume(&mut self, field: &str, mount: &cri::Mount, is_log: bool) -> Result<Volume, RequestError> {
        if let Some(image) = mount.image.as_ref().filter(|_| is_image(mount)) {
            return Ok(Volume::Image {
                image: image.image.clone(),
                path: mount.image_sub_path.trim_matches('/').to_owned(),
            });
        }
        let path = Path::new(&mount.host_path);
        let host_field = format!("{field}.host_path");
        let source = host_path::open(&host_field, path)?;
        refuse_special(&host_field, path, source.kind)?;
        let volume = kubelet_path::recognize(path);
        if is_log || self.is_copied(mount, &source, volume.as_ref()) {
            let read = files::single(&source.name(), &mut self.budget);
            if let Some(source) = fits(&host_field, path, read)? {
                return Ok(Volume::Sent(Source::Files(source)));
            }
        }
        if volume == Some(KubeletVolume::Projected) && mount.readonly && has_generation(path) {
            let read = files::generation(path, &mut self.budget);
            if let Some(source) = fits(&host_field, path, read)? {
                let path = path.to_owned();
                return Ok(Volume::Followed { path, source });
            }
        }
        let memory = self.memory(&source, path, volume);
        let memory = memory.map_err(|error| RequestError::invalid(&host_field, error.to_string()))?;
        match memory {
            Memory::Guest(volume) => Ok(volume),
            Memory::Host(base) => self.shared(field, mount, source, Some(base)),
            Memory::None => self.shared(field, mount, source, None),
        }
    }

    /// kubelet's own files, and single files out of volumes that it never changes there.
    fn is_copied(&self, mount: &cri::Mount, source: &HostPath, volume: Option<&KubeletVolume>) -> bool {
        let of_projected = match volume {
            Some(KubeletVolume::SubPath { projected, .. }) => {
                mount.readonly && projected.iter().any(|volume| volume.exists())
            }
            _ => false,
        };
        let own = OWN_COPIES.contains(&mount.container_path.as_str());
        source.kind == FileType::RegularFile && (own || of_projected)
    }

    fn memory(
        &self,
        source: &HostPath,
        path: &Path,
        volume: Option<KubeletVolume>,
    ) -> std::io::Result<Memory> {
        let base = match volume {
            Some(KubeletVolume::EmptyDir) => path.to_owned(),
            Some(KubeletVolume::SubPath { empty_dir, .. }) => empty_dir,
            Some(KubeletVolume::Projected) | None => return Ok(Memory::None),
        };
        let (Some(size_bytes), FileType::Directory) = (source.tmpfs_bytes()?, source.kind) else {
            return Ok(Memory::None);
        };
        let Some(mounted) = source.mount(&self.host_mounts) else {
            return Ok(Memory::Host(base));
        };
        // The volume itself is the root of its file system; kubelet's bind for a sub path is the directory inside. What is
        // no mount is a directory of somebody else's tmpfs.
        let mounted = Some(mounted).filter(|mount| source.real_path().is_ok_and(|path| path == mount.at));
        let inside = mounted
            .and_then(|mount| mount.root.to_str())
            .map(|root| root.trim_start_matches('/').to_owned());
        let home = match (self.homes.get(&base), &inside) {
            (Some(home), _) => *home,
            (None, Some(inside)) if inside.is_empty() && source.is_empty_directory()? => MemoryHome::Guest,
            (None, _) => MemoryHome::Host,
        };
        let (MemoryHome::Guest, Some(inside), Some(name)) = (home, inside, base.to_str()) else {
            return Ok(Memory::Host(base));
        };
        let source = agent::TmpfsSource {
            size_bytes,
            mode: source.mode,
            name: name.to_owned(),
            path: inside,
            uid: source.owner.0,
            gid: source.owner.1,
            lasting: true,
        };
        Ok(Memory::Guest(Volume::Memory { base, source }))
    }

    fn shared(
        &self,
        field: &str,
        mount: &cri::Mount,
        source: HostPath,
        memory: Option<PathBuf>,
    ) -> Result<Volume, RequestError> {
        let path = PathBuf::from(&mount.host_path);
        let propagation = match mount.propagation() {
            MountPropagation::PropagationHostToContainer => {
                if !source
                    .mount(&self.host_mounts)
                    .is_some_and(|mount| mount.receives)
                {
                    let reason = format!(
                        "{} is on a mount that is neither shared nor slave",
                        path.display()
                    );
                    return Err(RequestError::invalid(format!("{field}.propagation"), reason));
                }
                Propagation::FromHost
            }
            MountPropagation::PropagationPrivate | MountPropagation::PropagationBidirectional => {
                Propagation::Private
            }
        };
        let submounts = if mount.readonly && !mount.recursive_read_only || !mount.mount_options.is_empty() {
            self.submounts(field, &source)?
        } else {
            Vec::new()
        };
        Ok(Volume::Shared(SharedVolume {
            path,
            source,
            propagation,
            submounts,
            memory,
            id_map: None,
        }))
    }

    /// Those that keep attributes of their own when the volume's are set.
    fn submounts(&self, field: &str, source: &HostPath) -> Result<Vec<String>, RequestError> {
        let path = source.real_path().map_err(RequestError::failed(format!(
            "find the mounts below {field}.host_path"
        )))?;
        let below = mountinfo::below(&self.host_mounts, &path);
        let mut names: Vec<String> = below
            .filter_map(|relative| relative.to_str().map(str::to_owned))
            .take(MAX_SUBMOUNTS)
            .collect();
        names.sort();
        names.dedup();
        Ok(names)
    }
}

enum Memory {
    None,
    Guest(Volume),
    /// Of this volume, which is the host's.
    Host(PathBuf),
}

/// `None`: read, but not to be sent.
fn fits(
    field: &str,
    path: &Path,
    read: Result<agent::FilesSource, ReadError>,
) -> Result<Option<agent::FilesSource>, RequestError> {
    match read {
        Ok(source) => Ok(Some(source)),
        Err(error @ ReadError::Unfit { .. }) => {
            tracing::debug!(%error, "shared instead of copied");
            Ok(None)
        }
        Err(ReadError::Io(error)) => Err(RequestError::invalid(
            field,
            format!("{}: {error}", path.display()),
        )),
    }
}

fn has_generation(path: &Path) -> bool {
    std::fs::read_link(path.join("..data")).is_ok()
}

fn refuse_special(field: &str, path: &Path, kind: FileType) -> Result<(), RequestError> {
    let why = match kind {
        FileType::Directory | FileType::RegularFile => return Ok(()),
        FileType::Socket => "is a socket: a process in a Machine cannot connect to one of the host's",
        FileType::Fifo => "is a pipe: its other end would be in another kernel",
        FileType::CharacterDevice | FileType::BlockDevice => {
            "is a device of the host; block devices are given by devices, others to pods on the host ([host_pods])"
        }
        FileType::Symlink | FileType::Unknown => "is neither a file nor a directory",
    };
    Err(RequestError::unsupported(
        field,
        format!("{} {why}", path.display()),
    ))
}

#[cfg(test)]
mod tests;
