//! One fake Machine: a VMM's sockets in the Machine's directory, a guest behind them, and an end.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    time::Duration,
};

use prost::Message as _;
use proto::{
    agent::v1,
    host::port_socket,
    machine::{
        Description, Device, DevicePlace, ExitReason, FileSource, MachineConfig, MemoryStats, PageRun,
        Request, Response, Stats, Timeline,
    },
    port_forward::PORT_FORWARD_PORT,
    stdio::{AGENT_PORT, READY_PORT, STDIO_PORT},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
};

use super::{FaultPoint, Injected, Shared, agent::FakeAgent, forward, lock, relay::relay, stdio};
use crate::{
    guest::ready::PROTOCOL_VERSION,
    machine::{LaunchSpec, Layout, MachineExit, Process, ProcessControl, ShimSpec},
    sys::unix_socket,
};

/// The first slot of the PCI bus that devices get.
const FIRST_SLOT: usize = 3;
/// What every fake guest has written.
pub const COPIED: PageRun = PageRun {
    first: 4096,
    count: 3,
};

/// A Machine of a [`FakeHost`](super::FakeHost).
#[derive(Debug)]
pub struct FakeMachine {
    host: Arc<Shared>,
    layout: Layout,
    /// `None`: it stands for a host pod's shim.
    config: Option<MachineConfig>,
    pid: u32,
    exit: watch::Sender<Option<MachineExit>>,
    agent: Arc<FakeAgent>,
    stalled: watch::Sender<bool>,
    paused: AtomicBool,
    /// Its guest accepts nothing.
    mute: AtomicBool,
    oom_score_adj: AtomicI32,
    bus: Mutex<Bus>,
    console: Mutex<String>,
    timeline: Mutex<Timeline>,
    to_agent: OnceLock<mpsc::Sender<io::Result<DuplexStream>>>,
    tasks: Mutex<JoinSet<()>>,
    connections: Mutex<Vec<AbortHandle>>,
    this: Weak<Self>,
}

#[derive(Debug, Default)]
struct Bus {
    devices: Vec<DevicePlace>,
    slots_used: usize,
    memory: Option<MemoryStats>,
}

#[derive(Debug)]
struct Control(Weak<FakeMachine>);

impl ProcessControl for Control {
    fn kill(&self) -> io::Result<()> {
        if let Some(machine) = self.0.upgrade() {
            machine.kill(MachineExit::Signalled(libc::SIGKILL));
        }
        Ok(())
    }

    fn set_oom_score_adj(&self, score: i32) -> io::Result<()> {
        if let Some(machine) = self.0.upgrade() {
            machine.oom_score_adj.store(score, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl FakeMachine {
    pub(super) fn start(host: Arc<Shared>, spec: &LaunchSpec, pid: u32) -> io::Result<Arc<Self>> {
        check_descriptors(&spec.config, spec.inherited.len())?;
        let control = unix_socket::listen(&spec.layout.control())?;
        let vsock = unix_socket::listen(&spec.layout.vsock())?;
        let machine = Self::new(host, &spec.layout, Some(spec.config.clone()), pid);
        for device in &spec.config.devices {
            machine.plug(device).map_err(io::Error::other)?;
        }
        machine.spawn(Arc::clone(&machine).accept_control(control));
        machine.spawn(Arc::clone(&machine).accept_vsock(vsock));
        machine.live();
        Ok(machine)
    }

    /// The shim of a host pod: the same agent behind a socket per port, no VMM.
    pub(super) fn start_shim(host: Arc<Shared>, spec: &ShimSpec, pid: u32) -> io::Result<Arc<Self>> {
        let machine = Self::new(host, &spec.layout, None, pid);
        // The real one finds its configuration there, and so does whoever looks after what it left.
        std::fs::write(spec.layout.shim_config(), serde_json::to_vec(&spec.config)?)?;
        for port in [AGENT_PORT, STDIO_PORT, PORT_FORWARD_PORT] {
            let socket = spec.layout.directory().join(port_socket(port));
            let listener = unix_socket::listen(&socket)?;
            machine.spawn(Arc::clone(&machine).accept_port(listener, port));
        }
        machine.live();
        Ok(machine)
    }

    fn new(host: Arc<Shared>, layout: &Layout, config: Option<MachineConfig>, pid: u32) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            agent: Arc::new(FakeAgent::new(Arc::clone(&host))),
            host,
            layout: layout.clone(),
            config,
            pid,
            exit: watch::Sender::new(None),
            stalled: watch::Sender::new(false),
            paused: AtomicBool::new(false),
            mute: AtomicBool::new(false),
            oom_score_adj: AtomicI32::new(0),
            bus: Mutex::default(),
            console: Mutex::new("fake kernel\n".to_owned()),
            timeline: Mutex::default(),
            to_agent: OnceLock::new(),
            tasks: Mutex::default(),
            connections: Mutex::default(),
            this: this.clone(),
        })
    }

    /// What listens was spawned: the agent begins, and gets ready.
    fn live(self: &Arc<Self>) {
        let (connections, incoming) = mpsc::channel(16);
        // Set once, here.
        drop(self.to_agent.set(connections));
        let service = Arc::clone(&self.agent).serve(incoming);
        self.spawn(service);
        self.spawn(Arc::clone(self).boot());
        self.spawn(Arc::clone(self).power_off_when_asked());
    }

    /// The sandbox's id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.layout.id()
    }

    /// The fake guest's agent: what the daemon told it.
    #[must_use]
    pub fn agent(&self) -> &FakeAgent {
        &self.agent
    }

    /// Ids of the devices on the bus, in the order in which they came.
    #[must_use]
    pub fn devices(&self) -> Vec<String> {
        lock(&self.bus)
            .devices
            .iter()
            .map(|device| device.id.clone())
            .collect()
    }

    /// Their PCI addresses.
    #[must_use]
    pub fn places(&self) -> Vec<String> {
        lock(&self.bus)
            .devices
            .iter()
            .map(|device| device.pci_address.clone())
            .collect()
    }

    /// What it was started with; `None` for a shim.
    #[must_use]
    pub fn config(&self) -> Option<&MachineConfig> {
        self.config.as_ref()
    }

    /// What the memory device has plugged; `None` without one.
    #[must_use]
    pub fn plugged_mib(&self) -> Option<u64> {
        lock(&self.bus).memory.map(|memory| memory.plugged_mib)
    }

    /// What the host's out-of-memory killer would go by; 0 until it is set.
    #[must_use]
    pub fn oom_score_adj(&self) -> i32 {
        self.oom_score_adj.load(Ordering::Relaxed)
    }

    /// A handle as the daemon gets it.
    #[must_use]
    pub fn process(&self) -> Process {
        Process::new(
            self.pid,
            self.exit.subscribe(),
            Arc::new(Control(self.this.clone())),
        )
    }

    /// Adds text to the console.
    pub fn print(&self, text: &str) {
        lock(&self.console).push_str(text);
    }

    /// Ends the VMM at once in this way: all connections break, the directory stays. The first end counts.
    pub fn kill(&self, exit: MachineExit) {
        let first = self.exit.send_if_modified(|now| {
            let first = now.is_none();
            if first {
                self.leave_console(exit);
                *now = Some(exit);
            }
            first
        });
        if first {
            self.agent.stop();
            lock(&self.tasks).abort_all();
        }
    }

    /// What a VMM leaves that had the time to. It is complete before anybody can see the end, as with a process.
    fn leave_console(&self, exit: MachineExit) {
        if matches!(exit, MachineExit::Exited(_)) {
            drop(std::fs::write(
                self.layout.console_log(),
                lock(&self.console).as_bytes(),
            ));
        }
    }

    /// The agent dies: it is PID 1, so the guest's kernel panics, and the VMM ends.
    pub fn kill_agent(&self) {
        self.print("Kernel panic - not syncing: Attempted to kill init!\n");
        self.kill(MachineExit::Exited(ExitReason::GuestPanic));
    }

    /// Stops or lets go every byte between daemon and guest; connections stay.
    pub fn stall(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }

    /// Breaks every connection between daemon and guest; new ones can be made.
    pub fn drop_connections(&self) {
        for connection in lock(&self.connections).drain(..) {
            connection.abort();
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        let handle = tasks.spawn(task);
        // The end may have come from another thread meanwhile, or before.
        if self.exit.borrow().is_some() {
            tasks.abort_all();
        }
        handle
    }

    async fn boot(self: Arc<Self>) {
        lock(&self.timeline).process_started_ns = monotonic_ns();
        if let Some(snapshot) = self.config.as_ref().and_then(|config| config.snapshot.as_ref()) {
            return self.go_on(&snapshot.origin);
        }
        if let Err(Injected) = self.host.pass(FaultPoint::Boot).await {
            return self.kill_agent();
        }
        if self.host.fault(FaultPoint::Kvm).is_some() {
            return self.kill(MachineExit::Exited(ExitReason::GuestUnrunnable));
        }
        lock(&self.timeline).kernel_entered_ns = Some(monotonic_ns());
        let ready = v1::Ready {
            protocol_version: PROTOCOL_VERSION,
            agent_version: "fake".to_owned(),
            main_entered_ns: 1_000_000,
            ready_ns: 2_000_000,
        };
        // As in a real guest, a connection that nobody accepts is reset and the agent goes on.
        if let Ok(mut stream) = unix_socket::connect(&self.layout.vsock_port(READY_PORT)).await {
            drop(stream.write_all(&ready.encode_length_delimited_to_vec()).await);
        }
        lock(&self.timeline).first_vsock_ns = Some(monotonic_ns());
    }

    /// A guest that goes on has sent its signal long ago.
    fn go_on(&self, origin: &str) {
        let fault = self.host.fault(FaultPoint::Restore);
        if fault == Some(super::Fault::Fail) || !lock(&self.host.origins).contains(origin) {
            return self.kill(MachineExit::Exited(ExitReason::SnapshotRefused));
        }
        if fault == Some(super::Fault::Stall) {
            self.mute.store(true, Ordering::Relaxed);
            return;
        }
        lock(&self.timeline).kernel_entered_ns = Some(monotonic_ns());
    }

    async fn power_off_when_asked(self: Arc<Self>) {
        self.agent.shutdown_asked().await;
        // The agent answers first.
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.kill(MachineExit::Exited(ExitReason::Ended));
    }

    async fn accept_vsock(self: Arc<Self>, listener: UnixListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let machine = Arc::clone(&self);
            let connection = self.spawn(async move {
                // The daemon went away.
                drop(machine.serve_vsock(stream).await);
            });
            lock(&self.connections).push(connection);
        }
    }

    async fn serve_vsock(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.push(stream.read_u8().await?);
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        let port = line
            .strip_prefix("CONNECT ")
            .and_then(|port| port.trim_end().parse::<u32>().ok());
        match port {
            Some(port @ AGENT_PORT) => self.serve_port(stream, port, b"OK 1073741824\n").await,
            Some(port @ STDIO_PORT) => self.serve_port(stream, port, b"OK 1073741825\n").await,
            Some(port @ PORT_FORWARD_PORT) => self.serve_port(stream, port, b"OK 1073741826\n").await,
            // Nobody listens there.
            _ => Ok(()),
        }
    }

    /// The socket that stands for `port` in a host pod.
    async fn accept_port(self: Arc<Self>, listener: UnixListener, port: u32) {
        while let Ok((stream, _)) = listener.accept().await {
            let machine = Arc::clone(&self);
            let connection = self.spawn(async move {
                // The daemon went away.
                drop(machine.serve_port(stream, port, b"").await);
            });
            lock(&self.connections).push(connection);
        }
    }

    async fn serve_port(&self, mut stream: UnixStream, port: u32, greeting: &[u8]) -> io::Result<()> {
        if self.mute.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if self.host.pass(FaultPoint::Dial).await.is_err() {
            return Ok(());
        }
        stream.write_all(greeting).await?;
        let (near, far) = tokio::io::duplex(64 * 1024);
        let relay = relay(stream, far, self.stalled.subscribe());
        // What serves a port ends with its connection.
        match port {
            AGENT_PORT => {
                if let Some(to_agent) = self.to_agent.get() {
                    to_agent.send(Ok(near)).await.map_err(io::Error::other)?;
                }
                relay.await;
            }
            PORT_FORWARD_PORT => drop(tokio::join!(relay, forward::serve(near))),
            _ => drop(tokio::join!(relay, stdio::serve(&self.agent, near))),
        }
        Ok(())
    }

    async fn accept_control(self: Arc<Self>, listener: UnixListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let machine = Arc::clone(&self);
            self.spawn(async move {
                // The daemon went away.
                drop(machine.serve_control(stream).await);
            });
        }
    }

    async fn serve_control(&self, stream: UnixStream) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        while stream.read_line(&mut line).await? > 0 {
            let passed = self.host.pass(FaultPoint::Control).await;
            let request = serde_json::from_str(&line);
            let stop = matches!(request, Ok(Request::Stop {}));
            let response = match (passed, request) {
                (Err(Injected), _) => refusal("a test wanted this"),
                (Ok(()), Ok(request)) => self.control(request),
                (Ok(()), Err(error)) => refusal(&error.to_string()),
            };
            let mut answer = serde_json::to_vec(&response)?;
            answer.push(b'\n');
            stream.write_all(&answer).await?;
            if stop {
                self.kill(MachineExit::Exited(ExitReason::Ended));
            }
            line.clear();
        }
        Ok(())
    }

    fn control(&self, request: Request) -> Response {
        match request {
            Request::Describe {} => Response::Description(Description {
                id: self.id().to_owned(),
                pid: self.pid,
                timeline: *lock(&self.timeline),
                devices: lock(&self.bus).devices.clone(),
            }),
            Request::AddDevice { device } => match self.plug(&device) {
                Ok(pci_address) => Response::Added { pci_address },
                Err(message) => refusal(&message),
            },
            Request::RemoveDevice { id } => {
                let mut bus = lock(&self.bus);
                let before = bus.devices.len();
                bus.devices.retain(|device| device.id != id);
                if bus.devices.len() < before {
                    Response::Done {}
                } else {
                    refusal(&format!("no device {id:?}"))
                }
            }
            Request::Console {} => Response::Console {
                text: lock(&self.console).clone(),
                dropped: 0,
            },
            Request::ResizeMemory { plugged_mib } => self.resize_memory(plugged_mib),
            Request::ResizeBalloon { .. } => refusal("the fake guest has no balloon driver"),
            Request::Stats {} => Response::Stats(Stats {
                exits: BTreeMap::from([("hlt".to_owned(), 1)]),
                memory: lock(&self.bus).memory,
                balloon: None,
            }),
            Request::CopiedPages {} => Response::CopiedPages { runs: vec![COPIED] },
            Request::Pause {} => {
                self.paused.store(true, Ordering::Relaxed);
                Response::Done {}
            }
            Request::Resume {} => {
                self.paused.store(false, Ordering::Relaxed);
                Response::Done {}
            }
            Request::Snapshot { origin, .. } => self.snapshot(origin),
            Request::Stop {} => Response::Done {},
        }
    }

    /// The fake guest plugs and unplugs at once.
    fn resize_memory(&self, plugged_mib: u64) -> Response {
        match &mut lock(&self.bus).memory {
            Some(memory) if plugged_mib <= memory.max_mib && plugged_mib.is_multiple_of(2) => {
                memory.requested_mib = plugged_mib;
                memory.plugged_mib = plugged_mib;
                Response::Done {}
            }
            Some(memory) => refusal(&format!("plugged_mib: {plugged_mib} of {}", memory.max_mib)),
            None => refusal("the Machine has no memory device"),
        }
    }

    /// What a fake guest is made of is its origin alone, and its files stay empty.
    fn snapshot(&self, origin: String) -> Response {
        let held = lock(&self.bus).devices.len();
        if self.host.fault(FaultPoint::Snapshot).is_some() {
            return refusal("memory: cannot write it: No space left on device (os error 28)");
        }
        if !self.paused.load(Ordering::Relaxed) {
            return refusal("the Machine runs: pause it first");
        }
        if held > 1 {
            return refusal("a device cannot be in a snapshot: it holds something of the host");
        }
        lock(&self.host.origins).insert(origin);
        Response::Done {}
    }

    fn plug(&self, device: &Device) -> Result<String, String> {
        let mut bus = lock(&self.bus);
        if bus.devices.iter().any(|other| other.id == device.id()) {
            return Err(format!("there is a device {:?} already", device.id()));
        }
        if matches!(device, Device::Memory { .. }) {
            bus.memory = Some(MemoryStats {
                max_mib: self.config.as_ref().map_or(0, |config| config.memory_hotplug_mib),
                ..MemoryStats::default()
            });
        }
        let slot = FIRST_SLOT + bus.slots_used;
        bus.slots_used += 1;
        let pci_address = format!("0000:00:{:02x}.{}", slot / 8, slot % 8);
        bus.devices.push(DevicePlace {
            id: device.id().to_owned(),
            pci_address: pci_address.clone(),
        });
        Ok(pci_address)
    }
}

fn refusal(message: &str) -> Response {
    Response::Error {
        message: message.to_owned(),
    }
}

/// As the real launcher: an index without a descriptor starts nothing.
fn check_descriptors(config: &MachineConfig, given: usize) -> io::Result<()> {
    let sources = config.devices.iter().filter_map(Device::source);
    for source in sources.chain(config.files().map(|(_, source)| source)) {
        if let FileSource::Fd(index) = source
            && usize::try_from(*index).is_ok_and(|index| index >= given)
        {
            return Err(io::Error::other(format!("descriptor {index} of {given}")));
        }
    }
    Ok(())
}

fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let elapsed = Duration::try_from(now).unwrap_or_default();
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}
