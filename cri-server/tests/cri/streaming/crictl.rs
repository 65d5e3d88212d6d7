//! The same with the real crictl, when `CLEARPOD_CRICTL` names one (`e2e/tools/build crictl` makes it): its SPDY and WebSocket
//! are Kubernetes' own.

use std::{ffi::OsString, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::JoinSet,
    time::timeout,
};

use super::running;
use crate::support::{PATIENCE, TestNode, eventually};

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

fn crictl() -> Option<OsString> {
    let program = std::env::var_os("CLEARPOD_CRICTL");
    if program.is_none() {
        eprintln!("SKIPPED: CLEARPOD_CRICTL names no crictl");
    }
    program
}

/// Starts `crictl WORDS` against the node's daemon, all its streams in our hands.
fn start(program: &OsString, node: &TestNode, words: &[&str]) -> Child {
    let endpoint = format!("unix://{}", node.path("run/clearpod.sock").display());
    Command::new(program)
        .args(["--runtime-endpoint", &endpoint, "--image-endpoint", &endpoint])
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Its exit code and what it wrote, after `stdin` and its end.
async fn finish(mut child: Child, stdin: &[u8]) -> (i32, Vec<u8>, String) {
    let mut input = child.stdin.take().unwrap();
    let bytes = stdin.to_vec();
    let mut typing = JoinSet::new();
    typing.spawn(async move {
        // It may end first.
        input.write_all(&bytes).await.ok();
    });
    let output = timeout(PATIENCE, child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), output.stdout, errors)
}

#[tokio::test(flavor = "multi_thread")]
async fn crictl_executes() {
    let Some(program) = crictl() else { return };
    let (node, pod, container) = running().await;
    for transport in TRANSPORTS {
        let exec = |flags: &[&str], command: &[&str]| {
            let mut words = vec!["exec", "--transport", transport];
            words.extend(flags);
            words.push(&container);
            words.extend(command);
            start(&program, &node, &words)
        };
        let bytes: Vec<u8> = (0..4 << 20)
            .map(|at: u32| u8::try_from(at % 253).unwrap())
            .collect();
        let (code, out, errors) = finish(exec(&["-i"], &["cat"]), &bytes).await;
        assert_eq!((code, out.len()), (0, bytes.len()), "{transport}: {errors}");
        assert!(out == bytes, "{transport}");
        let script = "echo out; echo err >&2; exit 7";
        let (code, out, errors) = finish(exec(&[], &["sh", "-c", script]), b"").await;
        assert_ne!(code, 0, "{transport}");
        assert_eq!(out, b"out\n", "{transport}");
        assert!(
            errors.contains("err\n") && errors.contains('7'),
            "{transport}: {errors}"
        );
        // Killed in the middle.
        let child = exec(&["-i"], &["sleep", "infinity"]);
        let machine = node.host.machine(&pod).unwrap();
        eventually("the command runs", async || {
            machine.agent().execs(&container).len() == 1
        })
        .await;
        drop(child);
        eventually("the command is gone from the guest", async || {
            machine.agent().execs(&container).is_empty()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn crictl_attaches() {
    let Some(program) = crictl() else { return };
    let (node, pod, _) = running().await;
    for transport in TRANSPORTS {
        let mut config = node.container_config(transport, &["sh", "-c", "cat; echo end"]);
        config.stdin = true;
        config.stdin_once = true;
        let id = node.create(&pod, config).await.unwrap();
        node.start_container(&id).await.unwrap();
        let words = ["attach", "--transport", transport, "-i", &id];
        let (code, out, errors) = finish(start(&program, &node, &words), b"typed\n").await;
        assert_eq!(code, 0, "{transport}: {errors}");
        assert_eq!(out, b"typed\nend\n", "{transport}");
        assert_eq!(node.ended(&id).await.exit_code, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn crictl_forwards_ports() {
    let Some(program) = crictl() else { return };
    let (node, pod, _) = running().await;
    for transport in TRANSPORTS {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let mut echoing = JoinSet::new();
        echoing.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = server.accept().await {
                connections.spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    tokio::io::copy(&mut reader, &mut writer).await.ok();
                });
            }
        });
        let remote = format!(":{port}");
        let words = ["port-forward", "--transport", transport, &pod, &remote];
        let mut child = start(&program, &node, &words);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
        let Some(line) = line else {
            panic!("{transport}: {}", finish(child, b"").await.2);
        };
        // "Forwarding from 127.0.0.1:40123 -> 80"
        let local = line.split(" -> ").next().unwrap().rsplit(':').next().unwrap();
        let local: u16 = local.parse().unwrap();
        let one = TcpStream::connect(("127.0.0.1", local)).await.unwrap();
        let other = TcpStream::connect(("127.0.0.1", local)).await.unwrap();
        let mut both = [one, other];
        for (number, text) in [(0, "one"), (1, "other"), (0, "again")] {
            let stream = &mut both[number];
            stream.write_all(text.as_bytes()).await.unwrap();
            let mut heard = vec![0; text.len()];
            timeout(PATIENCE, stream.read_exact(&mut heard))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(heard, text.as_bytes(), "{transport}");
        }
        both[1].shutdown().await.unwrap();
        let mut rest = Vec::new();
        timeout(PATIENCE, both[1].read_to_end(&mut rest))
            .await
            .unwrap()
            .unwrap();
        assert!(rest.is_empty());
    }
}
