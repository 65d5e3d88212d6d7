//! URLs and what can be had for them: once, in time, by the right clients, within limits.

use std::{net::Ipv4Addr, time::Duration};

use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tonic::Code;

use super::{
    OUTPUT, Wish, attach_url,
    client::{Command, request, spdy, websocket},
    exec_url, forward_url, running,
};
use crate::support::{PATIENCE, TestNode, eventually, refused};

const V4: &[&str] = &["v4.channel.k8s.io"];

/// The HTTP status of a SPDY client that is refused.
async fn status(url: &str, versions: &[&str]) -> u16 {
    spdy(url, versions).await.unwrap_err().status
}

#[tokio::test(flavor = "multi_thread")]
async fn an_url_is_good_once_and_for_its_kind() {
    let (node, pod, container) = running().await;
    let url = exec_url(&node, &container, &["true"], OUTPUT).await.unwrap();
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    assert_eq!(Command::open(&url, OUTPUT).await.exit_code().await, 0);
    assert_eq!(status(&url, V4).await, 404);
    let url = exec_url(&node, &container, &["true"], OUTPUT).await.unwrap();
    assert_eq!(status(&url.replace("/exec/", "/attach/"), V4).await, 404);
    assert_eq!(status(&url, V4).await, 404, "a wrong guess uses it up");
    for path in ["exec/", "exec", "", "metrics"] {
        let base = url.split("/exec/").next().unwrap();
        assert_eq!(status(&format!("{base}/{path}"), V4).await, 404);
    }
    let forward = forward_url(&node, &pod, &[]).await.unwrap();
    let attach = attach_url(&node, &container, OUTPUT).await.unwrap();
    assert!(forward.contains("/portforward/") && attach.contains("/attach/"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_url_expires() {
    let node = TestNode::start_with(|config| config.streaming.token_s = 1).await;
    let pod = node.run_pod("web").await.unwrap();
    let container = node.run_container(&pod, "c", &["sleep", "infinity"]).await;
    let url = exec_url(&node, &container, &["true"], OUTPUT).await.unwrap();
    sleep(Duration::from_millis(1100)).await;
    assert_eq!(status(&url, V4).await, 404);
    assert!(websocket(&url, "v5.channel.k8s.io").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn urls_that_nobody_uses_have_a_bound() {
    let (node, _, container) = running().await;
    for _ in 0..1000 {
        exec_url(&node, &container, &["true"], OUTPUT).await.unwrap();
    }
    let one_more = exec_url(&node, &container, &["true"], OUTPUT).await;
    refused(one_more, Code::ResourceExhausted, "URLs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_common_version_may_try_another() {
    let (node, _, container) = running().await;
    let url = exec_url(&node, &container, &["true"], OUTPUT).await.unwrap();
    let refused = spdy(&url, &["v9.channel.k8s.io"]).await.unwrap_err();
    assert_eq!(refused.status, 403);
    let head = refused.head.to_lowercase();
    assert!(
        head.contains("x-accepted-stream-protocol-versions: v4.channel.k8s.io"),
        "{head}"
    );
    assert!(websocket(&url, "v9.channel.k8s.io").await.is_err());
    let (_, plain, _) = request(&url, &[]).await;
    assert_eq!(plain, 400);
    assert_eq!(Command::open(&url, OUTPUT).await.exit_code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_creates_no_streams_is_cut_off() {
    let (node, pod, container) = running().await;
    let url = exec_url(&node, &container, &["true"], OUTPUT).await.unwrap();
    let mut client = spdy(&url, V4).await.unwrap();
    client.open(&[("streamType", "error")]).await.unwrap();
    let ended = async { while let Ok(Some(_)) = client.next().await {} };
    timeout(PATIENCE, ended).await.unwrap();
    let machine = node.host.machine(&pod).unwrap();
    assert_eq!(machine.agent().execs(&container), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_idle_or_old_are_ended_with_their_commands() {
    let start = |change: fn(&mut cri_server::config::StreamingConfig)| async move {
        let node = TestNode::start_with(|config| change(&mut config.streaming)).await;
        let pod = node.run_pod("web").await.unwrap();
        let container = node.run_container(&pod, "c", &["sleep", "infinity"]).await;
        (node, pod, container)
    };
    for (node, pod, container) in [
        start(|config| config.idle_s = 1).await,
        start(|config| config.longest_s = Some(1)).await,
    ] {
        let url = exec_url(&node, &container, &["sleep", "infinity"], OUTPUT)
            .await
            .unwrap();
        let mut command = Command::open(&url, OUTPUT).await;
        command.until(|command| command.gone).await;
        let machine = node.host.machine(&pod).unwrap();
        eventually("the command is gone from the guest", async || {
            machine.agent().execs(&container).is_empty()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stops_ends_its_connections_and_the_next_one_serves() {
    let (mut node, pod, container) = running().await;
    let url = exec_url(&node, &container, &["sleep", "infinity"], OUTPUT)
        .await
        .unwrap();
    let mut command = Command::open(&url, OUTPUT).await;
    let machine = node.host.machine(&pod).unwrap();
    eventually("the command runs", async || {
        !machine.agent().execs(&container).is_empty()
    })
    .await;
    node.stop_daemon().await;
    command.until(|command| command.gone).await;
    assert_eq!(
        machine.agent().execs(&container),
        Vec::<String>::new(),
        "stopping waits for the end"
    );
    let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
    node.start_daemon().await;
    let url = exec_url(&node, &container, &["true"], OUTPUT).await.unwrap();
    assert_eq!(Command::open(&url, OUTPUT).await.exit_code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_is_the_configured_one() {
    let free = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let node = TestNode::start_with(|config| {
        config.streaming.address = Ipv4Addr::new(127, 0, 0, 2).into();
        config.streaming.port = port;
    })
    .await;
    let pod = node.run_pod("web").await.unwrap();
    let url = forward_url(&node, &pod, &[]).await.unwrap();
    assert!(url.starts_with(&format!("http://127.0.0.2:{port}/")), "{url}");
    let unused = Wish::default();
    assert!(attach_url(&node, "unknown", unused).await.is_err());
}
