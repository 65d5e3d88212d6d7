//! The launcher with shell scripts in the place of the VMM: what the process inherits, how its end is told, and that no
//! other process is ever taken for it.

use std::{io::Write as _, time::Duration};

use proto::machine::{CONFIG_VERSION, Console, Device, ExitReason, Vcpus};
use tokio::time::timeout;

use super::*;
use crate::machine::process::MachineExit;

struct Fixture {
    directory: tempfile::TempDir,
    layout: Layout,
    launcher: VmmLauncher,
}

fn fixture(script: &str) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("clearpod-vmm");
    // Written by another process: were it open for writing here while another test forks, exec would fail with ETXTBSY.
    let written = Command::new("sh")
        .args([
            "-c",
            "printf '#!/bin/sh\n%s\n' \"$1\" > \"$0\" && chmod 755 \"$0\"",
        ])
        .arg(&program)
        .arg(script)
        .status();
    assert!(written.unwrap().success());
    let layout = Layout::new(&directory.path().join("machines"), "m1").unwrap();
    layout.create().unwrap();
    Fixture {
        layout,
        launcher: VmmLauncher::new(program),
        directory,
    }
}

fn config(devices: Vec<Device>) -> MachineConfig {
    MachineConfig {
        version: CONFIG_VERSION,
        id: "m1".to_owned(),
        kernel: Some(FileSource::Path("vmlinux".into())),
        initramfs: Some(FileSource::Path("initramfs".into())),
        command_line: String::new(),
        snapshot: None,
        vcpus: Vcpus { boot: 1, max: 1 },
        memory_mib: 128,
        memory_hotplug_mib: 0,
        control: Layout::CONTROL.into(),
        console: Console {
            ring_bytes: 4096,
            dump: None,
        },
        vsock: None,
        devices,
    }
}

impl Fixture {
    fn spec(&self) -> LaunchSpec {
        LaunchSpec {
            layout: self.layout.clone(),
            config: config(Vec::new()),
            inherited: Vec::new(),
            cgroup: None,
        }
    }

    async fn log(&self, exit: &Process) -> (MachineExit, String) {
        let exit = timeout(Duration::from_secs(20), exit.exited()).await.unwrap();
        (exit, fs_err::read_to_string(self.layout.vmm_log()).unwrap())
    }
}

#[tokio::test]
async fn the_vmm_gets_its_directory_a_session_and_only_the_wanted_descriptors() {
    let fixture = fixture(
        "pwd; ls /proc/self/fd | wc -l; cut -d' ' -f1,6 /proc/$$/stat; cat /proc/self/fd/$(grep -o '\"fd\": [0-9]*' machine.json | cut -d' ' -f2); exit 3",
    );
    let mut tap = tempfile::tempfile().unwrap();
    tap.write_all(b"tap content\n").unwrap();
    let noise = tempfile::tempfile().unwrap();
    // As a descriptor that the daemon was started with: not close-on-exec.
    rustix::io::fcntl_setfd(&noise, rustix::io::FdFlags::empty()).unwrap();
    let mut spec = fixture.spec();
    spec.config = config(vec![Device::Net {
        id: "eth0".to_owned(),
        tap: FileSource::Fd(0),
        mac: "02:00:00:00:00:01".to_owned(),
    }]);
    spec.inherited = vec![tap.into()];
    let process = fixture.launcher.launch(spec).await.unwrap();
    let pid = process.pid();
    let (exit, log) = fixture.log(&process).await;
    assert_eq!(exit, MachineExit::Exited(ExitReason::GuestPanic));
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(
        Path::new(lines[0]),
        fs_err::canonicalize(fixture.layout.directory()).unwrap()
    );
    // 0, 1, 2, the tap, and the directory that ls reads; the shell's pipe is 1.
    assert_eq!(lines[1].trim(), "5", "{log}");
    assert_eq!(lines[2], format!("{pid} {pid}"), "leader of its own session");
    assert_eq!(lines[3], "tap content", "{log}");
    drop(noise);
}

#[tokio::test]
async fn the_out_of_memory_killers_score_is_the_processes_until_it_has_ended() {
    let fixture = fixture("sleep 1000");
    let process = fixture.launcher.launch(fixture.spec()).await.unwrap();
    let score = format!("/proc/{}/oom_score_adj", process.pid());
    process.set_oom_score_adj(985).unwrap();
    assert_eq!(fs_err::read_to_string(&score).unwrap().trim(), "985");
    // Whether it may is the kernel's to say, but it has to understand it.
    match process.set_oom_score_adj(-500) {
        Ok(()) => assert_eq!(fs_err::read_to_string(&score).unwrap().trim(), "-500"),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
    }
    process.kill().unwrap();
    process.exited().await;
    process.set_oom_score_adj(500).unwrap();
}

#[tokio::test]
async fn a_configuration_that_names_a_missing_descriptor_starts_nothing() {
    let fixture = fixture("exit 0");
    let mut spec = fixture.spec();
    spec.config = config(vec![Device::Pmem {
        id: "layer-0".to_owned(),
        file: FileSource::Fd(1),
    }]);
    spec.inherited = vec![tempfile::tempfile().unwrap().into()];
    let error = fixture.launcher.launch(spec).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "device layer-0 of machine m1 is descriptor 1, but 1 are inherited"
    );
    assert!(!fixture.layout.process().exists());
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_an_error_and_not_an_exit() {
    let fixture = fixture("exit 0");
    let launcher = VmmLauncher::new(fixture.directory.path().join("missing"));
    let error = launcher.launch(fixture.spec()).await.unwrap_err();
    assert!(
        matches!(&error, LaunchError::Step { step: "start the program", source, .. }
        if source.kind() == io::ErrorKind::NotFound),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_second_launcher_adopts_kills_and_sees_the_end() {
    let fixture = fixture("exec sleep 600");
    let process = fixture.launcher.launch(fixture.spec()).await.unwrap();
    let later = VmmLauncher::new(PathBuf::from("unused"));
    let adopted = later.adopt(&fixture.layout).await.unwrap();
    assert_eq!((adopted.pid(), adopted.try_exited()), (process.pid(), None));
    adopted.kill().unwrap();
    let (first, second) = tokio::join!(process.exited(), adopted.exited());
    // Both are this test's process, so one of them reaps the child and the other one finds it reaped.
    assert!(
        [first, second].contains(&MachineExit::Signalled(9)),
        "{first:?} {second:?}"
    );
    adopted.kill().unwrap();
    let gone = later.adopt(&fixture.layout).await.unwrap_err();
    assert!(matches!(gone, AdoptError::Gone { .. }), "{gone}");
}

#[tokio::test]
async fn a_process_that_was_given_the_same_pid_is_not_ours() {
    let fixture = fixture("exec sleep 600");
    let process = fixture.launcher.launch(fixture.spec()).await.unwrap();
    let recorded = Identity::load(&fixture.layout.process()).unwrap().unwrap();
    let impostors = [
        Identity {
            start_time: recorded.start_time - 1,
            ..recorded.clone()
        },
        Identity {
            boot_id: "another boot".to_owned(),
            ..recorded.clone()
        },
        Identity {
            pid: u32::MAX,
            ..recorded.clone()
        },
    ];
    for identity in impostors {
        identity.store(&fixture.layout.process()).unwrap();
        let result = fixture.launcher.adopt(&fixture.layout).await;
        assert!(matches!(result, Err(AdoptError::Gone { .. })), "{identity:?}");
    }
    assert_eq!(process.try_exited(), None);
    process.kill().unwrap();
    process.exited().await;
}

#[tokio::test]
async fn a_vmm_whose_record_was_never_written_is_found_by_its_directory() {
    let fixture = fixture("exec sleep 600");
    let process = fixture.launcher.launch(fixture.spec()).await.unwrap();
    fs_err::remove_file(fixture.layout.process()).unwrap();
    let adopted = fixture.launcher.adopt(&fixture.layout).await.unwrap();
    assert_eq!(adopted.pid(), process.pid());
    adopted.kill().unwrap();
    process.exited().await;
    let result = fixture.launcher.adopt(&fixture.layout).await;
    assert!(
        matches!(result, Err(AdoptError::NeverStarted { .. })),
        "{result:?}"
    );
}

#[tokio::test]
async fn the_vmm_is_put_into_its_cgroup_before_it_runs() {
    let fixture = fixture("cat cgroup.procs; exit 0");
    // Not a cgroup: what is written to the file is what the kernel would be told.
    fs_err::write(fixture.layout.directory().join("cgroup.procs"), "").unwrap();
    let mut spec = fixture.spec();
    spec.cgroup = Some(fixture.layout.directory().to_owned());
    let process = fixture.launcher.launch(spec).await.unwrap();
    let (exit, log) = fixture.log(&process).await;
    assert_eq!(
        (exit, log.as_str()),
        (MachineExit::Exited(ExitReason::Ended), "0")
    );
}
