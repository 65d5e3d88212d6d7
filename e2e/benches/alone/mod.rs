//! The same kernel and initramfs under our VMM and under QEMU's `microvm` machine, each alone, told by the same yardstick
//! (`ready`).

mod exits;
pub(crate) mod memory;
mod ready;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use e2e::Figures;
use proto::machine::{CONFIG_VERSION, Console, FileSource, MachineConfig, Request, Response, Vcpus, Vsock};
use tempfile::TempDir;

pub(crate) use self::ready::monotonic_ns;
use self::ready::{Ear, Heard};

/// What is booted: the same for both.
#[derive(Debug, Clone)]
pub(crate) struct Payload {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) memory_mib: u64,
}

/// The daemon's own words; the VMM adds what its machine needs.
pub(crate) const COMMAND_LINE: &str = "quiet";

/// The command line of a guest with one processor under our VMM (`vmm/src/x86_64/command_line.rs`), for QEMU's.
const WORDS: &str =
    "console=ttyS0 pci=conf1,noearly noapic noreplace-smp reboot=k panic=-1 tsc=reliable quiet";

/// Enough for all that a kernel can say that is not quiet.
const CONSOLE_BYTES: u32 = 1 << 20;

/// A process that does not outlive its owner.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }

    /// What KVM has counted of its guest.
    pub(crate) fn exits(&self) -> Result<BTreeMap<String, u64>> {
        exits::counted_by_kvm(self.0.id())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A Machine of ours, without daemon and network.
#[derive(Debug)]
pub(crate) struct Machine {
    /// Its configuration, log and sockets: `vsock` is that of its guest's ports.
    pub(crate) directory: TempDir,
    ear: Ear,
}

/// Of a Machine with one processor and no device but a vsock and a console, without what it begins with.
pub(crate) fn config(memory_mib: u64) -> MachineConfig {
    MachineConfig {
        version: CONFIG_VERSION,
        id: "bench".to_owned(),
        kernel: None,
        initramfs: None,
        command_line: String::new(),
        snapshot: None,
        vcpus: Vcpus { boot: 1, max: 1 },
        memory_mib,
        memory_hotplug_mib: 0,
        control: "control".into(),
        console: Console {
            ring_bytes: CONSOLE_BYTES,
            dump: None,
        },
        vsock: Some(Vsock {
            guest_cid: 3,
            socket: "vsock".into(),
        }),
        devices: Vec::new(),
    }
}

impl Machine {
    /// One that boots; its configuration is written.
    pub(crate) fn configure(payload: &Payload, command_line: &str) -> Result<Self> {
        Self::of(&MachineConfig {
            kernel: Some(FileSource::Path(payload.kernel.clone())),
            initramfs: Some(FileSource::Path(payload.initramfs.clone())),
            command_line: command_line.to_owned(),
            ..config(payload.memory_mib)
        })
    }

    /// One of that configuration.
    pub(crate) fn of(config: &MachineConfig) -> Result<Self> {
        // Short, because unix sockets lie in it.
        let directory = tempfile::Builder::new().prefix("cpb").tempdir_in("/run")?;
        fs_err::write(directory.path().join("config"), serde_json::to_vec(config)?)?;
        let ear = Ear::of_unix_socket(&directory.path().join("vsock"))?;
        Ok(Self { directory, ear })
    }

    pub(crate) fn start(&self, vmm: &Path) -> Result<Running> {
        let mut command = Command::new(vmm);
        command
            .args(["--config", "config"])
            .current_dir(self.directory.path());
        spawn(&mut command, &self.log())
    }

    pub(crate) fn ready(&self, running: &mut Running) -> Result<Heard> {
        self.ear.hear(running).with_context(|| self.said())
    }

    /// What its VMM has to say, for a message.
    pub(crate) fn said(&self) -> String {
        format!("clearpod-vmm: {}", quote(&self.log()))
    }

    pub(crate) fn ask(&self, request: &Request) -> Result<Response> {
        let mut stream = UnixStream::connect(self.directory.path().join("control"))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        serde_json::from_str(&answer).with_context(|| format!("the VMM answered {answer:?}"))
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }
}

/// One boot under `clearpod-vmm`; the exits that it took by kind, as KVM counts them and those that reached the VMM.
pub(crate) fn clearpod_vmm(
    vmm: &Path,
    payload: &Payload,
    command_line: &str,
    figures: &mut Figures,
) -> Result<BTreeMap<String, u64>> {
    let machine = Machine::configure(payload, command_line)?;
    memory::forget_earlier_guests()?;
    let began = monotonic_ns();
    let mut running = machine.start(vmm)?;
    let heard = machine.ready(&mut running)?;
    let mut exits = running.exits()?;
    let Response::Stats(stats) = machine.ask(&Request::Stats {})? else {
        bail!("the VMM tells no counters");
    };
    let Response::Description(description) = machine.ask(&Request::Describe {})? else {
        bail!("the VMM does not describe itself");
    };
    drop(running);
    let timeline = description.timeline;
    let entered = timeline
        .kernel_entered_ns
        .context("the VMM does not say when the kernel was entered")?;
    add(figures, "process start to kernel entry", began, entered);
    add(figures, "kernel entry to agent ready", entered, heard.at_ns);
    add_heard(figures, began, &heard);
    let to_vmm = stats.exits.into_iter();
    exits.extend(to_vmm.map(|(kind, count)| (format!("vmm: {kind}"), count)));
    Ok(exits)
}

/// QEMU's side: what is started for each boot.
#[derive(Debug)]
pub(crate) struct Qemu {
    ear: Ear,
    arguments: Vec<String>,
    log: tempfile::NamedTempFile,
}

/// The program.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

impl Qemu {
    /// The leanest microvm that this guest boots in: no firmware tables, no legacy timers and interrupt controllers, no
    /// device but a console and the vsock that the ready signal comes through (the host kernel's: its bytes cost QEMU
    /// nothing).
    pub(crate) fn prepare(payload: &Payload) -> Result<Self> {
        let loaded = Command::new("modprobe").arg("vhost_vsock").status();
        ensure!(
            Path::new("/dev/vhost-vsock").exists(),
            "QEMU's guest needs vhost_vsock, and modprobe vhost_vsock ended with {loaded:?}"
        );
        let cid = 3000 + std::process::id() % 1_000_000;
        let words: Vec<_> = WORDS.split(' ').filter_map(for_microvm).collect();
        let arguments = format!(
            "-no-user-config -nodefaults -display none -no-reboot \
             -machine microvm,acpi=off,x-option-roms=off,pit=off,pic=off,rtc=off \
             -accel kvm -cpu host -smp 1 -m {} -serial null -device vhost-vsock-device,guest-cid={cid}",
            payload.memory_mib
        );
        let mut arguments: Vec<_> = arguments.split_whitespace().map(str::to_owned).collect();
        for (option, value) in [
            ("-kernel", payload.kernel.display().to_string()),
            ("-initrd", payload.initramfs.display().to_string()),
            ("-append", words.join(" ")),
        ] {
            arguments.extend([option.to_owned(), value]);
        }
        Ok(Self {
            ear: Ear::of_host().context("listen on the host's vsock")?,
            arguments,
            log: tempfile::NamedTempFile::new()?,
        })
    }

    /// One boot.
    pub(crate) fn boot(&self, figures: &mut Figures) -> Result<()> {
        let mut command = Command::new(QEMU);
        command.args(&self.arguments);
        memory::forget_earlier_guests()?;
        let began = monotonic_ns();
        let mut running = spawn(&mut command, self.log.path())?;
        let heard = self
            .ear
            .hear(&mut running)
            .with_context(|| format!("{QEMU}: {}", quote(self.log.path())))?;
        drop(running);
        add_heard(figures, began, &heard);
        Ok(())
    }

    /// What was run, for whoever repeats it.
    pub(crate) fn command(&self) -> String {
        format!("{QEMU} {}", self.arguments.join(" "))
    }
}

/// A word of the command line under our VMM as it is right for QEMU's machine; `None`: left out.
fn for_microvm(word: &str) -> Option<&str> {
    match word {
        // There is no PCI bus; looking for one would cost exits.
        word if word.starts_with("pci=") => Some("pci=off"),
        // Its virtio devices interrupt through the IOAPIC.
        "noapic" => None,
        word => Some(word),
    }
}

/// The series that both have.
fn add_heard(figures: &mut Figures, began: u64, heard: &Heard) {
    add(figures, "guest clock at init", 0, heard.main_entered_ns);
    add(figures, "guest clock at agent ready", 0, heard.ready_ns);
    add(figures, TOTAL, began, heard.at_ns);
}

/// Process start to agent ready.
pub(crate) const TOTAL: &str = "process start to agent ready";

pub(crate) fn add(figures: &mut Figures, name: &str, from_ns: u64, to_ns: u64) {
    figures.add(name, milliseconds(to_ns.saturating_sub(from_ns)));
}

fn milliseconds(ns: u64) -> f64 {
    // Rounded to a microsecond: below that there is nothing to tell.
    (ns / 1000) as f64 / 1000.0
}

fn spawn(command: &mut Command, log: &Path) -> Result<Running> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(log)?)
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    Ok(Running(child))
}

fn quote(log: &Path) -> String {
    fs_err::read_to_string(log).unwrap_or_default().trim().to_owned()
}
