//! One pod of one runtime from RunPodSandbox to RemovePodSandbox, as kubelet would have it, and many at once.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::{Cri, Figures, PodSpec};
use serde_json::Value;
use tokio::task::{JoinSet, block_in_place};

use crate::alone::memory::forget_earlier_guests;

/// A runtime as a client sees it.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) cri: Cri,
    /// The runtime handler that its pods ask for.
    pub(crate) handler: &'static str,
    pub(crate) image: String,
    pub(crate) logs: PathBuf,
}

/// Names of the series.
pub(crate) const SANDBOX: &str = "RunPodSandbox";
pub(crate) const FIRST_LINE: &str = "RunPodSandbox to the first line in the log";
pub(crate) const EXEC: &str = "ExecSync true";
pub(crate) const REMOVE: &str = "StopPodSandbox + RemovePodSandbox";
pub(crate) const MEMORY: &str = "PSS of an idle pod's processes";
pub(crate) const MEMORY_OF_MANY: &str = "PSS of an idle pod, one of those asked for at once";

/// Calls of ExecSync in each pod.
const EXECS: usize = 5;
/// Between two looks at a log: a hundredth of what is measured.
const LOOK: Duration = Duration::from_millis(2);
/// A pod has nothing to do any more after so long.
const IDLE: Duration = Duration::from_secs(2);
/// Until a line is in the log.
const LINE: Duration = Duration::from_secs(60);

impl Peer {
    /// A pod of that name among this peer's.
    pub(crate) fn pod(&self, name: &str) -> PodSpec {
        PodSpec::new(&format!("{}-{name}", self.name), &self.logs)
    }

    /// Milliseconds go to `times` and, as the runtime itself tells them, to `phases`, KiB to `memory`.
    pub(crate) async fn measure(
        &self,
        name: &str,
        times: &mut Figures,
        memory: &mut Figures,
        phases: &mut Figures,
    ) -> Result<()> {
        let pod = self.pod(name);
        fs_err::create_dir_all(&pod.config.log_directory)?;
        block_in_place(forget_earlier_guests)?;
        let before = processes()?;
        let began = Instant::now();
        let sandbox = self.cri.run_pod_with(&pod, self.handler).await?;
        times.add(SANDBOX, milliseconds(began));
        let config = PodSpec::shell("main", &self.image, "echo here; exec sleep 100000");
        let container = self.cri.create(&sandbox, &pod, config).await?;
        self.cri.start(&container).await?;
        first_line(&pod).await?;
        times.add(FIRST_LINE, milliseconds(began));
        for _ in 0..EXECS {
            let began = Instant::now();
            let (code, _, said) = self.cri.exec_program(&container, &["true"]).await?;
            times.add(EXEC, milliseconds(began));
            ensure!(code == 0, "true ended with {code}: {said}");
        }
        tokio::time::sleep(IDLE).await;
        memory.add(MEMORY, pss_of_new(&before)? as f64);
        self.add_phases(&sandbox, phases).await?;
        let began = Instant::now();
        self.cri.remove_pod(&sandbox).await?;
        times.add(REMOVE, milliseconds(began));
        Ok(())
    }

    /// Of a runtime that tells phases.
    async fn add_phases(&self, sandbox: &str, figures: &mut Figures) -> Result<()> {
        let status = self.cri.pod(sandbox).await?;
        let info = status.info.get("info").map_or("null", String::as_str);
        let info: Value = serde_json::from_str(info)?;
        for phase in info["phases"].as_array().into_iter().flatten() {
            if let (Some(name), Some(us)) = (phase["name"].as_str(), phase["duration_us"].as_f64()) {
                figures.add(name, us / 1000.0);
            }
        }
        Ok(())
    }

    /// `count` pods are asked for at once; pods per second until the last is ready. What one of them has in memory then, idle and
    /// without containers, goes to `memory`. Each is removed.
    pub(crate) async fn at_once(&self, count: usize, memory: &mut Figures) -> Result<f64> {
        let before = processes()?;
        let began = Instant::now();
        let mut asked = JoinSet::new();
        for number in 0..count {
            let (peer, pod) = (self.clone(), self.pod(&format!("at-once-{number}")));
            asked.spawn(async move { peer.cri.run_pod_with(&pod, peer.handler).await });
        }
        let mut sandboxes = Vec::new();
        let mut failed = Vec::new();
        while let Some(answer) = asked.join_next().await {
            match answer? {
                Ok(sandbox) => sandboxes.push(sandbox),
                Err(status) => failed.push(status.to_string()),
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        if failed.is_empty() {
            tokio::time::sleep(IDLE).await;
            memory.add(MEMORY_OF_MANY, pss_of_new(&before)? as f64 / count as f64);
        }
        let mut removed = JoinSet::new();
        for sandbox in sandboxes {
            let cri = self.cri.clone();
            removed.spawn(async move { cri.remove_pod(&sandbox).await });
        }
        while let Some(answer) = removed.join_next().await {
            answer??;
        }
        ensure!(failed.is_empty(), "{} of {count} pods: {failed:?}", failed.len());
        Ok(count as f64 / seconds)
    }
}

async fn first_line(pod: &PodSpec) -> Result<()> {
    let log = PathBuf::from(&pod.config.log_directory).join("main.log");
    let deadline = Instant::now() + LINE;
    while fs_err::metadata(&log).map_or(0, |file| file.len()) == 0 {
        ensure!(Instant::now() < deadline, "nothing in {}", log.display());
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_micros() as f64 / 1000.0
}

/// Every process that there is.
pub(crate) fn processes() -> Result<BTreeSet<u32>> {
    let entries = fs_err::read_dir("/proc")?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(pids.collect())
}

/// KiB of all processes that were not there before: a pod's, when nothing else is started. Kernel threads have no memory of
/// their own.
fn pss_of_new(before: &BTreeSet<u32>) -> Result<u64> {
    let mut sum = 0;
    for pid in processes()?.difference(before) {
        let rollup = fs_err::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        sum += e2e::process::field_kib(&rollup, "Pss").unwrap_or(0);
    }
    ensure!(sum > 0, "no process belongs to the pod");
    Ok(sum)
}

/// How the medians of two peers compare; `None` when one has no samples.
pub(crate) fn ratio(ours: &Figures, theirs: &Figures, series: &str) -> Option<f64> {
    Some(ours.median(series)? / theirs.median(series)?)
}

/// The median of a series that has to be there.
pub(crate) fn median(figures: &Figures, series: &str) -> Result<f64> {
    figures.median(series).with_context(|| format!("no {series}"))
}
