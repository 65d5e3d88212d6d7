//! The port-forward port of a fake guest: `proto::port_forward` from the agent's side. The fake pod's loopback interface is the
//! host's.

use std::io;

use proto::port_forward::{Answer, HELLO_LEN, Hello};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional},
    net::TcpStream,
};

/// Serves one connection to the end.
pub(super) async fn serve(mut connection: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut hello = [0; HELLO_LEN];
    connection.read_exact(&mut hello).await?;
    let Hello { port } = Hello::decode(hello).map_err(io::Error::other)?;
    match TcpStream::connect(("127.0.0.1", port)).await {
        Ok(mut pod) => {
            connection.write_all(&Answer::Connected.encode()).await?;
            copy_bidirectional(&mut connection, &mut pod).await?;
            Ok(())
        }
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            connection.write_all(&Answer::Refused(errno).encode()).await
        }
    }
}
