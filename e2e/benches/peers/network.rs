//! What goes through a pod's interface: one TCP flow to the host, and a round trip.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::{Figures, PodSpec, wait};
use proto::cri::v1::PodSandboxNetworkStatus;
use tokio::{io::AsyncReadExt, net::TcpListener, time::timeout};

use crate::pod::Peer;

/// Names of the series.
pub(crate) const FLOW: &str = "TCP, one flow pod to host";
pub(crate) const ROUND_TRIP: &str = "round trip pod to host";

/// Bytes of the flow: as many blocks of 64 KiB. An emulated gVisor does not get through 64 MiB within a minute.
const BLOCKS: u32 = 256;
const PINGS: u32 = 40;

/// The host's address on the pod network: what the bridge of `deploy/cni/10-clearpod.conflist` gets, the first of the pod's subnet.
fn host_of(network: &PodSandboxNetworkStatus) -> Result<String> {
    let mut octets = network.ip.split('.');
    let (Some(first), Some(second)) = (octets.next(), octets.next()) else {
        anyhow::bail!("the pod has no IPv4 address but {:?}", network.ip);
    };
    Ok(format!("{first}.{second}.0.1"))
}

/// MiB/s and milliseconds go to `figures`, from a pod of its own.
pub(crate) async fn measure(peer: &Peer, flows: usize, figures: &mut Figures) -> Result<()> {
    let pod: PodSpec = peer.pod("network");
    let sandbox = peer.cri.run_pod_with(&pod, peer.handler).await?;
    let status = peer.cri.pod(&sandbox).await?.status.context("status")?;
    let host = host_of(&status.network.context("the pod's network")?)?;
    let container = peer
        .cri
        .run_shell(&sandbox, &pod, "main", &peer.image, "exec sleep 100000")
        .await?;
    for _ in 0..flows {
        let listener = TcpListener::bind((host.as_str(), 0)).await?;
        let port = listener.local_addr()?.port();
        let send = format!("dd if=/dev/zero bs=64k count={BLOCKS} 2>/dev/null | nc {host} {port}");
        let sent = peer.cri.exec(&container, &send);
        let (sent, received) = tokio::join!(sent, timeout(wait::CALL, receive(&listener)));
        let (code, _, said) = sent?;
        ensure!(code == 0, "nc ended with {code}: {said}");
        figures.add(FLOW, received??);
    }
    // Not every runtime lets a container ping.
    let ping = format!("ping -q -c {PINGS} -i 0.02 {host}");
    let (_, said, _) = peer.cri.exec(&container, &ping).await?;
    if let Some(average) = average(&said) {
        figures.add(ROUND_TRIP, average);
    }
    peer.cri.remove_pod(&sandbox).await?;
    Ok(())
}

/// MiB/s from the first byte to the end.
async fn receive(listener: &TcpListener) -> Result<f64> {
    let (mut stream, _) = listener.accept().await?;
    let mut buffer = vec![0; 256 * 1024];
    let mut bytes = stream.read(&mut buffer).await?;
    let began = Instant::now();
    loop {
        let count = stream.read(&mut buffer).await?;
        bytes += count;
        if count == 0 {
            break;
        }
    }
    let wanted = BLOCKS as usize * 65536;
    ensure!(bytes == wanted, "{bytes} bytes of {wanted} came");
    Ok(bytes as f64 / f64::from(1 << 20) / began.elapsed().as_secs_f64())
}

/// Busybox: `round-trip min/avg/max = 0.050/0.061/0.089 ms`.
fn average(said: &str) -> Option<f64> {
    let (_, numbers) = said.split_once("min/avg/max = ")?;
    numbers.split('/').nth(1)?.parse().ok()
}
