//! Clients that go in the midst of a transfer or do not read, in each direction and over each protocol. What they had goes with
//! them, what is not theirs goes on, and what is under way for them has a bound.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use cri_server::streaming::testing::{ClientEvent, SpdyClient};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use super::{
    ALL, OUTPUT,
    attach::talkative,
    attach_url,
    channels::{Channels, binary},
    client::{Command, spdy, tunnelled},
    exec_url, forgotten, forward_url,
    port_forward::{VERSION, accept, open, server},
    running,
};
use crate::support::{PATIENCE, TestNode, eventually};

const V5: &str = "v5.channel.k8s.io";
const PIECE: usize = 32 * 1024;
/// Longer than a piece takes to be passed on.
const STANDSTILL: Duration = Duration::from_millis(500);
/// Of one direction of one stream, buffers of the kernel included: four sockets, of which those that grow by themselves grow to
/// some MiB.
const MOST_UNDER_WAY: usize = 24 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_client_that_goes_takes_its_command_along() {
    let (node, pod, container) = running().await;
    let flood = ["flood", "1000000000"];
    let url = exec_url(&node, &container, &flood, OUTPUT).await.unwrap();
    let mut listening = Channels::open(&url, V5).await;
    listening.until(|heard| heard[1].len() > 1_000_000).await;
    drop(listening);
    forgotten(&node, &pod, &container).await;
    let sleep = ["sleep", "infinity"];
    let url = exec_url(&node, &container, &sleep, ALL).await.unwrap();
    let mut talking = Channels::open(&url, V5).await;
    assert!(typed_until_it_stands(&mut talking).await < MOST_UNDER_WAY);
    talking.socket.get_ref().set_zero_linger().unwrap();
    drop(talking);
    forgotten(&node, &pod, &container).await;
}

/// The client's end is behind bytes that nobody takes: its kernel keeps both for a while, and then answers for it no more.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes as long as Linux keeps a connection whose program is gone, six minutes"]
async fn a_client_whose_end_does_not_arrive_is_missed_all_the_same() {
    let (node, pod, container) = running().await;
    let sleep = ["sleep", "infinity"];
    let url = exec_url(&node, &container, &sleep, ALL).await.unwrap();
    let mut talking = Channels::open(&url, V5).await;
    // Nothing of the server's is left unread: that would make the client's end a reset, which arrives.
    talking.socket.next().await.unwrap().unwrap();
    typed_until_it_stands(&mut talking).await;
    drop(talking);
    let machine = node.host.machine(&pod).unwrap();
    let began = std::time::Instant::now();
    while !machine.agent().execs(&container).is_empty() {
        assert!(
            began.elapsed() < Duration::from_secs(900),
            "the command runs still"
        );
        tokio::time::sleep(STANDSTILL).await;
    }
}

/// What the client could send to a process that does not read.
async fn typed_until_it_stands(client: &mut Channels) -> usize {
    let mut sent = 0;
    while timeout(STANDSTILL, client.socket.send(binary(0, &[0; PIECE])))
        .await
        .is_ok_and(|sent| sent.is_ok())
    {
        sent += PIECE;
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_client_that_does_not_read_slows_the_process_down() {
    let (node, pod, container) = running().await;
    let url = exec_url(&node, &container, &["flood", "1000000000"], OUTPUT)
        .await
        .unwrap();
    let client = Channels::open(&url, V5).await;
    let machine = node.host.machine(&pod).unwrap();
    eventually("the command runs", async || {
        !machine.agent().execs(&container).is_empty()
    })
    .await;
    let exec = machine.agent().execs(&container).remove(0);
    let written = || usize::try_from(machine.agent().written(&container, &exec)).unwrap();
    assert!(stands(written).await < MOST_UNDER_WAY);
    drop(client);
    forgotten(&node, &pod, &container).await;
}

/// The number once it grows no more.
async fn stands(number: impl Fn() -> usize) -> usize {
    let mut before = 0;
    eventually("it waits", async || {
        tokio::time::sleep(STANDSTILL).await;
        let stands = number() > 0 && number() == before;
        before = number();
        stands
    })
    .await;
    before
}

/// Of a container's numbered lines, which are so many bytes.
const LINES: usize = 10_000;
const LINES_BYTES: usize = 98_890;

/// A container that writes them and a last line when its stdin ends.
async fn eloquent(node: &TestNode, pod: &str) -> String {
    talkative(node, pod, |config| {
        let script = format!("cat; flood {LINES_BYTES}; echo end");
        config.command = ["sh", "-c", &script].map(str::to_owned).to_vec();
        config.stdin_once = true;
    })
    .await
}

/// It has come to its end, and all that it wrote is in its log.
async fn went_on(node: &TestNode, container: &str) {
    let path = node.path("logs/web/talkative.log");
    eventually("the last line is logged", async || {
        std::fs::read(&path).is_ok_and(|log| log.ends_with(b" stdout F end\n"))
    })
    .await;
    assert_eq!(node.ended(container).await.exit_code, 0);
    let log = std::fs::read_to_string(&path).unwrap();
    let stdout = log.lines().filter_map(|line| line.split_once(" stdout F line "));
    let numbers = stdout.map(|(_, number)| number.parse::<usize>().unwrap());
    assert!(numbers.eq(0..LINES), "the log is not complete");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_goes_on_when_who_attached_to_its_output_goes() {
    let (node, pod, _) = running().await;
    let container = eloquent(&node, &pod).await;
    let url = attach_url(&node, &container, ALL).await.unwrap();
    let mut client = Command::open(&url, ALL).await;
    client.close_stdin().await;
    client.until(|client| client.bytes("stdout") > 20_000).await;
    drop(client);
    went_on(&node, &container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_goes_on_when_who_attached_over_a_websocket_goes() {
    let (node, pod, _) = running().await;
    let container = eloquent(&node, &pod).await;
    let url = attach_url(&node, &container, ALL).await.unwrap();
    let mut client = Channels::open(&url, V5).await;
    client.send(255, &[0]).await;
    client.until(|heard| heard[1].len() > 20_000).await;
    drop(client);
    went_on(&node, &container).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_goes_on_when_who_typed_into_it_goes() {
    let (node, pod, _) = running().await;
    let deaf = talkative(&node, &pod, |config| {
        config.command = vec!["sleep".to_owned(), "infinity".to_owned()];
    })
    .await;
    let url = attach_url(&node, &deaf, ALL).await.unwrap();
    let mut client = Command::open(&url, ALL).await;
    let stdin = client.id("stdin");
    while timeout(STANDSTILL, client.spdy.data(stdin, &[0; PIECE], false))
        .await
        .is_ok()
    {}
    drop(client);
    let url = attach_url(&node, &deaf, ALL).await.unwrap();
    let mut client = Channels::open(&url, V5).await;
    assert!(typed_until_it_stands(&mut client).await < MOST_UNDER_WAY);
    drop(client);
    let url = attach_url(&node, &deaf, OUTPUT).await.unwrap();
    let mut last = Command::open(&url, OUTPUT).await;
    node.stop_container(&deaf, 0).await.unwrap();
    assert_eq!(last.status().await["status"], "Success");
}

/// A server in the pod that writes as long as somebody takes it, how much that was, and its end.
fn pour(mut stream: TcpStream) -> (Arc<AtomicUsize>, JoinSet<()>) {
    let written = Arc::new(AtomicUsize::new(0));
    let mut pouring = JoinSet::new();
    let counted = Arc::clone(&written);
    pouring.spawn(async move {
        while stream.write_all(&[7; PIECE]).await.is_ok() {
            counted.fetch_add(PIECE, Ordering::Relaxed);
        }
    });
    (written, pouring)
}

async fn ended(mut tasks: JoinSet<()>) {
    timeout(PATIENCE, tasks.join_next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

/// From the pod: a client that takes some, then none, then goes. To the pod: one that sends what nobody reads, and goes.
async fn forward_and_vanish<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    connect: impl AsyncFn(String) -> SpdyClient<R, W>,
) {
    let (node, pod, _) = running().await;
    let (listener, port) = server().await;
    let url = forward_url(&node, &pod, &[]).await.unwrap();
    let mut client = connect(url).await;
    open(&mut client, port, "0").await;
    let (written, pouring) = pour(accept(&listener).await);
    let mut received = 0;
    while received < 1 << 20 {
        if let Some(ClientEvent::Data(_, bytes, _)) = timeout(PATIENCE, client.next()).await.unwrap().unwrap()
        {
            received += bytes.len();
        }
    }
    let under_way = stands(|| written.load(Ordering::Relaxed)).await - received;
    assert!(under_way < MOST_UNDER_WAY, "{under_way} bytes are under way");
    drop(client);
    ended(pouring).await;

    let url = forward_url(&node, &pod, &[]).await.unwrap();
    let mut client = connect(url).await;
    let forward = open(&mut client, port, "0").await;
    let mut deaf = accept(&listener).await;
    let mut sent = 0;
    while timeout(STANDSTILL, client.data(forward.data, &[0; PIECE], false))
        .await
        .is_ok()
    {
        sent += PIECE;
    }
    assert!(sent < MOST_UNDER_WAY, "{sent} bytes are under way");
    drop(client);
    // What was under way may arrive or not; then it is over.
    timeout(PATIENCE, deaf.read_to_end(&mut Vec::new()))
        .await
        .unwrap()
        .ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_port_forward_goes_in_the_midst_of_a_transfer() {
    forward_and_vanish(async |url| spdy(&url, VERSION).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_a_tunnel_goes_in_the_midst_of_a_transfer() {
    // What carries the tunnel has to go with it.
    let carriers = std::sync::Mutex::new(Vec::new());
    forward_and_vanish(async |url| {
        let (client, carried) = tunnelled(&url).await;
        carriers.lock().unwrap().push(carried);
        client
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_forwarded_channels_goes_in_the_midst_of_a_transfer() {
    let (node, pod, _) = running().await;
    let (listener, port) = server().await;
    let url = forward_url(&node, &pod, &[port.into()]).await.unwrap();
    let mut client = Channels::open(&url, "v4.channel.k8s.io").await;
    let (written, pouring) = pour(accept(&listener).await);
    client.until(|heard| heard[0].len() > 1 << 20).await;
    let under_way = stands(|| written.load(Ordering::Relaxed)).await - client.heard[0].len();
    assert!(under_way < MOST_UNDER_WAY, "{under_way} bytes are under way");
    drop(client);
    ended(pouring).await;
    let url = forward_url(&node, &pod, &[port.into()]).await.unwrap();
    let mut client = Channels::open(&url, "v4.channel.k8s.io").await;
    let mut deaf = accept(&listener).await;
    assert!(typed_until_it_stands(&mut client).await < MOST_UNDER_WAY);
    client.socket.get_ref().set_zero_linger().unwrap();
    drop(client);
    timeout(PATIENCE, deaf.read_to_end(&mut Vec::new()))
        .await
        .unwrap()
        .ok();
}

/// The pod's end goes instead: its own connection ends, and the client's others go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_the_pod_goes_in_the_midst_of_a_transfer() {
    let (node, pod, _) = running().await;
    let (listener, port) = server().await;
    let url = forward_url(&node, &pod, &[]).await.unwrap();
    let mut client = spdy(&url, VERSION).await.unwrap();
    let one = open(&mut client, port, "0").await;
    let first = accept(&listener).await;
    let other = open(&mut client, port, "1").await;
    let mut second = accept(&listener).await;
    client.data(one.data, &[0; 1 << 20], false).await.unwrap();
    // Unread bytes make it a reset.
    drop(first);
    let mut over = false;
    while !over {
        over = match timeout(PATIENCE, client.next()).await.unwrap().unwrap() {
            Some(ClientEvent::Data(of, _, fin)) => of == one.data && fin,
            Some(ClientEvent::Reset(of)) => of == one.data,
            Some(_) => false,
            None => panic!("the server has gone"),
        };
    }
    client.data(other.data, b"still here", true).await.unwrap();
    let mut heard = String::new();
    timeout(PATIENCE, second.read_to_string(&mut heard))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(heard, "still here");
}
