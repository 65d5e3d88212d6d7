//! What every streaming connection has below its protocol: whether the client is still there, and when it last said something.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::unix::AsyncFd,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::sys::readiness;

/// The line to one client. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// The connection is over: cancelled when the client is gone, or by us.
    pub(crate) closed: CancellationToken,
    last_activity: Arc<Activity>,
    /// The socket once more, to learn of the client's end while its bytes are not read.
    socket: Option<Arc<AsyncFd<OwnedFd>>>,
}

#[derive(Debug)]
struct Activity {
    began: Instant,
    /// Milliseconds after `began`.
    last: AtomicU64,
}

impl Line {
    /// A line whose client is only known by what it sends.
    pub(crate) fn new(closed: CancellationToken) -> Self {
        Self {
            closed,
            last_activity: Arc::new(Activity {
                began: Instant::now(),
                last: AtomicU64::new(0),
            }),
            socket: None,
        }
    }

    /// The line over `socket`, which is not read here.
    pub(crate) fn over(socket: &impl AsFd, closed: CancellationToken) -> io::Result<Self> {
        let socket = rustix::io::fcntl_dupfd_cloexec(socket, 0)?;
        Ok(Self {
            socket: Some(Arc::new(readiness::readable(socket)?)),
            ..Self::new(closed)
        })
    }

    /// Something passed in either direction.
    pub(crate) fn touch(&self) {
        let activity = &self.last_activity;
        let elapsed = u64::try_from(activity.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        activity.last.store(elapsed, Ordering::Relaxed);
    }

    /// Returns when the client has closed its side, also while nobody reads.
    pub(crate) async fn hung_up(&self) {
        let Some(socket) = &self.socket else {
            return std::future::pending().await;
        };
        while let Ok(mut ready) = socket.readable().await {
            if ready.ready().is_read_closed() {
                return;
            }
            // Bytes that wait to be read: the next event is news.
            ready.clear_ready();
        }
    }

    /// Returns when nothing has passed for `idle`, or the line is as old as `longest`.
    pub(crate) async fn worn_out(&self, idle: Duration, longest: Option<Duration>) -> &'static str {
        let began = self.last_activity.began;
        tokio::select! {
            () = self.idle_for(idle) => "nothing has passed for too long",
            () = async {
                match longest.and_then(|longest| began.checked_add(longest)) {
                    Some(end) => sleep_until(end).await,
                    None => std::future::pending().await,
                }
            } => "it is as old as it may get",
        }
    }

    async fn idle_for(&self, limit: Duration) {
        let activity = &self.last_activity;
        loop {
            let last = Duration::from_millis(activity.last.load(Ordering::Relaxed));
            let idle = activity.began.elapsed().saturating_sub(last);
            match limit.checked_sub(idle) {
                Some(left) if !left.is_zero() => sleep(left).await,
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncWriteExt as _,
        net::{TcpListener, TcpStream},
        time::timeout,
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn activity_puts_the_idle_end_off_and_age_does_not() {
        let line = Line::new(CancellationToken::new());
        let began = Instant::now();
        let worn_out = line.worn_out(Duration::from_secs(10), Some(Duration::from_secs(25)));
        let activity = async {
            for _ in 0..8 {
                sleep(Duration::from_secs(6)).await;
                line.touch();
            }
        };
        tokio::select! {
            reason = worn_out => assert!(reason.contains("old"), "{reason}"),
            () = activity => panic!("the line outlived its age"),
        }
        assert_eq!(began.elapsed().as_secs(), 25);
        let reason = line.worn_out(Duration::from_secs(10), None).await;
        assert!(reason.contains("nothing"), "{reason}");
        assert_eq!(began.elapsed().as_secs(), 34);
    }

    #[tokio::test]
    async fn a_client_that_hangs_up_is_noticed_behind_bytes_that_nobody_reads() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let line = Line::over(&server, CancellationToken::new()).unwrap();
        client.write_all(b"unread").await.unwrap();
        let early = timeout(Duration::from_millis(100), line.hung_up()).await;
        assert!(early.is_err(), "the client is there");
        drop(client);
        timeout(Duration::from_secs(30), line.hung_up()).await.unwrap();
    }
}
