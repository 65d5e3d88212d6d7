//! The daemon's drivers against the fake host: the whole way from a launch to a log, and every fault that a host can have.

use std::{sync::Arc, time::Duration};

use proto::{
    agent::v1::{self, ErrorCode},
    machine::{CONFIG_VERSION, Console, Device, ExitReason, FileSource, MachineConfig, Vcpus},
    stdio::Stream,
};

use super::*;
use crate::{
    guest::{Dialer, GuestClient, GuestError, GuestEvent, Phase, ReadyError, ReadyListener},
    machine::{ControlClient, ControlError, MachineExit},
    stdio::{
        Capture, ContainerLog, LogEnd, LogSpec, MAX_CAPTURE, Output, OutputError, OutputEvent, ProcessId,
        Stdin,
    },
};

const SOON: Duration = Duration::from_secs(20);

struct Node {
    directory: tempfile::TempDir,
    host: FakeHost,
    layout: Layout,
}

fn node() -> Node {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(&directory.path().join("machines"), "pod1").unwrap();
    layout.create().unwrap();
    Node {
        host: FakeHost::new(),
        layout,
        directory,
    }
}

impl Node {
    fn spec(&self) -> LaunchSpec {
        LaunchSpec {
            layout: self.layout.clone(),
            config: MachineConfig {
                version: CONFIG_VERSION,
                id: "pod1".to_owned(),
                kernel: Some(FileSource::Path("k".into())),
                initramfs: Some(FileSource::Path("i".into())),
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
                devices: Vec::new(),
            },
            inherited: Vec::new(),
            cgroup: None,
        }
    }

    /// A Machine whose guest is ready and configured.
    async fn started(&self) -> (Process, GuestClient) {
        let listener = ReadyListener::bind(&self.layout).unwrap();
        let process = self.host.launcher().launch(self.spec()).await.unwrap();
        listener.wait(SOON).await.unwrap();
        let client = self.client();
        let sandbox = v1::ConfigureSandboxRequest {
            hostname: "web-0".to_owned(),
            ..v1::ConfigureSandboxRequest::default()
        };
        client.configure_sandbox(sandbox).await.unwrap();
        (process, client)
    }

    fn client(&self) -> GuestClient {
        GuestClient::new(&self.layout)
    }

    fn machine(&self) -> Arc<FakeMachine> {
        self.host.machine("pod1").unwrap()
    }

    fn log_spec(&self, container_id: &str) -> LogSpec {
        LogSpec {
            dialer: Dialer::new(&self.layout),
            container_id: container_id.to_owned(),
            terminal: false,
            log_path: Some(
                self.directory
                    .path()
                    .join("logs")
                    .join(container_id)
                    .join("0.log"),
            ),
            position_path: self.directory.path().join(format!("{container_id}.position")),
        }
    }

    /// Text of a log without its timestamps.
    fn log(&self, container_id: &str) -> String {
        let log = fs_err::read_to_string(self.log_spec(container_id).log_path.unwrap()).unwrap();
        log.lines().map(|line| line[31..].to_owned() + "\n").collect()
    }
}

fn program(args: &[&str]) -> v1::Process {
    v1::Process {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        ..v1::Process::default()
    }
}

async fn create(client: &GuestClient, id: &str, process: v1::Process) {
    let request = v1::CreateContainerRequest {
        container_id: id.to_owned(),
        process: Some(process),
        ..v1::CreateContainerRequest::default()
    };
    client.create_container(request).await.unwrap();
}

fn init(id: &str) -> ProcessId {
    ProcessId {
        container_id: id.to_owned(),
        exec_id: None,
    }
}

fn exec(id: &str, exec_id: &str) -> ProcessId {
    ProcessId {
        container_id: id.to_owned(),
        exec_id: Some(exec_id.to_owned()),
    }
}

#[tokio::test]
async fn a_container_runs_and_its_log_and_exit_code_come_back() {
    let node = node();
    let (process, client) = node.started().await;
    assert_eq!(client.info().await.unwrap().agent_version, "fake");
    create(
        &client,
        "c1",
        program(&["sh", "-c", "hostname; echo oops >&2; printf end; exit 3"]),
    )
    .await;
    let log = ContainerLog::open(node.log_spec("c1")).await.unwrap();
    client.start_container("c1").await.unwrap();
    let exit = client.wait(&init("c1"), SOON).await.unwrap();
    assert_eq!((exit.code, exit.signal), (3, None));
    assert_eq!(log.finish(SOON).await, LogEnd::Complete);
    assert_eq!(node.log("c1"), "stdout F web-0\nstderr F oops\nstdout F end\n");
    client.remove_container("c1").await.unwrap();
    client.remove_container("c1").await.unwrap();
    ControlClient::new(&node.layout).stop().await.unwrap();
    assert_eq!(process.exited().await, MachineExit::Exited(ExitReason::Ended));
}

#[tokio::test]
async fn exec_captures_both_streams_within_the_limit_and_the_process_goes_on() {
    let node = node();
    let (_process, client) = node.started().await;
    create(&client, "c1", program(&["sleep", "infinity"])).await;
    client.start_container("c1").await.unwrap();
    client
        .exec("c1", "e1", program(&["flood", "1000000"]))
        .await
        .unwrap();
    let mut capture = Capture::new(Dialer::new(&node.layout), exec("c1", "e1"), 300_000);
    capture.run().await.unwrap();
    let captured = capture.into_captured();
    assert!(captured.stdout.starts_with(b"line 0\nline 1\n"));
    assert_eq!(captured.stdout.len(), 300_000);
    assert_eq!(captured.dropped, 700_000);
    assert!(captured.stderr.starts_with(b"line 0\nline 7\n"));
    assert_eq!(client.wait(&exec("c1", "e1"), SOON).await.unwrap().code, 0);

    client
        .exec("c1", "e2", program(&["sh", "-c", "echo so far; sleep infinity"]))
        .await
        .unwrap();
    let mut capture = Capture::new(Dialer::new(&node.layout), exec("c1", "e2"), MAX_CAPTURE);
    let timely = tokio::time::timeout(Duration::from_millis(200), capture.run()).await;
    assert!(timely.is_err());
    assert_eq!(capture.into_captured().stdout, b"so far\n");
    client.remove_exec("c1", "e2").await.unwrap();
    client.remove_exec("c1", "e2").await.unwrap();
    assert_eq!(node.machine().agent().execs("c1"), ["e1"]);
}

#[tokio::test]
async fn refusals_of_the_agent_are_typed() {
    let node = node();
    let (_process, client) = node.started().await;
    create(&client, "c1", program(&["/no/such"])).await;
    let missing = client.start_container("c1").await.unwrap_err();
    assert_eq!(missing.exec_exit_code(), Some(127), "{missing}");
    assert!(client.start_container("c2").await.unwrap_err().is_not_found());
    let again = client.create_container(v1::CreateContainerRequest {
        container_id: "c1".to_owned(),
        ..v1::CreateContainerRequest::default()
    });
    assert_eq!(again.await.unwrap_err().code(), Some(ErrorCode::AlreadyExists));
    create(&client, "c2", program(&["true"])).await;
    client.start_container("c2").await.unwrap();
    client.wait(&init("c2"), SOON).await.unwrap();
    let ended = client.signal(&init("c2"), 15, false).await.unwrap_err();
    assert_eq!(ended.code(), Some(ErrorCode::WrongState));
    node.host.inject(FaultPoint::Call("Stats"), Fault::Fail, 1);
    assert!(matches!(
        client.stats(None, false).await,
        Err(GuestError::Refused {
            code: ErrorCode::System,
            errno: Some(libc::EIO),
            ..
        })
    ));
    assert_eq!(client.stats(None, false).await.unwrap().containers.len(), 2);
}

#[tokio::test]
async fn signals_end_what_does_not_catch_them() {
    let node = node();
    let (_process, client) = node.started().await;
    let stubborn = program(&[
        "sh",
        "-c",
        "trap '' TERM; echo ready; while true; do sleep 1; done",
    ]);
    create(&client, "stubborn", stubborn).await;
    create(&client, "polite", program(&["sleep", "1000"])).await;
    for id in ["stubborn", "polite"] {
        client.start_container(id).await.unwrap();
    }
    let log = ContainerLog::open(node.log_spec("stubborn")).await.unwrap();
    let mut events = log.subscribe().unwrap();
    // The trap is set when it says so; the line may have come before the subscription.
    drop(tokio::time::timeout(Duration::from_millis(300), events.recv()).await);
    for id in ["stubborn", "polite"] {
        client.signal(&init(id), 15, false).await.unwrap();
    }
    assert_eq!(client.wait(&init("polite"), SOON).await.unwrap().code, 143);
    let waited = client.wait(&init("stubborn"), Duration::from_millis(100)).await;
    assert!(matches!(waited, Err(GuestError::Timeout { .. })), "{waited:?}");
    client.signal(&init("stubborn"), 9, true).await.unwrap();
    assert_eq!(
        client.wait(&init("stubborn"), SOON).await.unwrap().signal,
        Some(9)
    );
    assert_eq!(node.machine().agent().signals("stubborn"), [15, 9]);
}

#[tokio::test]
async fn stdin_reaches_the_process_and_its_end_too() {
    let node = node();
    let (_process, client) = node.started().await;
    let cat = v1::Process {
        stdin: true,
        ..program(&["cat"])
    };
    create(&client, "c1", cat).await;
    client.start_container("c1").await.unwrap();
    let mut stdin = Stdin::open(&Dialer::new(&node.layout), &init("c1"))
        .await
        .unwrap();
    stdin.write(b"hello ").await.unwrap();
    stdin.write(b"guest").await.unwrap();
    stdin.close().await.unwrap();
    let mut capture = Capture::new(Dialer::new(&node.layout), init("c1"), MAX_CAPTURE);
    capture.run().await.unwrap();
    assert_eq!(capture.into_captured().stdout, b"hello guest");
    let none = Stdin::open(&Dialer::new(&node.layout), &init("c2"))
        .await
        .unwrap_err();
    assert_eq!(
        none.to_string(),
        "the guest has no stdin of process c2: no such process"
    );
}

#[tokio::test]
async fn a_watch_begins_with_a_snapshot_and_again_after_a_lost_connection() {
    let node = node();
    let (_process, client) = node.started().await;
    create(&client, "c1", program(&["false"])).await;
    create(&client, "c2", program(&["sleep", "1000"])).await;
    let mut watch = client.watch();
    let GuestEvent::Snapshot(containers) = watch.next().await.unwrap() else {
        panic!("no snapshot");
    };
    assert_eq!(containers.len(), 2);
    assert!(
        containers
            .iter()
            .all(|container| container.phase == Phase::Created)
    );
    client.start_container("c1").await.unwrap();
    let event = watch.next().await.unwrap();
    assert!(
        matches!(event, GuestEvent::Exited { container_id, exit } if container_id == "c1" && exit.code == 1)
    );
    node.machine().agent().report_oom("c2");
    assert!(matches!(watch.next().await.unwrap(), GuestEvent::Oom { container_id } if container_id == "c2"));
    node.machine().drop_connections();
    assert!(matches!(watch.next().await, Err(GuestError::Unreachable { .. })));
    let GuestEvent::Snapshot(containers) = watch.next().await.unwrap() else {
        panic!("no snapshot");
    };
    assert!(matches!(&containers[0].phase, Phase::Exited { exit, .. } if exit.code == 1));
}

#[tokio::test]
async fn a_log_survives_restarts_of_the_daemon_and_lost_connections_without_losing_a_byte() {
    const BYTES: usize = 1_500_000;
    let node = node();
    let (_process, client) = node.started().await;
    create(&client, "c1", program(&["flood", &BYTES.to_string()])).await;
    client.start_container("c1").await.unwrap();
    drop(client);
    // As kill -9 between any two bytes: a handle that is dropped stops wherever it is.
    for round in 0..20 {
        let log = ContainerLog::resume(node.log_spec("c1"));
        tokio::time::sleep(Duration::from_millis(1 + round % 7)).await;
        if round % 3 == 0 {
            node.machine().drop_connections();
        }
        drop(log);
    }
    // A second daemon finds the Machine.
    let process = node.host.launcher().adopt(&node.layout).await.unwrap();
    assert_eq!(process.try_exited(), None);
    let log = ContainerLog::resume(node.log_spec("c1"));
    assert_eq!(log.finish(SOON).await, LogEnd::Complete);

    let expected: String = (0..)
        .map(|number| format!("line {number}\n"))
        .take(BYTES / 9)
        .collect();
    let text = node.log("c1");
    let stdout: String = text
        .lines()
        .filter_map(|line| line.strip_prefix("stdout F "))
        .map(|line| line.to_owned() + "\n")
        .collect();
    let whole = stdout.trim_end();
    assert!(expected.starts_with(&whole[..whole.len().min(expected.len())]));
    assert_eq!(whole.len(), BYTES - usize::from(stdout.len() == BYTES));
    let lines = stdout.lines().count();
    assert_eq!(
        text.lines().filter(|line| line.starts_with("stderr F ")).count(),
        lines.div_ceil(7)
    );
}

#[tokio::test]
async fn kubelet_rotates_a_log() {
    let node = node();
    let (_process, client) = node.started().await;
    let script = "echo one; sleep 0.3; echo two";
    create(&client, "c1", program(&["sh", "-c", script])).await;
    let log = ContainerLog::open(node.log_spec("c1")).await.unwrap();
    let mut events = log.subscribe().unwrap();
    client.start_container("c1").await.unwrap();
    let first = events.recv().await.unwrap();
    assert!(matches!(first, OutputEvent::Data { stream: Stream::Stdout, bytes } if bytes == "one\n"));
    let path = node.log_spec("c1").log_path.unwrap();
    let rotated = path.with_extension("log.20261122-040000");
    fs_err::rename(&path, &rotated).unwrap();
    log.reopen().await.unwrap();
    assert_eq!(log.finish(SOON).await, LogEnd::Complete);
    assert!(
        fs_err::read_to_string(&rotated)
            .unwrap()
            .ends_with(" stdout F one\n")
    );
    assert_eq!(node.log("c1"), "stdout F two\n");
}

#[tokio::test]
async fn a_log_that_cannot_be_opened_is_an_error_and_a_resumed_one_waits() {
    let node = node();
    let (_process, client) = node.started().await;
    create(&client, "c1", program(&["echo", "hi"])).await;
    client.start_container("c1").await.unwrap();
    let spec = node.log_spec("c1");
    fs_err::write(node.directory.path().join("logs"), "in the way").unwrap();
    ContainerLog::open(spec.clone()).await.unwrap_err();
    let log = ContainerLog::resume(spec);
    log.reopen().await.unwrap_err();
    fs_err::remove_file(node.directory.path().join("logs")).unwrap();
    log.reopen().await.unwrap();
    assert_eq!(log.finish(SOON).await, LogEnd::Complete);
    assert_eq!(node.log("c1"), "stdout F hi\n");
}

#[tokio::test]
async fn output_that_is_gone_is_an_error_and_a_log_of_a_removed_container_ends() {
    let node = node();
    let (_process, client) = node.started().await;
    create(
        &client,
        "c1",
        program(&["sh", "-c", "printf partial; sleep 1000"]),
    )
    .await;
    client.start_container("c1").await.unwrap();
    let ahead = Output::new(Dialer::new(&node.layout), init("c1"), false, 1 << 40)
        .next()
        .await;
    assert!(matches!(ahead, Err(OutputError::OffsetGone { .. })));
    let log = ContainerLog::open(node.log_spec("c1")).await.unwrap();
    let mut events = log.subscribe().unwrap();
    drop(tokio::time::timeout(Duration::from_millis(300), events.recv()).await);
    client.remove_container("c1").await.unwrap();
    node.machine().drop_connections();
    // Removal ends the streams; a connection that broke before finds no process.
    let end = log.finish(SOON).await;
    assert!(matches!(end, LogEnd::Complete | LogEnd::Lost), "{end:?}");
    assert_eq!(node.log("c1"), "stdout F partial\n");
}

#[tokio::test]
async fn devices_come_and_go_on_a_running_machine() {
    let node = node();
    let (_process, _client) = node.started().await;
    let control = ControlClient::new(&node.layout);
    let layer = |id: &str| Device::Pmem {
        id: id.to_owned(),
        file: FileSource::Fd(0),
    };
    let first = control.add_device(layer("l1"), &[]).await.unwrap();
    let second = control.add_device(layer("l2"), &[]).await.unwrap();
    assert_ne!(first, second);
    let twice = control.add_device(layer("l2"), &[]).await.unwrap_err();
    assert!(matches!(twice, ControlError::Refused { .. }), "{twice}");
    control.remove_device("l1").await.unwrap();
    assert_eq!(node.machine().devices(), ["l2"]);
    let description = control.describe().await.unwrap();
    assert_eq!(description.devices[0].pci_address, second);
    assert!(description.timeline.first_vsock_ns >= description.timeline.kernel_entered_ns);
    assert_eq!(control.console(1000).await.unwrap(), "fake kernel\n");
}

#[tokio::test]
async fn a_machine_grows_and_shrinks_within_its_limits() {
    let node = node();
    let mut spec = node.spec();
    spec.config.memory_hotplug_mib = 256;
    let _process = node.host.launcher().launch(spec).await.unwrap();
    let control = ControlClient::new(&node.layout);
    let none = control.resize_memory(128).await.unwrap_err().to_string();
    assert!(none.contains("no memory device"), "{none}");
    let device = Device::Memory {
        id: "memory".to_owned(),
    };
    control.add_device(device, &[]).await.unwrap();
    for (wish, fits) in [(128, true), (257, false), (300, false), (256, true), (0, true)] {
        let answer = control.resize_memory(wish).await;
        assert_eq!(answer.is_ok(), fits, "{wish}: {answer:?}");
        let memory = control.stats().await.unwrap().memory.unwrap();
        if fits {
            assert_eq!((memory.requested_mib, memory.plugged_mib), (wish, wish));
        }
    }
}

#[tokio::test]
async fn faults_of_the_host_are_seen_as_what_they_are() {
    let node = node();
    let launcher = node.host.launcher();
    node.host.inject(FaultPoint::Launch, Fault::Fail, 1);
    assert!(launcher.launch(node.spec()).await.is_err());
    assert!(matches!(
        launcher.adopt(&node.layout).await,
        Err(AdoptError::NeverStarted { .. })
    ));

    node.host.inject(FaultPoint::Boot, Fault::Stall, 1);
    let listener = ReadyListener::bind(&node.layout).unwrap();
    let process = launcher.launch(node.spec()).await.unwrap();
    let never = listener.wait(Duration::from_millis(100)).await;
    assert!(matches!(never, Err(ReadyError::Timeout { .. })));
    process.kill().unwrap();
    assert_eq!(process.exited().await, MachineExit::Signalled(9));
    assert!(matches!(
        launcher.adopt(&node.layout).await,
        Err(AdoptError::Gone { .. })
    ));
    assert!(
        node.client()
            .info()
            .await
            .is_err_and(|error| matches!(error, GuestError::Unreachable { .. }))
    );
}

#[tokio::test]
async fn a_guest_that_dies_takes_its_containers_along() {
    let node = node();
    let (process, client) = node.started().await;
    create(
        &client,
        "c1",
        program(&["sh", "-c", "printf 'last words'; sleep 1000"]),
    )
    .await;
    let log = ContainerLog::open(node.log_spec("c1")).await.unwrap();
    let mut events = log.subscribe().unwrap();
    client.start_container("c1").await.unwrap();
    assert!(matches!(events.recv().await, Ok(OutputEvent::Data { .. })));
    let waiting = tokio::time::timeout(Duration::from_millis(50), client.wait(&init("c1"), SOON)).await;
    assert!(waiting.is_err());
    node.machine().kill_agent();
    assert_eq!(
        process.exited().await,
        MachineExit::Exited(ExitReason::GuestPanic)
    );
    assert!(
        fs_err::read_to_string(node.layout.console_log())
            .unwrap()
            .contains("Kernel panic")
    );
    let lost = client
        .wait(&init("c1"), Duration::from_millis(100))
        .await
        .unwrap_err();
    assert!(
        matches!(lost, GuestError::Unreachable { .. } | GuestError::Timeout { .. }),
        "{lost:?}"
    );
    assert_eq!(log.finish_without_guest(SOON).await, LogEnd::Lost);
    assert_eq!(node.log("c1"), "stdout F last words\n");
    assert_eq!(node.host.running(), Vec::<String>::new());
}

#[tokio::test]
async fn a_stalled_guest_meets_the_deadline_and_goes_on_afterwards() {
    let node = node();
    let (_process, client) = node.started().await;
    create(&client, "c1", program(&["true"])).await;
    node.machine().stall(true);
    let stalled = client.wait(&init("c1"), Duration::from_millis(100)).await;
    assert!(matches!(stalled, Err(GuestError::Timeout { .. })), "{stalled:?}");
    node.machine().stall(false);
    client.start_container("c1").await.unwrap();
    assert_eq!(client.wait(&init("c1"), SOON).await.unwrap().code, 0);
}

#[tokio::test]
async fn a_guest_that_is_asked_to_ends_after_its_answer() {
    let node = node();
    let (process, client) = node.started().await;
    client.shut_down().await.unwrap();
    assert_eq!(process.exited().await, MachineExit::Exited(ExitReason::Ended));
    assert!(node.machine().agent().is_shut_down());
}
