//! One forwarded connection: a hello names a TCP port, the agent dials it on the pod's loopback interface and passes bytes on.
//!
//! The agent lives in the pod's network namespace, so that 127.0.0.1 is the pod's own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use proto::port_forward::{Answer, HELLO_LEN, Hello};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// From accept to the end of the hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// Loopback answers at once, unless the listener's queue is full.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);

/// Serves one connection until both directions have ended or one broke.
///
/// # Errors
/// What reading, writing and dialling answer; a hello that is none.
pub(crate) async fn serve(mut daemon: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut hello = [0; HELLO_LEN];
    timeout(HELLO_DEADLINE, daemon.read_exact(&mut hello)).await??;
    let Hello { port } = Hello::decode(hello).map_err(io::Error::other)?;
    match dial(port).await {
        Ok(mut pod) => {
            daemon.write_all(&Answer::Connected.encode()).await?;
            copy_bidirectional(&mut daemon, &mut pod).await?;
            Ok(())
        }
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            daemon.write_all(&Answer::Refused(errno).encode()).await?;
            daemon.shutdown().await
        }
    }
}

/// 127.0.0.1, then ::1: servers listen on either or both. The error is the first one's.
async fn dial(port: u16) -> io::Result<TcpStream> {
    let first = match connect(IpAddr::V4(Ipv4Addr::LOCALHOST), port).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    connect(IpAddr::V6(Ipv6Addr::LOCALHOST), port)
        .await
        .map_err(|_| first)
}

async fn connect(address: IpAddr, port: u16) -> io::Result<TcpStream> {
    let stream = timeout(DIAL_DEADLINE, TcpStream::connect((address, port)))
        .await
        .unwrap_or_else(|_| Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)))?;
    // Small pieces of a conversation are not to wait for one another.
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use proto::port_forward::ANSWER_LEN;
    use tokio::io::DuplexStream;
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

    /// The daemon's end of a connection for `port`, the agent's answer, and the task that serves it.
    async fn open(port: u16) -> (DuplexStream, Answer, JoinSet<io::Result<()>>) {
        let (mut daemon, ours) = tokio::io::duplex(1024);
        let mut served = JoinSet::new();
        served.spawn(serve(ours));
        daemon.write_all(&Hello { port }.encode()).await.unwrap();
        let mut answer = [0; ANSWER_LEN];
        daemon.read_exact(&mut answer).await.unwrap();
        (daemon, Answer::decode(answer).unwrap(), served)
    }

    async fn listener(address: &str) -> (TcpListener, u16) {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_each_way_ends_by_itself() {
        let (listener, port) = listener("127.0.0.1").await;
        let (mut daemon, answer, served) = open(port).await;
        assert_eq!(answer, Answer::Connected);
        let (mut pod, _) = listener.accept().await.unwrap();
        daemon.write_all(b"question").await.unwrap();
        daemon.shutdown().await.unwrap();
        let mut question = String::new();
        pod.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        // More than every buffer on the way: the half that is open goes on.
        let long = vec![7; 3 << 20];
        let mut answering = JoinSet::new();
        answering.spawn(async move {
            pod.write_all(&long).await.unwrap();
            pod.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        daemon.read_to_end(&mut received).await.unwrap();
        answering.join_all().await;
        assert_eq!(received.len(), 3 << 20);
        assert!(served.join_all().await.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn a_port_without_a_listener_is_refused_with_its_errno() {
        let (closed, port) = listener("127.0.0.1").await;
        drop(closed);
        let (mut daemon, answer, served) = open(port).await;
        assert_eq!(answer, Answer::Refused(libc::ECONNREFUSED));
        assert_eq!(daemon.read(&mut [0]).await.unwrap(), 0);
        assert!(served.join_all().await.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn a_server_of_ipv6_alone_is_found() {
        let Ok(listener) = TcpListener::bind("[::1]:0").await else {
            // A host without IPv6.
            return;
        };
        let port = listener.local_addr().unwrap().port();
        assert_eq!(open(port).await.1, Answer::Connected);
    }

    #[tokio::test]
    async fn a_daemon_that_goes_takes_the_connection_along() {
        let (listener, port) = listener("127.0.0.1").await;
        let (daemon, _, served) = open(port).await;
        let (mut pod, _) = listener.accept().await.unwrap();
        drop(daemon);
        assert_eq!(pod.read(&mut [0]).await.unwrap(), 0);
        drop(pod);
        // How it ended depends on who noticed first; that it did is what counts.
        drop(served.join_all().await);
    }

    #[tokio::test]
    async fn what_is_no_hello_ends_the_connection() {
        let (mut daemon, ours) = tokio::io::duplex(64);
        daemon.write_all(b"GET / HTTP/1.1").await.unwrap();
        let error = serve(ours).await.unwrap_err();
        assert!(error.to_string().contains("magic"), "{error}");
    }
}
