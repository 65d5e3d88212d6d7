//! What mounts become, by what the host has at their path.

use std::os::unix::{fs::symlink, net::UnixListener};

use super::*;
use crate::id_map::tests::{map, mapping};
use crate::machine::shares::testing::{in_own_namespace, tmpfs};

struct Host {
    root: tempfile::TempDir,
    homes: MemoryHomes,
    limits: ContainerDefaults,
}

impl Host {
    fn new() -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
            homes: MemoryHomes::new(),
            limits: ContainerDefaults::default(),
        }
    }

    fn at(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    fn directory(&self, below: &str) -> PathBuf {
        let path = self.at(below);
        fs_err::create_dir_all(&path).unwrap();
        path
    }

    /// As kubelet's atomic writer leaves it.
    fn config_map(&self) -> PathBuf {
        let path = self.directory("pods/u/volumes/kubernetes.io~configmap/config");
        fs_err::create_dir(path.join("..1")).unwrap();
        fs_err::write(path.join("..1/key"), "value").unwrap();
        symlink("..1", path.join("..data")).unwrap();
        symlink("..data/key", path.join("key")).unwrap();
        path
    }

    fn plan(&self, mount: cri::Mount) -> Result<Volume, RequestError> {
        let mounts = plan(&[mount], "/dev/termination-log", &self.of_pod())?;
        Ok(mounts.planned.into_iter().last().unwrap().volume)
    }

    fn of_pod(&self) -> OfPod<'_> {
        OfPod {
            defaults: &self.limits,
            homes: &self.homes,
            id_map: None,
        }
    }

    fn refusal(&self, mount: cri::Mount) -> String {
        self.plan(mount).unwrap_err().to_string()
    }
}

fn mount(path: &Path, readonly: bool) -> cri::Mount {
    cri::Mount {
        container_path: "/data".to_owned(),
        host_path: path.to_str().unwrap().to_owned(),
        readonly,
        ..cri::Mount::default()
    }
}

fn shared(volume: Volume) -> SharedVolume {
    match volume {
        Volume::Shared(shared) => shared,
        other => panic!("{other:?}"),
    }
}

#[test]
fn directories_and_files_are_shared_whatever_leads_to_them() {
    let host = Host::new();
    let data = host.directory("data");
    fs_err::write(data.join("file"), "x").unwrap();
    symlink(&data, host.at("link")).unwrap();
    for (path, kind) in [
        (data.clone(), FileType::Directory),
        (data.join("file"), FileType::RegularFile),
        (host.at("link"), FileType::Directory),
        (host.at("made/by/us"), FileType::Directory),
    ] {
        for readonly in [false, true] {
            let shared = shared(host.plan(mount(&path, readonly)).unwrap());
            assert_eq!(
                (shared.source.kind, shared.path.as_path()),
                (kind, path.as_path())
            );
            assert_eq!((shared.propagation, shared.memory), (Propagation::Private, None));
        }
    }
    assert!(host.at("made/by/us").is_dir());
}

#[test]
fn what_works_in_one_kernel_only_is_refused() {
    let host = Host::new();
    let _listener = UnixListener::bind(host.at("socket")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, host.at("pipe"), FileType::Fifo, 0o600.into(), 0).unwrap();
    for (path, why) in [
        (host.at("socket"), "is a socket"),
        (host.at("pipe"), "is a pipe"),
        ("/dev/null".into(), "[host_pods]"),
    ] {
        let text = host.refusal(mount(&path, false));
        assert!(
            text.starts_with("mounts[0].host_path is not supported") && text.contains(why),
            "{text}"
        );
    }
}

#[test]
fn config_maps_are_followed_unless_they_are_large_or_writable() {
    let mut host = Host::new();
    let path = host.config_map();
    match host.plan(mount(&path, true)).unwrap() {
        Volume::Followed { path: of, source } => {
            assert_eq!(of, path);
            assert_eq!((source.generation.as_str(), source.files.len()), ("..1", 1));
            assert_eq!(source.name, path.to_str().unwrap());
        }
        other => panic!("{other:?}"),
    }
    shared(host.plan(mount(&path, false)).unwrap());
    host.limits.file_kib = 0;
    shared(host.plan(mount(&path, true)).unwrap());
}

#[test]
fn kubelets_own_files_are_copied() {
    let host = Host::new();
    host.config_map();
    let sub = host.directory("pods/u/volume-subpaths/config/main").join("0");
    let other = host.directory("pods/u/volume-subpaths/data/main").join("0");
    let own = host.at("pods/u/etc-hosts");
    for file in [&sub, &other, &own] {
        fs_err::write(file, "x").unwrap();
    }
    let copied = |mount: cri::Mount| matches!(host.plan(mount).unwrap(), Volume::Sent(Source::Files(_)));
    assert!(copied(mount(&sub, true)));
    assert!(
        !copied(mount(&other, true)),
        "a file of another volume may change"
    );
    assert!(copied(cri::Mount {
        container_path: "/etc/hosts".to_owned(),
        ..mount(&own, false)
    }));
    assert!(copied(cri::Mount {
        container_path: "/dev/termination-log".to_owned(),
        ..mount(&own, false)
    }));
}

fn memory(volume: Volume) -> agent::TmpfsSource {
    match volume {
        Volume::Memory { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_empty_directory_in_memory_keeps_the_home_it_got_first() {
    in_own_namespace("memory", |root| {
        let mut host = Host::new();
        let path = host.directory("pods/u/volumes/kubernetes.io~empty-dir/cache");
        let sub = host.directory("pods/u/volume-subpaths/cache/main/0");
        tmpfs(&path);
        let source = memory(host.plan(mount(&path, false)).unwrap());
        assert!(source.lasting && source.size_bytes > 0 && source.mode == 0o1777);
        assert_eq!(
            (source.name.as_str(), source.path.as_str()),
            (path.to_str().unwrap(), "")
        );
        // kubelet makes the directory on the host, and binds it.
        fs_err::create_dir_all(path.join("a/b")).unwrap();
        nix::mount::mount(
            Some(&path.join("a/b")),
            &sub,
            None::<&str>,
            nix::mount::MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
        for volume in [&path, &sub] {
            let shared = shared(host.plan(mount(volume, false)).unwrap());
            assert_eq!(
                shared.memory,
                Some(path.clone()),
                "what has contents stays on the host"
            );
        }
        host.homes.insert(path.clone(), MemoryHome::Guest);
        for (volume, inside) in [(&path, ""), (&sub, "a/b")] {
            let source = memory(host.plan(mount(volume, false)).unwrap());
            assert_eq!(
                (source.name.as_str(), source.path.as_str()),
                (path.to_str().unwrap(), inside)
            );
        }
        // A node whose kubelet works in memory: its volumes are no file systems of their own.
        tmpfs(root);
        let plain = root.join("pods/u/volumes/kubernetes.io~empty-dir/cache");
        fs_err::create_dir_all(&plain).unwrap();
        assert_eq!(
            shared(host.plan(mount(&plain, false)).unwrap()).memory,
            Some(plain)
        );
    });
    let host = Host::new();
    let path = host.directory("pods/u/volumes/kubernetes.io~empty-dir/cache");
    if rustix::fs::statfs(&path).is_ok_and(|stat| stat.f_type != 0x0102_1994) {
        assert_eq!(shared(host.plan(mount(&path, false)).unwrap()).memory, None);
    }
}

#[test]
fn images_are_mounted_read_only_or_not_at_all() {
    let host = Host::new();
    let image = |readonly, sub_path: &str| cri::Mount {
        container_path: "/image".to_owned(),
        readonly,
        image: Some(cri::ImageSpec {
            image: "registry/app:1".to_owned(),
            ..cri::ImageSpec::default()
        }),
        image_sub_path: sub_path.to_owned(),
        ..cri::Mount::default()
    };
    match host.plan(image(true, "/etc/")).unwrap() {
        Volume::Image { image, path } => {
            assert_eq!((image.as_str(), path.as_str()), ("registry/app:1", "etc"));
        }
        other => panic!("{other:?}"),
    }
    assert!(host.refusal(image(false, "")).starts_with("mounts[0].readonly"));
    let mut both = image(true, "");
    both.host_path = "/tmp".to_owned();
    assert!(host.refusal(both).starts_with("mounts[0].host_path"));
    let mut none = mount(Path::new("/tmp"), true);
    none.image_sub_path = "etc".to_owned();
    assert!(host.refusal(none).starts_with("mounts[0].image_sub_path"));
}

#[test]
fn what_a_mount_asks_for_is_honoured_or_refused_by_its_field() {
    let host = Host::new();
    let data = host.directory("data");
    let with = |change: fn(&mut cri::Mount)| {
        let mut mount = mount(&data, true);
        change(&mut mount);
        mount
    };
    let both_ways = with(|mount| mount.set_propagation(MountPropagation::PropagationBidirectional));
    let text = host.refusal(both_ways);
    assert!(
        text.starts_with("mounts[0].propagation") && text.contains("[host_pods] privileged"),
        "{text}"
    );
    for (mount, field) in [
        (
            with(|mount| mount.container_path = "data".to_owned()),
            "container_path",
        ),
        (with(|mount| mount.host_path = "data".to_owned()), "host_path"),
        (
            with(|mount| mount.mount_options = vec!["sync".to_owned()]),
            "mount_options",
        ),
        (
            with(|mount| mount.uid_mappings = vec![mapping(0, 1000, 10)]),
            "gidMappings",
        ),
        (
            with(|mount| {
                mount.recursive_read_only = true;
                mount.readonly = false;
            }),
            "recursive_read_only",
        ),
    ] {
        let text = host.refusal(mount);
        assert!(text.starts_with(&format!("mounts[0].{field}")), "{field}: {text}");
    }
    let asked = with(|mount| mount.mount_options = vec!["noexec".to_owned()]);
    let planned = plan(&[asked], "", &host.of_pod()).unwrap().planned;
    let planned = planned.into_iter().last().unwrap().mount;
    assert_eq!(
        (planned.options, planned.read_only),
        (vec!["noexec".to_owned()], true)
    );
}

#[test]
fn mapped_ids_are_the_hosts_to_map_where_it_shares_and_the_guests_elsewhere() {
    let host = Host::new();
    let data = host.directory("data");
    let config = host.config_map();
    let of_pod = OfPod {
        id_map: Some(map(1000, 10)),
        ..host.of_pod()
    };
    let mapped = |path: &Path| {
        let mut asked = mount(path, true);
        asked.uid_mappings = vec![mapping(0, 1000, 10)];
        asked.gid_mappings = vec![mapping(0, 1000, 10)];
        let planned = plan(&[asked], "", &of_pod).unwrap().planned;
        planned.into_iter().last().unwrap()
    };
    let shared = mapped(&data);
    assert!(!shared.mount.id_mapped);
    let Volume::Shared(volume) = shared.volume else {
        panic!("a directory of the host is shared");
    };
    assert_eq!(volume.id_map, Some(map(1000, 10)));
    assert!(mapped(&config).mount.id_mapped);
    let plain = plan(&[mount(&data, true)], "", &of_pod).unwrap().planned;
    assert!(matches!(&plain.last().unwrap().volume, Volume::Shared(volume) if volume.id_map.is_none()));
}
