//! A container's log: lines from a socket into a file of the format that kubelet reads.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    time::{Duration, Instant},
};

use cri_server::{
    guest::Dialer,
    machine::Layout,
    stdio::{ContainerLog, LogEnd, LogSpec},
};
use proto::{
    host::port_socket,
    stdio::{FrameHeader, HELLO_FIXED_LEN, HelloFixed, MAX_FRAME, STDIO_PORT, Status, Stream, WINDOW},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixListener,
    task::JoinSet,
};

/// Of a line, its end included.
const LINE: usize = 100;
const DEADLINE: Duration = Duration::from_secs(3600);

pub(crate) async fn measure(bytes: usize) -> Value {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path(), "0123456789abcdef0123456789abcdef").unwrap();
    std::fs::create_dir_all(layout.directory()).unwrap();
    let socket = layout.directory().join(port_socket(STDIO_PORT));
    let listener = UnixListener::bind(socket).unwrap();
    let lines = bytes / LINE;
    let mut agent = JoinSet::new();
    agent.spawn(serve(listener, lines));
    let path = directory.path().join("log");
    let spec = LogSpec {
        dialer: Dialer::of_shim(&layout),
        container_id: "c".to_owned(),
        terminal: false,
        log_path: Some(path.clone()),
        position_path: layout.directory().join("position"),
    };
    let began = Instant::now();
    let log = ContainerLog::open(spec).await.unwrap();
    assert_eq!(log.finish(DEADLINE).await, LogEnd::Complete);
    let took = began.elapsed();
    let mut figure = super::rate(lines * LINE, took);
    figure["lines"] = json!(lines);
    figure["lines_lost"] = json!(lines - in_order(&path));
    figure
}

/// How many lines are in the log, in their order, before one that is not the next.
fn in_order(path: &Path) -> usize {
    let log = BufReader::new(std::fs::File::open(path).unwrap());
    let numbers = log.lines().map(|line| {
        let line = line.unwrap();
        line.rsplit(' ').next().and_then(|number| number.parse().ok())
    });
    (0..)
        .zip(numbers)
        .take_while(|(number, logged)| *logged == Some(*number))
        .count()
}

fn frame(stream: Stream, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    [&FrameHeader { stream, len }.encode()[..], payload].concat()
}

/// The agent's side: numbered lines, never more than a window of them ahead of what is acknowledged.
async fn serve(listener: UnixListener, lines: usize) {
    let (stream, _) = listener.accept().await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let mut hello = [0; HELLO_FIXED_LEN];
    reader.read_exact(&mut hello).await.unwrap();
    let ids = HelloFixed::decode(&hello).unwrap().ids_len();
    reader.read_exact(&mut vec![0; ids]).await.unwrap();
    writer.write_all(&[Status::Ok.encode()]).await.unwrap();
    let (mut sent, mut acknowledged) = (0, 0);
    let mut payload = Vec::with_capacity(MAX_FRAME);
    for number in 0..lines {
        payload.extend_from_slice(format!("{number:099}\n").as_bytes());
        if payload.len() + LINE > MAX_FRAME || number + 1 == lines {
            while sent + payload.len() - acknowledged > WINDOW {
                acknowledged = usize::try_from(reader.read_u64_le().await.unwrap()).unwrap();
            }
            writer.write_all(&frame(Stream::Stdout, &payload)).await.unwrap();
            sent += payload.len();
            payload.clear();
        }
    }
    for stream in [Stream::Stdout, Stream::Stderr] {
        writer.write_all(&frame(stream, &[])).await.unwrap();
    }
    // Until the daemon has acknowledged all of it and goes.
    reader.read_to_end(&mut Vec::new()).await.ok();
}
