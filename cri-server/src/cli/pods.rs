//! `clearpod pods`: the sandboxes of the running daemon, with their Machines and the phases of their starts.

use std::{io::Write, process::ExitCode};

use proto::cri::v1 as cri;
use serde::Serialize;

use super::client::{self, Client};
use crate::{config::Config, sandbox::Phase};

/// One line of the list.
#[derive(Debug, Serialize)]
struct Pod {
    id: String,
    namespace: String,
    name: String,
    state: &'static str,
    ip: String,
    containers: usize,
    vmm_pid: Option<u32>,
    memory_mib: Option<u64>,
    vcpus: Option<u8>,
    /// "fork" or "boot"; a pod on the host has neither.
    start: Option<String>,
    phases: Vec<Phase>,
}

pub(super) async fn run(
    config: &Config,
    timing: bool,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let mut client = client::connect(config).await?;
    let list = client
        .list_pod_sandbox(cri::ListPodSandboxRequest { filter: None })
        .await;
    let mut pods = Vec::new();
    for item in list.map_err(client::told)?.into_inner().items {
        pods.extend(pod(&mut client, &item).await?);
    }
    if json {
        serde_json::to_writer_pretty(&mut *out, &pods)?;
        writeln!(out)?;
    } else {
        table(&pods, timing, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `None` when it was removed meanwhile.
async fn pod(client: &mut Client, item: &cri::PodSandbox) -> anyhow::Result<Option<Pod>> {
    let (answer, info) = match client::status(client, &item.id).await {
        Ok(answer) => answer,
        Err(status) if status.code() == tonic::Code::NotFound => return Ok(None),
        Err(status) => return Err(client::told(status)),
    };
    let metadata = item.metadata.clone().unwrap_or_default();
    let network = answer.status.as_ref().and_then(|status| status.network.as_ref());
    Ok(Some(Pod {
        id: item.id.clone(),
        namespace: metadata.namespace,
        name: metadata.name,
        state: match item.state() {
            cri::PodSandboxState::SandboxReady => "ready",
            cri::PodSandboxState::SandboxNotready => "not ready",
        },
        ip: network.map(|network| network.ip.clone()).unwrap_or_default(),
        containers: answer.containers_statuses.len(),
        vmm_pid: info.vmm_pid,
        memory_mib: info.memory_mib,
        vcpus: info.vcpus,
        start: info.start,
        phases: info.phases,
    }))
}

fn table(pods: &[Pod], timing: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(
        out,
        "{:<13}  {:<9}  {:<5}  {:<15}  {:>8}  {:>10}  POD",
        "SANDBOX", "STATE", "START", "IP", "VMM PID", "CONTAINERS"
    )?;
    for pod in pods {
        let pid = pod.vmm_pid.map(|pid| pid.to_string()).unwrap_or_default();
        writeln!(
            out,
            "{:<13}  {:<9}  {:<5}  {:<15}  {:>8}  {:>10}  {}/{}",
            pod.id.get(..13).unwrap_or(&pod.id),
            pod.state,
            pod.start.as_deref().unwrap_or_default(),
            pod.ip,
            pid,
            pod.containers,
            pod.namespace,
            pod.name
        )?;
        if timing {
            for phase in &pod.phases {
                writeln!(
                    out,
                    "    {:<12} {:>10} ms  from {:>10} ms",
                    phase.name,
                    milliseconds(phase.duration_us),
                    milliseconds(phase.start_us)
                )?;
            }
        }
    }
    Ok(())
}

/// "12.345"
fn milliseconds(us: u64) -> String {
    format!("{}.{:03}", us / 1000, us % 1000)
}
