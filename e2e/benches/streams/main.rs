//! What goes through exec, port-forward and logs, and how fast: the real crictl over both transports, and a container that
//! writes its log as fast as it can. One JSON object on standard output, a table on standard error. `e2e/bench streams`
//! builds it and runs it where Machines run.

use std::{
    env,
    io::{Write, stderr, stdout},
    process::Stdio,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use e2e::{Figures, Node, PodSpec, conditions, wait};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

const MIB: usize = 1 << 20;
/// On which the container gives out [`Sizes::stream`] to whoever connects.
const PORT: u16 = 8080;
const POD: &str = "streams";
/// Bytes of a log's line, its number and line end included.
const LINE: usize = 128;
const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

/// How much of everything.
struct Sizes {
    calls: usize,
    rounds: usize,
    stream_mib: usize,
    log_lines: usize,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let load = conditions::load()?;
    let node = Node::start().await?;
    let rounds = env::var("CLEARPOD_BENCH_PODS").map_or(Ok(5), |text| text.parse())?;
    let sizes = Sizes {
        calls: 100,
        rounds,
        stream_mib: 16,
        log_lines: 100_000,
    };
    measure(&node, &load, &sizes)
        .await
        .with_context(|| node.daemon_log())
}

async fn measure(node: &Node, load: &str, sizes: &Sizes) -> Result<()> {
    let conditions = conditions::describe(node, load, "").await?;
    let (mut calls, mut speeds) = (Figures::default(), Figures::default());
    let pod = node.pod(POD);
    let sandbox = node.cri().run_pod(&pod).await?;
    let script = format!(
        "nc -ll -p {PORT} -e dd if=/dev/zero bs=64k count={} 2>/dev/null & exec sleep 100000",
        sizes.stream_mib * 16
    );
    let id = node
        .cri()
        .run_shell(&sandbox, &pod, "main", &node.image(), &script)
        .await?;
    for _ in 0..sizes.calls {
        let began = Instant::now();
        let (code, ..) = node.cri().exec(&id, "true").await?;
        ensure!(code == 0, "true ended with {code}");
        calls.add("ExecSync sh -c true", began.elapsed().as_secs_f64() * 1e3);
    }
    for round in 0..sizes.rounds {
        for transport in TRANSPORTS {
            let seconds = exec_out(node, transport, &id, sizes).await.context("exec out")?;
            speeds.add(
                &format!("exec out, {transport}"),
                sizes.stream_mib as f64 / seconds,
            );
            let seconds = exec_in(node, transport, &id, sizes).await.context("exec in")?;
            speeds.add(
                &format!("exec in, {transport}"),
                sizes.stream_mib as f64 / seconds,
            );
            let seconds = forwarded(node, transport, &sandbox, sizes)
                .await
                .context("port-forward")?;
            speeds.add(
                &format!("port-forward out, {transport}"),
                sizes.stream_mib as f64 / seconds,
            );
        }
        let seconds = log(node, &sandbox, &pod, round, sizes).await.context("log")?;
        let mib = (sizes.log_lines * LINE) as f64 / MIB as f64;
        speeds.add("log", mib / seconds);
    }
    node.cri().remove_pod(&sandbox).await?;
    let mut err = stderr().lock();
    calls.write("calls, ms", &mut err)?;
    speeds.write("throughput, MiB/s", &mut err)?;
    let report = json!({
        "conditions": conditions,
        "calls": {"unit": "ms", "series": calls.json()},
        "throughput": {"unit": "MiB/s", "series": speeds.json(), "stream_mib": sizes.stream_mib,
            "log_lines": sizes.log_lines, "log_line_bytes": LINE, "log_lines_lost": 0},
    });
    Ok(writeln!(stdout(), "{report:#}")?)
}

/// Seconds until crictl has passed on all that a command writes.
async fn exec_out(node: &Node, transport: &str, id: &str, sizes: &Sizes) -> Result<f64> {
    let count = format!("count={}", sizes.stream_mib * 16);
    let began = Instant::now();
    let args = [
        "exec",
        "-r",
        transport,
        id,
        "dd",
        "if=/dev/zero",
        "bs=64k",
        &count,
    ];
    let mut child = node
        .crictl_command(&args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let bytes = drain(child.stdout.take().context("stdout")?).await?;
    ensure!(
        child.wait().await?.success() && bytes == sizes.stream_mib * MIB,
        "{bytes} bytes came out"
    );
    Ok(began.elapsed().as_secs_f64())
}

/// Seconds until a command has counted all that crictl was given.
async fn exec_in(node: &Node, transport: &str, id: &str, sizes: &Sizes) -> Result<f64> {
    let began = Instant::now();
    let mut child = node
        .crictl_command(&["exec", "-i", "-r", transport, id, "wc", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    let piece = vec![b'x'; MIB];
    for _ in 0..sizes.stream_mib {
        stdin.write_all(&piece).await?;
    }
    drop(stdin);
    let mut counted = String::new();
    child
        .stdout
        .take()
        .context("stdout")?
        .read_to_string(&mut counted)
        .await?;
    ensure!(
        counted.trim() == (sizes.stream_mib * MIB).to_string(),
        "{counted:?} bytes went in"
    );
    Ok(began.elapsed().as_secs_f64())
}

/// Seconds for what the container gives out on its port.
async fn forwarded(node: &Node, transport: &str, sandbox: &str, sizes: &Sizes) -> Result<f64> {
    let mapping = format!("0:{PORT}");
    let mut child = node
        .crictl_command(&["port-forward", "-r", transport, sandbox, &mapping])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    let line = lines.next_line().await?.context("port-forward ended")?;
    let address = line.split(' ').nth(2).context("no address")?;
    let began = Instant::now();
    let bytes = drain(TcpStream::connect(address).await?).await?;
    ensure!(bytes == sizes.stream_mib * MIB, "{bytes} bytes came through");
    let seconds = began.elapsed().as_secs_f64();
    child.kill().await?;
    Ok(seconds)
}

/// Seconds from a container's start until its last line is in its log, all of them being there in order.
async fn log(node: &Node, sandbox: &str, pod: &PodSpec, round: usize, sizes: &Sizes) -> Result<f64> {
    let name = format!("log{round}");
    let (count, width) = (sizes.log_lines, LINE - 1);
    let script = format!("awk 'BEGIN {{ for (i = 0; i < {count}; i++) printf \"%-{width}d\\n\", i }}'");
    let began = Instant::now();
    let id = node
        .cri()
        .run_shell(sandbox, pod, &name, &node.image(), &script)
        .await?;
    node.cri().ended(&id).await?;
    let path = node.directory().join(format!("logs/{POD}/{name}.log"));
    // A line of the log begins with its time and stream, of a length that hardly varies.
    let nearly_all = (count * (LINE + "2026-01-01T00:00:00Z stdout F ".len())) as u64;
    wait::until(wait::CALL, "all lines", async || {
        let length = fs_err::metadata(&path).map_or(0, |metadata| metadata.len());
        (length >= nearly_all && node.log(POD, &name).len() == count).then_some(())
    })
    .await?;
    let seconds = began.elapsed().as_secs_f64();
    let lines = node.log(POD, &name);
    let in_order = lines
        .iter()
        .enumerate()
        .all(|(number, (_, text))| text.trim() == number.to_string());
    ensure!(
        lines.len() == count && in_order,
        "{} of {count} lines, in order: {in_order}",
        lines.len()
    );
    fs_err::remove_file(path)?;
    Ok(seconds)
}

async fn drain(mut from: impl AsyncRead + Unpin) -> Result<usize> {
    let (mut buffer, mut bytes) = (vec![0; MIB], 0);
    loop {
        match from.read(&mut buffer).await? {
            0 => return Ok(bytes),
            read => bytes += read,
        }
    }
}
