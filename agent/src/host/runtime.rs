//! Calls of the OCI runtime's command line: what crun and runc have in common. The runtime is a program that does one thing and
//! exits; what it starts becomes a child of the shim, which is the subreaper.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proto::agent::v1::ErrorCode;
use serde::Deserialize;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use crate::container::create;
use crate::error::{Context as _, Failure};
use crate::init::channel::receive_some;
use crate::init::order::TerminalSize;
use crate::init::terminal::winsize;
use crate::reaper::{Child, Reaper};
use crate::stdio::process::{Outputs, ProcessEnds, ProcessStdio};
use crate::sys;

/// For one call; a node under heavy load needs seconds to create a container.
const CALL_WITHIN: Duration = Duration::from_secs(60);
/// For a terminal that was sent before the call returned.
const TERMINAL_WITHIN: Duration = Duration::from_secs(5);
/// Bytes of the runtime's own log that are read for its last words.
const MAX_LOG: usize = 64 * 1024;

/// The OCI runtime of one pod.
#[derive(Debug)]
pub(super) struct Runtime {
    program: PathBuf,
    /// Its state.
    root: PathBuf,
    cgroups: bool,
    /// Numbers the sockets that terminals arrive at.
    terminals: AtomicU64,
}

/// A process to be started through it.
#[derive(Debug)]
pub(super) struct Start<'a> {
    /// "create" or "exec"
    pub(super) verb: &'static str,
    /// Behind the options that are common to both.
    pub(super) arguments: &'a [&'a OsStr],
    /// Directory for the files of this call.
    pub(super) files: &'a Path,
    pub(super) terminal: Option<TerminalSize>,
    pub(super) stdin: bool,
}

/// A process that was started.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) child: Child,
    pub(super) stdio: ProcessStdio,
    pub(super) outputs: Outputs,
}

impl Runtime {
    pub(super) fn new(program: PathBuf, root: PathBuf, cgroups: bool) -> Self {
        Self {
            program,
            root,
            cgroups,
            terminals: AtomicU64::new(0),
        }
    }

    /// Creates a container or executes in one, and takes over the process that comes of it.
    ///
    /// # Errors
    /// `Exec` when the program cannot be executed, `System` with the runtime's own words.
    pub(super) async fn start(&self, reaper: &Reaper, start: Start<'_>) -> Result<Started, Failure> {
        let pid_file = start.files.join("pid");
        let pipes = create::pipes_unless(start.terminal.is_some(), start.stdin)?;
        let console = match start.terminal {
            Some(size) => Some((
                Console::listen(self.terminals.fetch_add(1, Ordering::Relaxed))?,
                size,
            )),
            None => None,
        };
        let mut arguments: Vec<OsString> = vec!["--pid-file".into(), pid_file.clone().into()];
        if let Some((console, _)) = &console {
            arguments.extend(["--console-socket".into(), console.path.clone().into()]);
        }
        arguments.extend(start.arguments.iter().map(|&argument| argument.to_owned()));
        let (ours, theirs) = pipes.unzip();
        let expecting = reaper.expect();
        self.call(reaper, start.verb, &arguments, start.files, theirs)
            .await?;
        let pid = fs::read_to_string(&pid_file)
            .and_then(|text| text.trim().parse().map_err(io::Error::other))
            .context(ErrorCode::System, || format!("read {}", pid_file.display()))?;
        let child = expecting
            .adopt(pid)
            .context(ErrorCode::System, || format!("take over process {pid}"))?;
        drop(expecting);
        let taken = async {
            let master = match console {
                Some((console, size)) => Some(console.receive(size).await?),
                None => None,
            };
            create::stdio(ours, master, start.stdin)
        };
        match taken.await {
            Ok((stdio, outputs)) => Ok(Started {
                child,
                stdio,
                outputs,
            }),
            Err(failure) => {
                sys::signal::send(&child.pidfd, libc::SIGKILL).ok();
                Err(failure)
            }
        }
    }

    /// Lets a created container's process go.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub(super) async fn release(&self, reaper: &Reaper, id: &str, files: &Path) -> Result<(), Failure> {
        self.call(reaper, "start", &[id.into()], files, None).await
    }

    /// Forgets a container, killing what is left of it. One that it does not know is fine.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub(super) async fn delete(&self, reaper: &Reaper, id: &str, files: &Path) -> Result<(), Failure> {
        if !self.root.join(id).exists() {
            return Ok(());
        }
        let arguments = ["--force".into(), id.into()];
        self.call(reaper, "delete", &arguments, files, None).await
    }

    async fn call(
        &self,
        reaper: &Reaper,
        verb: &'static str,
        arguments: &[OsString],
        files: &Path,
        stdio: Option<ProcessEnds>,
    ) -> Result<(), Failure> {
        let log = files.join("log");
        // What is in it is of an earlier call.
        fs::remove_file(&log).ok();
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root);
        command.arg("--log").arg(&log).args(["--log-format", "json"]);
        if !self.cgroups {
            command.args(["--cgroup-manager", "disabled"]);
        }
        command.arg(verb).args(arguments);
        match stdio {
            Some(ends) => {
                let [stdin, stdout, stderr] = ends.into_descriptors();
                command.stdin(stdin).stdout(stdout).stderr(stderr);
            }
            None => {
                command
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
            }
        }
        let what = || format!("start {}", self.program.display());
        let child = reaper
            .spawn_program(&mut command)
            .context(ErrorCode::System, what)?;
        // It holds the container's ends of the pipes, which must be the container's alone.
        drop(command);
        let Ok(ended) = tokio::time::timeout(CALL_WITHIN, child.ended).await else {
            sys::signal::send(&child.pidfd, libc::SIGKILL).ok();
            let text = format!(
                "{} {verb} did not end within {CALL_WITHIN:?}",
                self.program.display()
            );
            return Err(Failure::new(ErrorCode::System, text));
        };
        match ended {
            Ok(ended) if ended.code == 0 => Ok(()),
            Ok(ended) => Err(refusal(verb, ended.code, &last_words(&log))),
            Err(_) => Err(Failure::new(
                ErrorCode::System,
                "the shim lost track of the OCI runtime",
            )),
        }
    }
}

/// A line of the runtime's log.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(default)]
    msg: String,
}

/// What the runtime said last.
fn last_words(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(
        bytes
            .get(bytes.len().saturating_sub(MAX_LOG)..)
            .unwrap_or_default(),
    );
    let Some(last) = text.lines().rfind(|line| !line.trim().is_empty()) else {
        return String::new();
    };
    serde_json::from_str(last).map_or_else(|_| last.to_owned(), |line: Line| line.msg)
}

/// The runtime says in words why a program cannot be executed; which errno it was is among them, as strerror(3) has it.
fn refusal(verb: &str, code: i32, words: &str) -> Failure {
    let about_program = ["executable file", "exec ", "exec:", "execve", "open executable"];
    let errors = [
        ("No such file or directory", libc::ENOENT),
        ("no such file or directory", libc::ENOENT),
        ("not found", libc::ENOENT),
        ("Permission denied", libc::EACCES),
        ("permission denied", libc::EACCES),
        ("Exec format error", libc::ENOEXEC),
        ("exec format error", libc::ENOEXEC),
    ];
    let errno = errors.iter().find(|(text, _)| words.contains(text));
    match errno {
        Some((_, errno)) if about_program.iter().any(|text| words.contains(text)) => {
            Failure::from_io(ErrorCode::Exec, words, &io::Error::from_raw_os_error(*errno))
        }
        _ => Failure::new(
            ErrorCode::System,
            format!("the OCI runtime's {verb} failed with code {code}: {words}"),
        ),
    }
}

/// Where the runtime sends a terminal's master. In the pod's directory, whose path is short: unix(7).
#[derive(Debug)]
struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Console {
    fn listen(number: u64) -> Result<Self, Failure> {
        let name = format!("tty-{number}.sock");
        let what = || format!("listen on {name}");
        let path = std::env::current_dir()
            .context(ErrorCode::System, what)?
            .join(&name);
        let listener = UnixListener::bind(&name).context(ErrorCode::System, what)?;
        Ok(Self { path, listener })
    }

    /// The master, of the size that was asked for.
    async fn receive(self, size: TerminalSize) -> Result<OwnedFd, Failure> {
        let receive = async {
            let (socket, _) = self.listener.accept().await?;
            master(&socket).await
        };
        let master = match tokio::time::timeout(TERMINAL_WITHIN, receive).await {
            Ok(received) => received,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        let master = master.context(ErrorCode::System, || "receive the terminal".to_owned())?;
        rustix::termios::tcsetwinsize(&master, winsize(size))
            .context(ErrorCode::System, || "size the terminal".to_owned())?;
        Ok(master)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Removed with the directory at the latest.
        fs::remove_file(&self.path).ok();
    }
}

async fn master(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut buffer = [0; 256];
    let mut descriptors = Vec::new();
    loop {
        socket.readable().await?;
        let received = socket.try_io(Interest::READABLE, || {
            receive_some(socket, &mut buffer, &mut descriptors)
        });
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
            Ok(0) if descriptors.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {
                if let Some(master) = descriptors.pop() {
                    return Ok(master);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_cannot_be_executed_is_told_from_other_failures() {
        for (words, errno) in [
            (
                "executable file `nope` not found in $PATH: No such file or directory",
                libc::ENOENT,
            ),
            ("open executable: Permission denied", libc::EACCES),
            ("exec: \"nope\": executable file not found in $PATH", libc::ENOENT),
            ("exec /bin/text: exec format error", libc::ENOEXEC),
        ] {
            let failure = refusal("create", 1, words);
            assert_eq!(
                (failure.code(), failure.errno()),
                (ErrorCode::Exec, errno),
                "{words}"
            );
        }
        let other = refusal("create", 1, "open `/sys/fs/cgroup/x`: No such file or directory");
        assert_eq!(other.code(), ErrorCode::System);
    }

    #[test]
    fn the_last_line_of_the_log_is_what_went_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        fs::write(
            &log,
            "{\"msg\":\"first\"}\n{\"msg\":\"last\",\"level\":\"error\"}\n\n",
        )
        .unwrap();
        assert_eq!(last_words(&log), "last");
        fs::write(&log, "no JSON").unwrap();
        assert_eq!(last_words(&log), "no JSON");
        assert_eq!(last_words(&directory.path().join("none")), "");
    }
}
