//! The yardstick of a boot: from just before the VMM's process is started to the guest's `Ready` on vsock port 1025, heard
//! here whoever carried it: a unix socket of our VMM, or the host's own vsock under QEMU.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    os::unix::net::UnixListener,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use e2e::wait;
use nix::{
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
    time::{ClockId, clock_gettime},
};
use prost::Message;
use proto::{agent::v1::Ready, stdio::READY_PORT};
use rustix::io::Errno;

use super::Running;

/// Longest `Ready` that is read.
const LIMIT: usize = 1024;
/// `VMADDR_CID_ANY`.
const ANY: u32 = u32::MAX;

/// Hears one guest after another.
#[derive(Debug)]
pub(crate) struct Ear(OwnedFd);

/// When a guest was ready.
#[derive(Debug)]
pub(crate) struct Heard {
    /// `CLOCK_MONOTONIC` of this host.
    pub(crate) at_ns: u64,
    /// The guest's own time since its kernel began, when PID 1 began and when it was ready.
    pub(crate) main_entered_ns: u64,
    pub(crate) ready_ns: u64,
}

pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

impl Ear {
    /// For a Machine whose vsock socket is at `vsock`.
    pub(crate) fn of_unix_socket(vsock: &Path) -> Result<Self> {
        let path = format!("{}_{READY_PORT}", vsock.display());
        let listener =
            UnixListener::bind(&path).with_context(|| format!("listen for the guest at {path}"))?;
        Self::patient(listener.into())
    }

    /// For guests whose vsock the host's kernel carries.
    pub(crate) fn of_host() -> Result<Self> {
        let listener = socket(
            AddressFamily::Vsock,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        bind(listener.as_raw_fd(), &VsockAddr::new(ANY, READY_PORT))?;
        listen(&listener, Backlog::new(4)?)?;
        Self::patient(listener)
    }

    fn patient(listener: OwnedFd) -> Result<Self> {
        bound_reads(&listener)?;
        Ok(Self(listener))
    }

    /// Waits for the next guest, which `running` runs.
    pub(crate) fn hear(&self, running: &mut Running) -> Result<Heard> {
        let connection = self.accept(running)?;
        bound_reads(&connection)?;
        let mut stream = File::from(connection);
        let mut received = Vec::new();
        let mut part = [0; LIMIT];
        while received.len() < LIMIT {
            let count = match stream.read(&mut part) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read.context("read the ready signal")?,
            };
            let at_ns = monotonic_ns();
            received.extend(part.iter().take(count));
            if let Ok(ready) = Ready::decode_length_delimited(received.as_slice()) {
                return Ok(Heard {
                    at_ns,
                    main_entered_ns: ready.main_entered_ns,
                    ready_ns: ready.ready_ns,
                });
            }
            if count == 0 {
                break;
            }
        }
        bail!("the guest sent {} bytes that are no ready signal", received.len())
    }

    fn accept(&self, running: &mut Running) -> Result<OwnedFd> {
        let deadline = Instant::now() + wait::SERVER;
        loop {
            match rustix::net::accept(&self.0) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                connection => return connection.context("accept the guest's connection"),
            }
            if let Some(status) = running.ended()? {
                bail!("it ended before its guest was ready: {status}");
            }
            ensure!(
                Instant::now() < deadline,
                "its guest was not ready within {:?}",
                wait::SERVER
            );
        }
    }
}

/// accept(2) and read(2) return now and then, so that the process can be looked after.
fn bound_reads(socket: &impl AsFd) -> Result<()> {
    let limit = TimeVal::new(2, 0);
    Ok(setsockopt(socket, sockopt::ReceiveTimeout, &limit)?)
}
