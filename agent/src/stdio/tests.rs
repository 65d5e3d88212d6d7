//! The log against a model, and whole connections over a socket pair.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use proptest::prelude::*;
use proto::stdio::{FRAME_HEADER_LEN, FrameHeader, Hello, Role, Status, Stream, WINDOW};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::connection::{self, Processes};
use super::log::{Next, OffsetGone, OutputLog};
use super::process::{self, ProcessStdio};

#[derive(Debug, Clone)]
enum Step {
    Push(bool, Vec<u8>),
    Acknowledge(u64),
    Read(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (any::<bool>(), prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(err, bytes)| Step::Push(err, bytes)),
        (0u64..400).prop_map(Step::Acknowledge),
        (0u64..400).prop_map(Step::Read),
    ]
}

proptest! {
    /// Model: everything ever written, each byte with its stream.
    #[test]
    fn the_log_returns_what_was_written_at_every_kept_offset(steps in prop::collection::vec(step(), 0..60)) {
        let mut log = OutputLog::new(100, true);
        let mut written: Vec<(Stream, u8)> = Vec::new();
        let mut acknowledged = 0u64;
        for step in steps {
            let end = written.len() as u64;
            match step {
                Step::Push(err, mut bytes) => {
                    bytes.truncate(log.room());
                    let stream = if err { Stream::Stderr } else { Stream::Stdout };
                    log.push(stream, &bytes);
                    written.extend(bytes.iter().map(|byte| (stream, *byte)));
                    prop_assert!(written.len() as u64 - acknowledged <= 100);
                }
                Step::Acknowledge(offset) => {
                    prop_assert_eq!(log.acknowledge(offset).is_ok(), offset <= end);
                    if offset <= end {
                        acknowledged = acknowledged.max(offset);
                    }
                    prop_assert_eq!(log.room() as u64, 100 - (end - acknowledged));
                }
                Step::Read(offset) => match log.next(offset) {
                    Err(OffsetGone) => prop_assert!(offset < acknowledged || offset > end),
                    Ok(Next::Bytes(stream, bytes)) => {
                        prop_assert!(!bytes.is_empty());
                        for (index, byte) in bytes.iter().enumerate() {
                            prop_assert_eq!(written[offset as usize + index], (stream, *byte));
                        }
                    }
                    Ok(Next::Wait) => prop_assert_eq!(offset, end),
                    Ok(Next::Finished) => prop_assert!(false, "no stream has ended"),
                },
            }
        }
    }
}

#[test]
fn the_end_comes_after_the_last_byte_of_all_streams() {
    let mut log = OutputLog::new(100, true);
    log.push(Stream::Stdout, b"out");
    log.finish(Stream::Stdout);
    assert_eq!(log.next(3), Ok(Next::Wait));
    log.finish(Stream::Stderr);
    assert_eq!(log.next(0), Ok(Next::Bytes(Stream::Stdout, b"out".to_vec())));
    assert_eq!(log.next(3), Ok(Next::Finished));
}

struct One(Arc<ProcessStdio>);

impl Processes for One {
    fn stdio(&self, container_id: &str, exec_id: &str) -> Option<Arc<ProcessStdio>> {
        (container_id == "c" && exec_id.is_empty()).then(|| self.0.clone())
    }
}

/// A process of which we hold both ends, pumped and served on one task.
struct Fixture {
    stdio: Arc<ProcessStdio>,
    stdin: OwnedFd,
    stdout: std::fs::File,
    stderr: std::fs::File,
    tasks: tokio::task::JoinSet<()>,
}

impl Fixture {
    fn new(with_stdin: bool) -> Self {
        let (ends, process) = process::pipes(with_stdin).unwrap();
        let (stdio, outputs) = ProcessStdio::new(ends).unwrap();
        let stdio = Arc::new(stdio);
        let mut tasks = tokio::task::JoinSet::new();
        let pumped = stdio.clone();
        tasks.spawn(async move { pumped.pump(outputs).await });
        let [stdin, stdout, stderr] = process.borrow().map(|fd| fd.try_clone_to_owned().unwrap());
        Self {
            stdio,
            stdin,
            stdout: stdout.into(),
            stderr: stderr.into(),
            tasks,
        }
    }

    async fn connect(&mut self, role: Role, offset: u64, container_id: &str) -> (DuplexStream, Status) {
        let (mut ours, theirs) = tokio::io::duplex(1024);
        let processes = One(self.stdio.clone());
        self.tasks.spawn(async move {
            connection::serve(theirs, &processes).await.ok();
        });
        let hello = Hello {
            role,
            offset,
            container_id: container_id.to_owned(),
            exec_id: String::new(),
        };
        ours.write_all(&hello.encode().unwrap()).await.unwrap();
        let status = Status::decode(ours.read_u8().await.unwrap()).unwrap();
        (ours, status)
    }
}

async fn frame(connection: &mut DuplexStream) -> (Stream, Vec<u8>) {
    let mut header = [0; FRAME_HEADER_LEN];
    connection.read_exact(&mut header).await.unwrap();
    let header = FrameHeader::decode(header).unwrap();
    let mut bytes = vec![0; header.len as usize];
    connection.read_exact(&mut bytes).await.unwrap();
    (header.stream, bytes)
}

#[tokio::test]
async fn output_comes_in_order_and_ends() {
    let mut process = Fixture::new(false);
    let (mut connection, status) = process.connect(Role::Output, 0, "c").await;
    assert_eq!(status, Status::Ok);
    process.stdout.write_all(b"one").unwrap();
    assert_eq!(frame(&mut connection).await, (Stream::Stdout, b"one".to_vec()));
    process.stderr.write_all(b"two").unwrap();
    assert_eq!(frame(&mut connection).await, (Stream::Stderr, b"two".to_vec()));
    drop((process.stdout, process.stderr));
    assert_eq!(frame(&mut connection).await, (Stream::Stdout, vec![]));
    assert_eq!(frame(&mut connection).await, (Stream::Stderr, vec![]));
    assert_eq!(connection.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_reconnect_resumes_and_what_was_acknowledged_is_gone() {
    let mut process = Fixture::new(false);
    process.stdout.write_all(b"0123456789").unwrap();
    let (mut first, _) = process.connect(Role::Output, 0, "c").await;
    frame(&mut first).await;
    let (mut second, status) = process.connect(Role::Output, 4, "c").await;
    assert_eq!(status, Status::Ok);
    assert_eq!(frame(&mut second).await, (Stream::Stdout, b"456789".to_vec()));
    assert_eq!(
        first.read(&mut [0]).await.unwrap(),
        0,
        "the first connection was replaced"
    );
    for gone in [3, 11] {
        assert_eq!(
            process.connect(Role::Output, gone, "c").await.1,
            Status::OffsetGone
        );
    }
}

#[tokio::test]
async fn a_full_window_stops_the_process_until_it_is_acknowledged() {
    let mut process = Fixture::new(false);
    let mut stdout = process.stdout.try_clone().unwrap();
    let total = WINDOW * 3;
    let writer = tokio::task::spawn_blocking(move || stdout.write_all(&vec![7; total]).unwrap());
    let (mut connection, _) = process.connect(Role::Output, 0, "c").await;
    let mut got = 0;
    while got < WINDOW {
        got += frame(&mut connection).await.1.len();
    }
    assert_eq!(got, WINDOW);
    let more = tokio::time::timeout(std::time::Duration::from_millis(100), connection.read_u8()).await;
    assert!(more.is_err(), "nothing comes beyond the window");
    while got < total {
        connection.write_all(&(got as u64).to_le_bytes()).await.unwrap();
        got += frame(&mut connection).await.1.len();
    }
    writer.await.unwrap();
}

#[tokio::test]
async fn a_daemon_that_stored_a_full_window_before_it_restarted_gets_on() {
    let mut process = Fixture::new(false);
    let mut stdout = process.stdout.try_clone().unwrap();
    let writer = tokio::task::spawn_blocking(move || stdout.write_all(&vec![7; WINDOW + 100_000]).unwrap());
    let (mut first, _) = process.connect(Role::Output, 0, "c").await;
    let mut got = 0;
    while got < WINDOW {
        got += frame(&mut first).await.1.len();
    }
    drop(first);
    let (mut second, _) = process.connect(Role::Output, WINDOW as u64, "c").await;
    assert!(!frame(&mut second).await.1.is_empty());
    process.stdio.close();
    drop(process.stdout);
    process.tasks.shutdown().await;
    drop(second);
    drop(process.stdio);
    drop(process.stderr);
    writer.await.ok();
}

#[tokio::test]
async fn stdin_arrives_and_ends() {
    let mut process = Fixture::new(true);
    let (mut connection, status) = process.connect(Role::Stdin, 0, "c").await;
    assert_eq!(status, Status::Ok);
    connection.write_all(b"typed").await.unwrap();
    connection.shutdown().await.unwrap();
    let stdin = process.stdin.try_clone().unwrap();
    let typed = tokio::task::spawn_blocking(move || {
        let mut typed = String::new();
        std::io::Read::read_to_string(&mut std::fs::File::from(stdin), &mut typed).unwrap();
        typed
    });
    assert_eq!(typed.await.unwrap(), "typed");
    let (mut again, status) = process.connect(Role::Stdin, 0, "c").await;
    assert_eq!((status, again.read(&mut [0]).await.unwrap()), (Status::Ok, 0));
}

#[tokio::test]
async fn a_stdin_that_is_kept_outlives_its_connections() {
    let mut process = Fixture::new(true);
    for role in [Role::StdinKept, Role::StdinKept, Role::Stdin] {
        let (mut connection, status) = process.connect(role, 0, "c").await;
        assert_eq!(status, Status::Ok);
        connection.write_all(b"typed ").await.unwrap();
        connection.shutdown().await.unwrap();
        assert_eq!(connection.read(&mut [0]).await.unwrap(), 0, "all of it was taken");
    }
    let stdin = process.stdin.try_clone().unwrap();
    let typed = tokio::task::spawn_blocking(move || {
        let mut typed = String::new();
        std::io::Read::read_to_string(&mut std::fs::File::from(stdin), &mut typed).unwrap();
        typed
    });
    assert_eq!(typed.await.unwrap(), "typed typed typed ");
}

#[tokio::test]
async fn refusals_say_why() {
    let mut process = Fixture::new(false);
    assert_eq!(process.connect(Role::Stdin, 0, "c").await.1, Status::NoStdin);
    assert_eq!(
        process.connect(Role::Output, 0, "other").await.1,
        Status::NotFound
    );
}

#[tokio::test]
async fn an_acknowledgement_of_what_was_never_written_ends_the_connection() {
    let mut process = Fixture::new(false);
    let (mut connection, _) = process.connect(Role::Output, 0, "c").await;
    connection.write_all(&1u64.to_le_bytes()).await.unwrap();
    assert_eq!(connection.read(&mut [0]).await.unwrap(), 0);
}
