//! Which mounts a container gets, in which order, with which attributes. Pure: where the content of a volume is comes
//! from `volumes.rs`.

use proto::agent::v1::mount::Source as WireSource;
use proto::agent::v1::{ErrorCode, Mount as WireMount, SandboxSource, StandardSource};

use crate::error::Failure;
use crate::init::order::{Attributes, Content, Mount, Source};

/// What every container has, unless the request mounts something else there. Parents come before children.
const STANDARD: [(&str, Standard); 7] = [
    ("/proc", Standard::FileSystem("proc")),
    ("/dev", Standard::FileSystem("tmpfs")),
    ("/dev/pts", Standard::FileSystem("devpts")),
    ("/dev/mqueue", Standard::FileSystem("mqueue")),
    ("/dev/shm", Standard::Sandbox("shm")),
    ("/sys", Standard::FileSystem("sysfs")),
    ("/sys/fs/cgroup", Standard::FileSystem("cgroup2")),
];

#[derive(Debug, Clone, Copy)]
enum Standard {
    FileSystem(&'static str),
    Sandbox(&'static str),
}

/// The request's mounts with the standard ones that it does not replace. A replaced one keeps its place in the order, so
/// that what belongs below it is still mounted after it.
pub(crate) fn complete(requested: &[WireMount], privileged: bool) -> Vec<WireMount> {
    let mut rest: Vec<&WireMount> = requested.iter().collect();
    let mut mounts = Vec::new();
    for (destination, standard) in STANDARD {
        let same = |mount: &&WireMount| normal(&mount.destination) == destination;
        match rest.iter().position(same) {
            Some(index) => mounts.push(rest.remove(index).clone()),
            None => mounts.push(standard_mount(destination, standard, privileged)),
        }
    }
    mounts.extend(rest.into_iter().cloned());
    mounts
}

fn standard_mount(destination: &str, standard: Standard, privileged: bool) -> WireMount {
    let source = match standard {
        Standard::FileSystem(name) => WireSource::Standard(StandardSource {
            filesystem: name.to_owned(),
        }),
        Standard::Sandbox(name) => WireSource::Sandbox(SandboxSource {
            name: name.to_owned(),
        }),
    };
    WireMount {
        destination: destination.to_owned(),
        read_only: !privileged && matches!(standard, Standard::FileSystem("sysfs" | "cgroup2")),
        recursive_read_only: false,
        options: ["nosuid", "noexec", "nodev"].map(str::to_owned).to_vec(),
        source: Some(source),
        id_mapped: false,
    }
}

fn normal(path: &str) -> String {
    let mut normal = String::new();
    for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
        normal.push('/');
        normal.push_str(name);
    }
    normal
}

/// A new instance of one of a container's standard file systems.
///
/// # Errors
/// `InvalidArgument` naming `field`.
pub(super) fn standard(field: &str, destination: &str, filesystem: &str) -> Result<Source, Failure> {
    let options: &[(&str, &str)] = match filesystem {
        "proc" | "sysfs" | "cgroup2" | "mqueue" => &[],
        // gid 5 is "tty" in every distribution, and what glibc's grantpt(3) expects.
        "devpts" => &[
            ("newinstance", ""),
            ("ptmxmode", "0666"),
            ("mode", "0620"),
            ("gid", "5"),
        ],
        "tmpfs" => &[("mode", "755"), ("size", "65536k")],
        other => {
            return Err(Failure::invalid(format!(
                "{field}.standard.filesystem: {other:?} is not one of them"
            )));
        }
    };
    let content = if filesystem == "tmpfs" && normal(destination) == "/dev" {
        Content::Devices
    } else {
        Content::Empty
    };
    Ok(new_file_system(filesystem, options, content))
}

pub(super) fn new_file_system(filesystem: &str, options: &[(&str, &str)], content: Content) -> Source {
    let option = |(key, value): &(&str, &str)| {
        (
            (*key).to_owned(),
            (!value.is_empty()).then(|| (*value).to_owned()),
        )
    };
    Source::New {
        filesystem: filesystem.to_owned(),
        options: options.iter().map(option).collect(),
        content,
    }
}

/// The mount of `source` as `mount` asks for it.
///
/// # Errors
/// `InvalidArgument` or `Unsupported`, naming `field`.
pub(super) fn mount(field: &str, mount: &WireMount, source: Source) -> Result<Mount, Failure> {
    if !mount.destination.starts_with('/') || normal(&mount.destination).is_empty() {
        let text = format!(
            "{field}.destination: {:?} is no absolute path below the root",
            mount.destination
        );
        return Err(Failure::invalid(text));
    }
    let mut attributes = attributes(field, &mount.options)?;
    attributes.read_only |= mount.read_only;
    // Devices in /dev must work whatever the options say.
    let devices = matches!(
        source,
        Source::New {
            content: Content::Devices,
            ..
        }
    );
    let terminals = matches!(&source, Source::New { filesystem, .. } if filesystem == "devpts");
    attributes.no_dev &= !devices && !terminals;
    let exact =
        matches!(&source, Source::New { filesystem, .. } if filesystem == "proc" || filesystem == "sysfs");
    Ok(Mount {
        destination: mount.destination.clone(),
        source,
        attributes,
        recursive_read_only: mount.recursive_read_only,
        exact_destination: exact,
        id_mapped: false,
    })
}

fn attributes(field: &str, options: &[String]) -> Result<Attributes, Failure> {
    let mut attributes = Attributes::default();
    for option in options {
        match option.as_str() {
            "ro" => attributes.read_only = true,
            "rw" => attributes.read_only = false,
            "nosuid" => attributes.no_suid = true,
            "suid" => attributes.no_suid = false,
            "nodev" => attributes.no_dev = true,
            "dev" => attributes.no_dev = false,
            "noexec" => attributes.no_exec = true,
            "exec" => attributes.no_exec = false,
            "noatime" => attributes.no_atime = true,
            "strictatime" => attributes.strict_atime = true,
            "nodiratime" => attributes.no_dir_atime = true,
            // What mounts here are anyway: the kernel's defaults, and cut off from the agent's namespace.
            "defaults" | "bind" | "rbind" | "relatime" | "private" | "rprivate" => {}
            "slave" | "rslave" | "shared" | "rshared" => {
                let text = format!(
                    "{field}.options: mount propagation {option} does not cross the Machine's border"
                );
                return Err(Failure::new(ErrorCode::Unsupported, text));
            }
            other => {
                return Err(Failure::invalid(format!(
                    "{field}.options: unknown option {other:?}"
                )));
            }
        }
    }
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(destination: &str) -> WireMount {
        WireMount {
            destination: destination.to_owned(),
            options: vec!["noexec".to_owned()],
            ..WireMount::default()
        }
    }

    fn destinations(mounts: &[WireMount]) -> Vec<&str> {
        mounts.iter().map(|mount| mount.destination.as_str()).collect()
    }

    #[test]
    fn a_replaced_standard_mount_keeps_its_place() {
        let mounts = complete(&[asked("/data"), asked("/dev/"), asked("/dev/shm")], false);
        assert_eq!(
            destinations(&mounts),
            [
                "/proc",
                "/dev/",
                "/dev/pts",
                "/dev/mqueue",
                "/dev/shm",
                "/sys",
                "/sys/fs/cgroup",
                "/data"
            ]
        );
        assert_eq!(mounts[1].options, ["noexec"]);
    }

    #[test]
    fn sysfs_and_cgroups_are_read_only_unless_privileged() {
        let read_only = |privileged| -> Vec<String> {
            let mounts = complete(&[], privileged);
            mounts
                .into_iter()
                .filter(|mount| mount.read_only)
                .map(|mount| mount.destination)
                .collect()
        };
        assert_eq!(read_only(false), ["/sys", "/sys/fs/cgroup"]);
        assert_eq!(read_only(true), Vec::<String>::new());
    }

    #[test]
    fn dev_gets_its_nodes_and_can_use_them() {
        let plan = |destination, filesystem| {
            let source = standard("mounts[0]", destination, filesystem).unwrap();
            let asked = WireMount {
                destination: destination.to_owned(),
                options: vec!["nodev".to_owned()],
                ..WireMount::default()
            };
            mount("mounts[0]", &asked, source).unwrap()
        };
        let dev = plan("/dev", "tmpfs");
        assert!(
            !dev.attributes.no_dev
                && matches!(
                    dev.source,
                    Source::New {
                        content: Content::Devices,
                        ..
                    }
                )
        );
        let run = plan("/run", "tmpfs");
        assert!(
            run.attributes.no_dev
                && matches!(
                    run.source,
                    Source::New {
                        content: Content::Empty,
                        ..
                    }
                )
        );
        assert!(plan("/proc", "proc").exact_destination);
        assert!(standard("mounts[0]", "/x", "nfs").is_err());
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        let mut wrong = asked("/data");
        wrong.options = vec!["rshared".to_owned()];
        let source = || new_file_system("tmpfs", &[], Content::Empty);
        assert_eq!(
            mount("mounts[3]", &wrong, source()).unwrap_err().code(),
            ErrorCode::Unsupported
        );
        wrong.options = vec!["sync".to_owned()];
        let failure = mount("mounts[3]", &wrong, source()).unwrap_err();
        assert!(failure.to_string().starts_with("mounts[3].options"), "{failure}");
        for destination in ["", "data", "/", "/./"] {
            assert!(
                mount("mounts[3]", &asked(destination), source()).is_err(),
                "{destination:?}"
            );
        }
    }
}
