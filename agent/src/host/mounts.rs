//! The mounts of a host pod's container, in the OCI runtime's words. Pure but for one question to the kernel: whether the file
//! system that a shared mount is of is shared.

use std::path::{Path, PathBuf};

use proto::agent::v1::mount::Source;
use proto::agent::v1::{ErrorCode, HostSource, Mount, Propagation, SandboxSource, TmpfsSource};
use serde_json::{Value, json};

use crate::container::plan::check_path;
use crate::error::Failure;
use crate::host::pod::{SANDBOX_FILES, SHM};

/// Where the pod's own files are.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// The pod's directory.
    pub(super) directory: PathBuf,
    pub(super) host_ipc: bool,
}

/// One mount of the runtime's configuration.
///
/// # Errors
/// `InvalidArgument` or `Unsupported`, naming `field`.
pub(super) fn mount(field: &str, mount: &Mount, places: &Places) -> Result<Value, Failure> {
    check_path(&format!("{field}.destination"), &mount.destination)?;
    let source = mount.source.as_ref();
    let source = source.ok_or_else(|| Failure::invalid(format!("{field}.source: missing")))?;
    if mount.id_mapped {
        let text = format!("{field}.id_mapped: a host pod has no user namespace");
        return Err(Failure::invalid(text));
    }
    let mut options = mount.options.clone();
    match (mount.read_only, mount.recursive_read_only) {
        (_, true) => options.push("rro".to_owned()),
        (true, false) => options.push("ro".to_owned()),
        (false, false) => {}
    }
    let bind = |path: PathBuf, mut options: Vec<String>, propagation: &str| {
        options.extend(["rbind".to_owned(), propagation.to_owned()]);
        (path, "bind".to_owned(), options)
    };
    let (source, kind, options) = match source {
        Source::Standard(standard) => {
            let (kind, own) = standard_options(field, &standard.filesystem, &mount.destination)?;
            // Devices and terminals must work whatever the options say.
            options.retain(|option| option != "nodev" || !matches!(kind, "tmpfs" | "devpts"));
            options.retain(|option| option != "noexec" || kind != "tmpfs");
            options.extend(own.iter().map(|&option| option.to_owned()));
            (PathBuf::from(kind), kind.to_owned(), options)
        }
        Source::Sandbox(sandbox) => bind(pod_file(field, sandbox, places)?, options, "rprivate"),
        Source::Tmpfs(tmpfs) => {
            options.extend(tmpfs_options(field, tmpfs)?);
            ("tmpfs".into(), "tmpfs".to_owned(), options)
        }
        Source::Host(host) => {
            check_path(&format!("{field}.host.path"), &host.path)?;
            bind(PathBuf::from(&host.path), options, propagation(host))
        }
        Source::Shared(_) | Source::Disk(_) | Source::Files(_) | Source::Image(_) => {
            let text = format!("{field}.source: it is a Machine's; a host pod mounts paths of the host");
            return Err(Failure::new(ErrorCode::Unsupported, text));
        }
    };
    Ok(json!({"destination": mount.destination, "source": source, "type": kind, "options": options}))
}

fn propagation(host: &HostSource) -> &'static str {
    match host.propagation() {
        Propagation::Private => "rprivate",
        Propagation::Slave => "rslave",
        Propagation::Shared => "rshared",
    }
}

/// What the runtime makes of the root of the container's mount namespace: with its default, private, nothing below would
/// hear of the host's mounts, whatever single mounts say.
///
/// # Errors
/// `InvalidArgument` naming the field of a mount whose file system cannot do it.
pub(super) fn root_propagation(mounts: &[Mount], mountinfo: &str) -> Result<Option<&'static str>, Failure> {
    let mut most = None;
    for (index, mount) in mounts.iter().enumerate() {
        let Some(Source::Host(host)) = &mount.source else {
            continue;
        };
        let shared = || is_shared(Path::new(&host.path), mountinfo);
        match host.propagation() {
            Propagation::Private => {}
            Propagation::Slave => most = most.or(Some("rslave")),
            Propagation::Shared if shared() => most = Some("rshared"),
            Propagation::Shared => {
                let text = format!(
                    "mounts[{index}].propagation: {} is on a mount of the host that is not shared (mount --make-rshared)",
                    host.path
                );
                return Err(Failure::invalid(text));
            }
        }
    }
    Ok(most)
}

/// proc_pid_mountinfo(5): field 5 is the mount point, optional fields follow field 6 up to a dash. The last line whose mount
/// point is the longest beginning of the path is its mount.
fn is_shared(path: &Path, mountinfo: &str) -> bool {
    let mut best = (0, false);
    for line in mountinfo.lines() {
        let mut fields = line.split(' ').skip(4);
        let Some(point) = fields.next().map(unescape) else {
            continue;
        };
        let shared = fields
            .skip(1)
            .take_while(|field| *field != "-")
            .any(|field| field.starts_with("shared:"));
        if path.starts_with(&point) && point.len() >= best.0 {
            best = (point.len(), shared);
        }
    }
    best.1
}

/// Blanks in mount points are octal.
fn unescape(point: &str) -> String {
    point
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\134", "\\")
}

fn standard_options(
    field: &str,
    filesystem: &str,
    destination: &str,
) -> Result<(&'static str, &'static [&'static str]), Failure> {
    Ok(match filesystem {
        "proc" => ("proc", &[]),
        "sysfs" => ("sysfs", &[]),
        "cgroup2" => ("cgroup", &[]),
        "mqueue" => ("mqueue", &[]),
        // gid 5 is "tty" in every distribution, and what glibc's grantpt(3) expects.
        "devpts" => ("devpts", &["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        "tmpfs" if destination == "/dev" => ("tmpfs", &["strictatime", "mode=755", "size=65536k"]),
        other => {
            let text = format!("{field}.standard.filesystem: {other:?} is not one of them");
            return Err(Failure::invalid(text));
        }
    })
}

fn pod_file(field: &str, sandbox: &SandboxSource, places: &Places) -> Result<PathBuf, Failure> {
    match sandbox.name.as_str() {
        "shm" if places.host_ipc => Ok("/dev/shm".into()),
        "shm" => Ok(places.directory.join(SHM)),
        name @ ("resolv.conf" | "hosts" | "hostname" | "machine-id") => {
            Ok(places.directory.join(SANDBOX_FILES).join(name))
        }
        other => Err(Failure::invalid(format!(
            "{field}.sandbox.name: there is no {other:?}"
        ))),
    }
}

fn tmpfs_options(field: &str, tmpfs: &TmpfsSource) -> Result<Vec<String>, Failure> {
    if !tmpfs.name.is_empty() {
        let text = format!("{field}.tmpfs.name: memory volumes of a host pod are kubelet's own mounts");
        return Err(Failure::new(ErrorCode::Unsupported, text));
    }
    let mut options = Vec::new();
    if tmpfs.size_bytes != 0 {
        options.push(format!("size={}", tmpfs.size_bytes));
    }
    if tmpfs.mode != 0 {
        options.push(format!("mode={:o}", tmpfs.mode & 0o7777));
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::mount_plan;

    fn places(host_ipc: bool) -> Places {
        Places {
            directory: "/run/pod".into(),
            host_ipc,
        }
    }

    fn host(path: &str, propagation: Propagation) -> Mount {
        Mount {
            destination: "/data".to_owned(),
            source: Some(Source::Host(HostSource {
                path: path.to_owned(),
                propagation: propagation.into(),
            })),
            ..Mount::default()
        }
    }

    #[test]
    fn paths_of_the_host_are_bound_as_they_are_asked_for() {
        let asked = Mount {
            read_only: true,
            ..host("/srv", Propagation::Slave)
        };
        assert_eq!(
            mount("mounts[0]", &asked, &places(false)).unwrap(),
            json!({"destination": "/data", "source": "/srv", "type": "bind", "options": ["ro", "rbind", "rslave"]})
        );
        let recursive = Mount {
            recursive_read_only: true,
            ..asked
        };
        assert!(
            mount("m", &recursive, &places(false)).unwrap()["options"]
                .to_string()
                .contains("rro")
        );
        assert!(
            mount(
                "mounts[0]",
                &host("relative", Propagation::Private),
                &places(false)
            )
            .is_err()
        );
    }

    #[test]
    fn every_standard_mount_is_known_and_devices_work() {
        for asked in mount_plan::complete(&[], false) {
            let made = mount("m", &asked, &places(false)).unwrap();
            let devices = ["/dev", "/dev/pts"].contains(&asked.destination.as_str());
            assert_eq!(made["options"].to_string().contains("nodev"), !devices, "{made}");
        }
        let shm = mount_plan::complete(&[], false)
            .into_iter()
            .find(|mount| mount.destination == "/dev/shm")
            .unwrap();
        assert_eq!(mount("m", &shm, &places(true)).unwrap()["source"], "/dev/shm");
        assert_eq!(
            mount("m", &shm, &places(false)).unwrap()["source"],
            "/run/pod/shm"
        );
    }

    #[test]
    fn a_shared_mount_needs_a_shared_file_system() {
        let mountinfo =
            "22 1 8:1 / / rw - ext4 /dev/a rw\n30 22 8:2 / /srv/a\\040b rw shared:7 - ext4 /dev/b rw\n";
        let ask = |path: &str, propagation| root_propagation(&[host(path, propagation)], mountinfo);
        assert_eq!(ask("/srv/a b/c", Propagation::Shared), Ok(Some("rshared")));
        assert_eq!(ask("/srv", Propagation::Slave), Ok(Some("rslave")));
        assert_eq!(ask("/srv", Propagation::Private), Ok(None));
        let failure = ask("/srv/a", Propagation::Shared).unwrap_err().to_string();
        assert!(failure.starts_with("mounts[0].propagation"), "{failure}");
    }
}
