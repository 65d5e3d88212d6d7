//! Each refusal names its field.

use std::io::Write;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::SockType;
use proto::machine::{Console, Device, FileSource, MAX_PAGE_RUNS, PageRun, Snapshot};

use super::device::parse_mac;
use super::*;

fn config() -> MachineConfig {
    MachineConfig {
        version: CONFIG_VERSION,
        id: "a1".to_owned(),
        kernel: Some(FileSource::Path("/dev/null".into())),
        initramfs: Some(FileSource::Path("/dev/null".into())),
        command_line: "quiet".to_owned(),
        snapshot: None,
        vcpus: Vcpus { boot: 1, max: 2 },
        memory_mib: 128,
        memory_hotplug_mib: 0,
        control: "control.sock".into(),
        console: Console {
            ring_bytes: 65536,
            dump: None,
        },
        vsock: None,
        devices: Vec::new(),
    }
}

fn refusal(change: impl FnOnce(&mut MachineConfig)) -> String {
    let mut config = config();
    change(&mut config);
    let error = check(&config)
        .and_then(|()| prepare(config, &mut Descriptors::none()))
        .unwrap_err();
    std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

fn pmem(id: &str, path: &str) -> Device {
    Device::Pmem {
        id: id.to_owned(),
        file: FileSource::Path(path.into()),
    }
}

#[test]
fn a_good_configuration_becomes_a_plan() {
    let mut config = config();
    config.devices.push(pmem("layer-1", "/dev/null"));
    check(&config).unwrap();
    let (plan, beginning) = prepare(config, &mut Descriptors::none()).unwrap();
    assert_eq!(plan.memory_bytes, 128 << 20);
    let Beginning::Boot(payload) = beginning else {
        panic!("{beginning:?}");
    };
    assert!(
        payload.command_line.ends_with(" quiet"),
        "{}",
        payload.command_line
    );
    assert!(matches!(plan.devices[0].kind, DeviceKind::Pmem { .. }));
}

type Change = fn(&mut MachineConfig);

#[test]
fn every_refusal_names_its_field() {
    let cases: [(&str, Change); 11] = [
        ("version: 7", |config| config.version = 7),
        ("id: ", |config| config.id = "../x".to_owned()),
        ("vcpus: boot 0", |config| config.vcpus.boot = 0),
        ("vcpus: boot 3", |config| config.vcpus.boot = 3),
        ("vcpus: boot 1 and max 255", |config| config.vcpus.max = 255),
        ("memory_mib: 1 ", |config| config.memory_mib = 1),
        ("memory_hotplug_mib: 100 ", |config| {
            config.memory_hotplug_mib = 100;
        }),
        ("memory_hotplug_mib: 1048704 ", |config| {
            config.memory_hotplug_mib = (1 << 20) + 128;
        }),
        ("console.ring_bytes: 1 ", |config| config.console.ring_bytes = 1),
        ("command_line: ", |config| config.command_line = "x".repeat(2048)),
        ("vsock.guest_cid: 2", |config| {
            config.vsock = Some(Vsock {
                guest_cid: 2,
                socket: "v".into(),
            });
        }),
    ];
    for (start, change) in cases {
        let text = refusal(change);
        assert!(text.starts_with(start), "{start:?}: {text}");
    }
}

#[test]
fn a_guest_boots_or_goes_on_and_never_both() {
    let file = || FileSource::Path("/dev/null".into());
    let snapshot = |origin: &str| Snapshot {
        memory: file(),
        state: file(),
        origin: origin.to_owned(),
        written_soon: Vec::new(),
    };
    let goes_on = |config: &mut MachineConfig| {
        (config.kernel, config.initramfs) = (None, None);
        config.command_line = String::new();
        config.snapshot = Some(snapshot("kernel-1"));
    };
    let write_soon = |config: &mut MachineConfig, runs: &[(u64, u64)]| {
        let runs = runs.iter().map(|(first, count)| PageRun {
            first: *first,
            count: *count,
        });
        config.snapshot.as_mut().unwrap().written_soon = runs.collect();
    };
    let mut config = config();
    goes_on(&mut config);
    let last = (config.memory_mib << 8) - 1;
    write_soon(&mut config, &[(0, 1), (last - 5, 6)]);
    check(&config).unwrap();
    let (_, beginning) = prepare(config, &mut Descriptors::none()).unwrap();
    assert!(matches!(&beginning, Beginning::Snapshot(files) if files.origin == "kernel-1"));

    type Change<'c> = &'c dyn Fn(&mut MachineConfig);
    let cases: [(&str, Change<'_>); 9] = [
        ("kernel: ", &|config| config.kernel = None),
        ("initramfs: ", &|config| config.initramfs = None),
        ("kernel: ", &|config| config.snapshot = Some(snapshot("o"))),
        ("initramfs: ", &|config| {
            goes_on(config);
            config.initramfs = Some(file());
        }),
        ("command_line: ", &|config| {
            goes_on(config);
            config.command_line = "quiet".to_owned();
        }),
        ("snapshot.origin: ", &|config| {
            goes_on(config);
            config.snapshot = Some(snapshot(""));
        }),
        ("snapshot.written_soon: ", &|config| {
            goes_on(config);
            write_soon(config, &[(0, 1), (config.memory_mib << 8, 1)]);
        }),
        ("snapshot.written_soon: ", &|config| {
            goes_on(config);
            write_soon(config, &[(u64::MAX, 1)]);
        }),
        ("snapshot.written_soon: ", &|config| {
            goes_on(config);
            write_soon(config, &[(0, 1); MAX_PAGE_RUNS + 1]);
        }),
    ];
    for (start, change) in cases {
        let text = refusal(change);
        assert!(text.starts_with(start), "{start:?}: {text}");
    }
}

#[test]
fn missing_files_and_bad_devices_are_named() {
    let text = refusal(|config| config.kernel = Some(FileSource::Path("/nowhere/vmlinux".into())));
    assert!(
        text.starts_with("kernel: ") && text.contains("/nowhere/vmlinux"),
        "{text}"
    );
    let text = refusal(|config| config.devices.push(pmem("l", "/nowhere/layer")));
    assert!(
        text.starts_with("devices: ") && text.contains("device l") && text.contains("/nowhere/layer"),
        "{text}"
    );
    let text = refusal(|config| config.devices = vec![pmem("l", "/dev/null"), pmem("l", "/dev/null")]);
    assert!(text.contains("\"l\" is in use"), "{text}");
    let memory = |id: &str| Device::Memory { id: id.to_owned() };
    let text = refusal(|config| config.devices = vec![memory("m"), memory("n")]);
    assert!(text.contains("device n: the Machine has another"), "{text}");
    let balloon = |id: &str| Device::Balloon { id: id.to_owned() };
    let text = refusal(|config| config.devices = vec![balloon("b"), memory("m"), balloon("c")]);
    assert!(text.contains("device c: the Machine has another"), "{text}");
    let digest = format!("pmem-{}", "0".repeat(64));
    assert!(check_id(&digest).is_ok() && check_id(&"0".repeat(129)).is_err());
    let text = refusal(|config| config.devices.push(pmem("a b", "/dev/null")));
    assert!(text.contains("\"a b\""), "{text}");
    let text = refusal(|config| config.initramfs = Some(FileSource::Fd(1000)));
    assert!(text.starts_with("initramfs: ") && text.contains("1000"), "{text}");
}

fn fs(change: impl FnOnce(&mut String, &mut u16, &mut u16)) -> Device {
    let (mut tag, mut queues, mut queue_size) = ("data".to_owned(), 1, 128);
    change(&mut tag, &mut queues, &mut queue_size);
    Device::Fs {
        id: "v".to_owned(),
        socket: FileSource::Fd(0),
        tag,
        queues,
        queue_size,
    }
}

#[test]
fn a_file_system_needs_a_shape_that_can_be_and_a_socket_with_a_peer() {
    let device = |device: &Device, file: OwnedFd| prepare_device(device, &mut Descriptors::sent(vec![file]));
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let prepared = device(&fs(|_, _, _| {}), ours.into()).unwrap();
    let DeviceKind::Fs { shape, .. } = prepared.kind else {
        panic!("{prepared:?}");
    };
    let tag = "data".to_owned();
    assert_eq!(
        shape,
        FsShape {
            tag,
            queues: 1,
            queue_size: 128
        }
    );

    let refused = |changed: Device, field: &str| {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let text = device(&changed, ours.into()).unwrap_err().to_string();
        assert!(text.starts_with(&format!("device v: {field}")), "{text}");
    };
    refused(fs(|tag, _, _| tag.clear()), "tag \"\"");
    refused(fs(|tag, _, _| *tag = "x".repeat(37)), "tag ");
    refused(fs(|tag, _, _| tag.push('\0')), "tag ");
    refused(fs(|_, queues, _| *queues = 0), "queues: 0");
    refused(fs(|_, queues, _| *queues = 17), "queues: 17");
    refused(fs(|_, _, size| *size = 8), "queue_size: 8");
    refused(fs(|_, _, size| *size = 100), "queue_size: 100");

    let unconnected = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Unix,
        SockType::Stream,
        nix::sys::socket::SockFlag::empty(),
        None,
    );
    let datagrams = std::os::unix::net::UnixDatagram::pair().unwrap().0;
    for file in [
        unconnected.unwrap(),
        datagrams.into(),
        tempfile::tempfile().unwrap().into(),
    ] {
        let text = device(&fs(|_, _, _| {}), file).unwrap_err().to_string();
        assert!(text.starts_with("device v: socket: "), "{text}");
    }
}

#[test]
fn a_descriptor_is_taken_once() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"x").unwrap();
    let number = u32::try_from(file.into_raw_fd()).unwrap();
    let mut descriptors = Descriptors::inherited();
    let source = FileSource::Fd(number);
    files::open(&source, &mut descriptors, false).unwrap();
    let again = files::open(&source, &mut descriptors, false)
        .unwrap_err()
        .to_string();
    assert!(again.contains("used twice"), "{again}");
}

#[test]
fn mac_addresses_are_strict() {
    assert_eq!(parse_mac("02:00:00:0a:ff:01"), Some([2, 0, 0, 10, 255, 1]));
    for bad in [
        "",
        "02:00:00:0a:ff",
        "02:00:00:0a:ff:01:02",
        "01:00:5e:00:00:01",
        "2:0:0:0:0:1",
        "02:00:00:0a:ff:+1",
    ] {
        assert_eq!(parse_mac(bad), None, "{bad}");
    }
}
