//! A Machine under test: the guest kernel of `CLEARPOD_VMLINUX` with an initramfs of one static busybox
//! (`CLEARPOD_BUSYBOX`, by default /bin/busybox) and a script as /init, run by `clearpod-vmm` (`CLEARPOD_VMM`, by
//! default the one that cargo built).

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says aloud that it skips"
)]

mod cpio;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, IoSlice, Read};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use nix::unistd::Pid;
use proto::machine::{
    CONFIG_VERSION, Console, ExitReason, FileSource, MachineConfig, Request, Response, Snapshot, Vcpus,
};
use tempfile::TempDir;

/// Does a test with a guest, if one can run here; one that cannot says so.
pub(crate) fn on_kvm(test: fn(&Artifacts)) {
    if let Some(artifacts) = Artifacts::find() {
        test(&artifacts);
    }
}

/// A guest under nested KVM in an emulated processor takes seconds for what takes milliseconds elsewhere.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Where the guest comes from.
pub(crate) struct Artifacts {
    vmlinux: PathBuf,
    busybox: PathBuf,
}

impl Artifacts {
    /// `None`, said aloud, where there is no kernel or no /dev/kvm; a panic where `CLEARPOD_REQUIRE` names kvm.
    fn find() -> Option<Self> {
        let path = |name: &str| env::var_os(name).map(PathBuf::from);
        let missing = match path("CLEARPOD_VMLINUX") {
            None => "CLEARPOD_VMLINUX does not name a guest kernel",
            Some(_) if !Path::new("/dev/kvm").exists() => "there is no /dev/kvm",
            Some(vmlinux) => {
                let busybox = path("CLEARPOD_BUSYBOX").unwrap_or_else(|| "/bin/busybox".into());
                return Some(Self { vmlinux, busybox });
            }
        };
        let required = env::var("CLEARPOD_REQUIRE").unwrap_or_default();
        assert!(
            !required.split(',').any(|need| need == "kvm"),
            "CLEARPOD_REQUIRE asks for kvm, but {missing}"
        );
        eprintln!("SKIPPED, needs KVM that runs a stock kernel: {missing}");
        None
    }

    /// The initramfs with the agent that is built with the kernel (`CLEARPOD_INITRAMFS`); `None`, said aloud, without one.
    pub(crate) fn initramfs(&self) -> Option<PathBuf> {
        let initramfs = env::var_os("CLEARPOD_INITRAMFS").map(PathBuf::from);
        if initramfs.is_none() {
            eprintln!("SKIPPED, needs the agent: CLEARPOD_INITRAMFS does not name an initramfs");
        }
        initramfs
    }
}

/// Of the smallest Machine; what it begins with is missing.
fn configuration() -> MachineConfig {
    MachineConfig {
        version: CONFIG_VERSION,
        id: "boot-test".to_owned(),
        kernel: None,
        initramfs: None,
        command_line: String::new(),
        snapshot: None,
        vcpus: Vcpus { boot: 1, max: 1 },
        memory_mib: 128,
        memory_hotplug_mib: 0,
        control: "control".into(),
        console: Console {
            ring_bytes: 1 << 16,
            dump: Some("console".into()),
        },
        vsock: None,
        devices: Vec::new(),
    }
}

/// A running Machine. Killed when dropped.
pub(crate) struct Guest {
    directory: TempDir,
    vmm: Child,
    control: Option<BufReader<UnixStream>>,
}

impl Guest {
    /// Boots `script` (busybox's applets are in /bin; /proc, /sys and /dev are mounted).
    pub(crate) fn boot(artifacts: &Artifacts, script: &str) -> Self {
        Self::boot_with(artifacts, script, |_| {})
    }

    /// Likewise, after a change of the configuration.
    pub(crate) fn boot_with(
        artifacts: &Artifacts,
        script: &str,
        change: impl FnOnce(&mut MachineConfig),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let busybox = fs::read(&artifacts.busybox).unwrap();
        fs::write(
            directory.path().join("initramfs"),
            cpio::with_init(&busybox, script),
        )
        .unwrap();
        let mut config = configuration();
        config.kernel = Some(FileSource::Path(artifacts.vmlinux.clone()));
        config.initramfs = Some(FileSource::Path("initramfs".into()));
        config.command_line = "quiet".to_owned();
        change(&mut config);
        Self::start(directory, &config)
    }

    /// Goes on from a snapshot, after a change of the configuration.
    pub(crate) fn restore(snapshot: Snapshot, change: impl FnOnce(&mut MachineConfig)) -> Self {
        let mut config = configuration();
        config.snapshot = Some(snapshot);
        change(&mut config);
        Self::start(tempfile::tempdir().unwrap(), &config)
    }

    fn start(directory: TempDir, config: &MachineConfig) -> Self {
        fs::write(
            directory.path().join("config"),
            serde_json::to_vec(config).unwrap(),
        )
        .unwrap();
        let program =
            env::var_os("CLEARPOD_VMM").unwrap_or_else(|| env!("CARGO_BIN_EXE_clearpod-vmm").into());
        let vmm = Command::new(program)
            .args(["--config", "config"])
            .current_dir(directory.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            directory,
            vmm,
            control: None,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.vmm.id()
    }

    /// A new connection to the control socket.
    pub(crate) fn connect(&self) -> UnixStream {
        let path = self.directory.path().join("control");
        let start = Instant::now();
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    return stream;
                }
                Err(error) => assert!(start.elapsed() < PATIENCE, "no control socket: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// One request over the connection that all requests of this guest share.
    pub(crate) fn ask(&mut self, request: &Request) -> Response {
        self.ask_with(request, &[])
    }

    /// Likewise, with descriptors.
    pub(crate) fn ask_with(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Response {
        if self.control.is_none() {
            self.control = Some(BufReader::new(self.connect()));
        }
        let control = self.control.as_mut().unwrap();
        let mut line = serde_json::to_vec(request).unwrap();
        line.push(b'\n');
        let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
        let sent = sendmsg::<UnixAddr>(
            control.get_ref().as_raw_fd(),
            &[IoSlice::new(&line)],
            rights,
            MsgFlags::empty(),
            None,
        );
        assert_eq!(sent.unwrap(), line.len());
        let mut answer = String::new();
        control.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error} in {answer:?}"))
    }

    /// Waits until the console has `text`; returns the whole console.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            let Response::Console { text: console, .. } = self.ask(&Request::Console {}) else {
                panic!("no console");
            };
            if console.contains(text) {
                return console;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "no {text:?} on the console:\n{console}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits for the end of the process: why it ended, the console it left, what it logged.
    pub(crate) fn end(mut self) -> (ExitReason, String, String) {
        let status = self.wait();
        let mut log = String::new();
        self.vmm.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        let console = fs::read(self.directory.path().join("console")).unwrap_or_default();
        let reason = ExitReason::from_code(status.code().unwrap_or(-1));
        (reason, String::from_utf8_lossy(&console).into_owned(), log)
    }

    /// A test fails: what its guest and its VMM had to say.
    fn tell_last_words(&mut self) {
        // A Machine that is told to end leaves its console; one that has ended cannot be told.
        kill(Pid::from_raw(self.vmm.id() as i32), Signal::SIGTERM).ok();
        std::thread::sleep(Duration::from_secs(1));
        drop(self.vmm.kill());
        let mut log = String::new();
        if let Some(mut stderr) = self.vmm.stderr.take() {
            drop(stderr.read_to_string(&mut log));
        }
        let console = fs::read(self.directory.path().join("console")).unwrap_or_default();
        eprintln!("console:\n{}\nlog:\n{log}", String::from_utf8_lossy(&console));
    }

    fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.vmm.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the VMM does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell_last_words();
        }
        // Both fail only when it has ended.
        drop(self.vmm.kill());
        drop(self.vmm.wait());
    }
}
