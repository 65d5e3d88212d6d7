//! A lot of bytes through port-forward, with a checksum at both ends.

use cri_server::streaming::testing::{ClientEvent, SpdyClient};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{
    client::spdy,
    forward_url,
    port_forward::{VERSION, accept, open, server},
    running,
};
use crate::support::PATIENCE;

const PIECE: usize = 32 * 1024;

/// Bytes that repeat themselves nowhere: a piece that is lost, doubled or out of order changes the sum.
struct Numbers(Sha256, u64);

impl Numbers {
    fn new() -> Self {
        Self(Sha256::new(), 0)
    }

    fn piece(&mut self) -> Vec<u8> {
        let numbers = self.1..self.1 + (PIECE / 8) as u64;
        self.1 = numbers.end;
        let piece: Vec<u8> = numbers.flat_map(u64::to_be_bytes).collect();
        self.0.update(&piece);
        piece
    }

    fn sum(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

async fn up(mut pod: TcpStream) -> [u8; 32] {
    let (mut sum, mut buffer) = (Sha256::new(), vec![0; PIECE]);
    loop {
        match pod.read(&mut buffer).await.unwrap() {
            0 => return sum.finalize().into(),
            read => sum.update(&buffer[..read]),
        }
    }
}

async fn down<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    mut client: SpdyClient<R, W>,
    stream: u32,
) -> [u8; 32] {
    let mut sum = Sha256::new();
    loop {
        match timeout(PATIENCE, client.next()).await.unwrap().unwrap() {
            Some(ClientEvent::Data(of, bytes, fin)) if of == stream => {
                sum.update(&bytes);
                if fin {
                    return sum.finalize().into();
                }
            }
            Some(_) => {}
            None => panic!("the server has gone"),
        }
    }
}

/// `total` bytes to the pod, and as many from it.
async fn transfer(total: usize) {
    let (node, pod, _) = running().await;
    let (listener, port) = server().await;
    let url = forward_url(&node, &pod, &[]).await.unwrap();
    let mut client = spdy(&url, VERSION).await.unwrap();
    let there = open(&mut client, port, "0").await;
    let read = up(accept(&listener).await);
    let send = async {
        let mut numbers = Numbers::new();
        for _ in 0..total / PIECE {
            client.data(there.data, &numbers.piece(), false).await.unwrap();
        }
        client.data(there.data, b"", true).await.unwrap();
        numbers.sum()
    };
    let (sent, received) = tokio::join!(send, read);
    assert_eq!(sent, received, "on the way to the pod");
    let back = open(&mut client, port, "1").await;
    let mut pod = accept(&listener).await;
    let send = async move {
        let mut numbers = Numbers::new();
        for _ in 0..total / PIECE {
            pod.write_all(&numbers.piece()).await.unwrap();
        }
        numbers.sum()
    };
    let (receiving, _sending) = client.split();
    let (sent, received) = tokio::join!(send, down(receiving, back.data));
    assert_eq!(sent, received, "on the way from the pod");
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_mebibytes_arrive_as_they_were_sent_each_way() {
    transfer(64 << 20).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes in a build for debugging; cargo test -- --ignored runs it"]
async fn one_gibibyte_arrives_as_it_was_sent_each_way() {
    transfer(1 << 30).await;
}
