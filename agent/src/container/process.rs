//! A process that the daemon knows by name: an init process or an exec'd one.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use proto::agent::v1::{ErrorCode, Exit, ResolvedUser, TerminalSize as WireSize};
use tokio::sync::watch;

use crate::error::{Context as _, Failure};
use crate::init::order::{Credentials, TerminalSize};
use crate::init::terminal;
use crate::stdio::process::ProcessStdio;
use crate::sys;

/// A started process: it may have ended.
#[derive(Debug)]
pub(crate) struct Process {
    pid: i32,
    pidfd: OwnedFd,
    pub(crate) stdio: Arc<ProcessStdio>,
    pub(crate) user: Credentials,
    exit: watch::Receiver<Option<Exit>>,
}

impl Process {
    /// The sender is told the exit once.
    pub(crate) fn new(
        pid: i32,
        pidfd: OwnedFd,
        stdio: Arc<ProcessStdio>,
        user: Credentials,
    ) -> (Self, watch::Sender<Option<Exit>>) {
        let (sender, exit) = watch::channel(None);
        let process = Self {
            pid,
            pidfd,
            stdio,
            user,
            exit,
        };
        (process, sender)
    }

    /// In the agent's PID namespace.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    pub(crate) fn pidfd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    pub(crate) fn resolved_user(&self) -> ResolvedUser {
        ResolvedUser {
            uid: self.user.uid,
            gid: self.user.gid,
            supplemental_gids: self.user.supplemental_gids.clone(),
        }
    }

    /// Waits for its end.
    pub(crate) async fn wait(&self) -> Result<Exit, Failure> {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.map(|exit| exit.clone());
        ended
            .ok()
            .flatten()
            .ok_or_else(|| Failure::new(ErrorCode::System, "the agent lost track of the process"))
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// # Errors
    /// `InvalidArgument` for a number that is no signal, `WrongState` when the process has ended.
    pub(crate) fn signal(&self, signal: u32) -> Result<(), Failure> {
        let number = signal_number(signal)?;
        if self.has_ended() {
            return Err(Failure::new(
                ErrorCode::WrongState,
                format!("process {} has ended", self.pid),
            ));
        }
        match sys::signal::send(&self.pidfd, number) {
            // Ended, and not reaped yet: the end is about to be told.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            sent => sent.context(ErrorCode::System, || {
                format!("send signal {signal} to process {}", self.pid)
            }),
        }
    }

    /// # Errors
    /// `WrongState` for a process without a terminal, `InvalidArgument`.
    pub(crate) fn resize(&self, size: WireSize) -> Result<(), Failure> {
        let size = terminal_size("size", size)?;
        let terminal = self.stdio.terminal();
        let terminal =
            terminal.ok_or_else(|| Failure::new(ErrorCode::WrongState, "the process has no terminal"))?;
        rustix::termios::tcsetwinsize(terminal, terminal::winsize(size))
            .context(ErrorCode::System, || "resize the terminal".to_owned())
    }
}

/// # Errors
/// `InvalidArgument` for a number that is no signal.
pub(crate) fn signal_number(signal: u32) -> Result<i32, Failure> {
    match i32::try_from(signal) {
        Ok(number) if (1..=sys::signal::MAX_SIGNAL).contains(&signal) => Ok(number),
        _ => Err(Failure::invalid(format!("signal: {signal} is no signal"))),
    }
}

/// # Errors
/// `InvalidArgument` naming `field`, when it does not fit what the kernel stores.
pub(crate) fn terminal_size(field: &str, size: WireSize) -> Result<TerminalSize, Failure> {
    match (u16::try_from(size.width), u16::try_from(size.height)) {
        (Ok(width), Ok(height)) => Ok(TerminalSize { width, height }),
        _ => Err(Failure::invalid(format!(
            "{field}: {} by {} is too large",
            size.width, size.height
        ))),
    }
}
