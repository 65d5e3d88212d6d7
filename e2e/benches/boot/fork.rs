//! Guests that go on from a template instead of booting: the same Machine, from just before its VMM's process is started until its
//! agent has answered the call by which the daemon lets a guest go on.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::Path,
    thread::sleep,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Figures, wait};
use hyper_util::rt::TokioIo;
use proto::{
    agent::v1::{GoOnRequest, agent_client::AgentClient},
    machine::{FileSource, MachineConfig, Request, Response, Snapshot},
    stdio::AGENT_PORT,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    runtime::Runtime,
    time::timeout,
};
use tonic::{
    Status,
    transport::{Endpoint, Uri},
};

use crate::alone::{self, COMMAND_LINE, Machine, Payload, memory, monotonic_ns};

/// Process start to the agent's answer.
pub(crate) const ANSWERED: &str = "process start to agent's answer";
const ACCEPTED: &str = "process start to the guest's accept";
const ORIGIN: &str = "the bench of boots";
/// As the daemon's.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Longest line by which a VMM says that the guest accepted.
const MAX_OK: usize = 14;
/// A guest has nothing to do any more so long after it has answered.
const REST: Duration = Duration::from_secs(4);

/// A template, and what was measured of those that went on from it.
#[derive(Debug)]
pub(crate) struct Forks {
    /// Of those that go on from the template's files.
    config: MachineConfig,
    /// Where these are.
    _directory: TempDir,
    runtime: Runtime,
    pub(crate) times: Figures,
    /// Of the last one, as KVM counts them.
    pub(crate) exits: BTreeMap<String, u64>,
}

impl Forks {
    /// Boots a guest, asks it once what forks are asked, as the daemon does, and writes it down into memory.
    pub(crate) fn prepare(vmm: &Path, payload: &Payload) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("cpt").tempdir_in("/run")?;
        let file = |name| FileSource::Path(directory.path().join(name));
        let (memory, state, origin) = (file("memory"), file("state"), ORIGIN.to_owned());
        let mut config = alone::config(payload.memory_mib);
        config.snapshot = Some(Snapshot {
            memory: memory.clone(),
            state: state.clone(),
            origin: origin.clone(),
            written_soon: Vec::new(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let machine = Machine::configure(payload, COMMAND_LINE)?;
        let mut running = machine.start(vmm)?;
        machine.ready(&mut running)?;
        runtime.block_on(let_go_on(&machine))?;
        sleep(REST);
        let write = Request::Snapshot {
            memory,
            state,
            origin,
        };
        for request in [Request::Pause {}, write] {
            let answer = machine.ask(&request)?;
            ensure!(answer == Response::Done {}, "{request:?}: {answer:?}");
        }
        let mut forks = Self {
            config,
            _directory: directory,
            runtime,
            times: Figures::default(),
            exits: BTreeMap::new(),
        };
        forks.learn(vmm)?;
        Ok(forks)
    }

    /// Goes on once to see what the others will write, as the daemon has its first fork tell.
    fn learn(&mut self, vmm: &Path) -> Result<()> {
        let machine = Machine::of(&self.config)?;
        let _running = machine.start(vmm)?;
        self.runtime.block_on(let_go_on(&machine))?;
        let answer = machine.ask(&Request::CopiedPages {})?;
        let Response::CopiedPages { runs } = answer else {
            bail!("copied pages: {answer:?}");
        };
        let snapshot = self.config.snapshot.as_mut();
        snapshot.context("forks have a snapshot")?.written_soon = runs;
        Ok(())
    }

    pub(crate) fn forget(&mut self) {
        self.times = Figures::default();
    }

    /// One more.
    pub(crate) fn go_on(&mut self, vmm: &Path) -> Result<()> {
        let machine = Machine::of(&self.config)?;
        memory::forget_earlier_guests()?;
        let began = monotonic_ns();
        let running = machine.start(vmm)?;
        let went_on = self.runtime.block_on(let_go_on(&machine));
        let (accepted, answered) = went_on.with_context(|| machine.said())?;
        self.exits = running.exits()?;
        alone::add(&mut self.times, ACCEPTED, began, accepted);
        alone::add(&mut self.times, ANSWERED, began, answered);
        Ok(())
    }
}

/// When the guest accepted a connection, and when its agent had answered; `CLOCK_MONOTONIC`, ns.
async fn let_go_on(machine: &Machine) -> Result<(u64, u64)> {
    let went_on = timeout(wait::SERVER, async {
        let stream = dial(&machine.directory.path().join("vsock")).await?;
        let accepted = monotonic_ns();
        let mut once = Some(stream);
        let connector = tower::service_fn(move |_: Uri| {
            let stream = once
                .take()
                .ok_or_else(|| Status::unavailable("the connection broke"));
            async move { stream.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let mut agent = AgentClient::new(endpoint.connect_with_connector(connector).await?);
        let request = GoOnRequest {
            entropy: (0..64).collect(),
            realtime_ns: u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?,
            pci_addresses: Vec::new(),
        };
        agent.go_on(request).await?;
        anyhow::Ok((accepted, monotonic_ns()))
    });
    went_on.await.context("the guest does not answer")?
}

/// A connection to the agent's port, through the VMM's socket (`proto::machine::Vsock`).
async fn dial(vsock: &Path) -> Result<UnixStream> {
    let mut stream = loop {
        match UnixStream::connect(vsock).await {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            stream => break stream?,
        }
    };
    stream
        .write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes())
        .await?;
    let mut said = Vec::new();
    while said.last() != Some(&b'\n') {
        ensure!(said.len() < MAX_OK, "the VMM said {said:?}");
        said.push(stream.read_u8().await.context("the guest refuses")?);
    }
    ensure!(said.starts_with(b"OK "), "the VMM said {said:?}");
    Ok(stream)
}
