//! What a cold boot is made of: its phases, the exits that it takes by kind, the kernel's initcalls, and what each thing that was
//! done about it is worth, found by undoing it; and what a fork takes instead. One JSON object on standard output, a table on
//! standard error. `e2e/bench` builds it and runs it where Machines run.
//!
//! On an emulated node times are no times of hardware: ratios and counts are what they are for.

#[path = "../alone/mod.rs"]
mod alone;
mod fork;
mod initcalls;
#[path = "../alone/probe.rs"]
mod probe;
mod step;

use std::{
    env,
    io::{Write, stderr, stdout},
    path::PathBuf,
};

use anyhow::{Context, Result};
use e2e::{
    Figures,
    conditions::{self, count, say},
};
use serde_json::{Map, Value, json};

use self::{
    alone::{Payload, Qemu, TOTAL},
    fork::{ANSWERED, Forks},
    step::{AS_IT_IS, Step},
};

/// Of the guest that is booted.
const MEMORY_MIB: u64 = 512;
/// Longest initcalls that are told.
const INITCALLS: usize = 25;

/// All that begins, in turn.
struct Contest {
    vmm: PathBuf,
    payload: Payload,
    steps: Vec<Step>,
    qemu: Qemu,
    of_qemu: Figures,
    forks: Forks,
}

impl Contest {
    fn round(&mut self, round: usize) -> Result<()> {
        for turn in 0..self.steps.len() {
            let number = (round + turn) % self.steps.len();
            if let Some(step) = self.steps.get_mut(number) {
                step.boot(&self.vmm, &self.payload).context(step.name)?;
            }
        }
        self.qemu.boot(&mut self.of_qemu)?;
        self.forks.go_on(&self.vmm)
    }

    fn forget(&mut self) {
        self.of_qemu = Figures::default();
        self.forks.forget();
        self.steps.iter_mut().for_each(Step::forget);
    }

    fn ratios(&self) -> Result<Value> {
        let ours = total(self.steps.first().map(|step| &step.times))?;
        let forked = self.forks.times.median(ANSWERED).context("no forks")?;
        Ok(json!({
            "boot_vs_qemu_microvm": rounded(ours / total(Some(&self.of_qemu))?),
            "fork_vs_boot": rounded(forked / ours),
        }))
    }
}

fn main() -> Result<()> {
    let load = conditions::load()?;
    let rounds = count("CLEARPOD_BENCH_PODS", 10)?;
    let bundle = PathBuf::from(env::var_os("CLEARPOD_BUNDLE").context("CLEARPOD_BUNDLE is not set")?);
    let payload = Payload {
        kernel: bundle.join("share/vmlinux"),
        initramfs: bundle.join("share/initramfs.cpio"),
        memory_mib: MEMORY_MIB,
    };
    let scratch = tempfile::tempdir_in("/run")?;
    let vmm = bundle.join("bin/clearpod-vmm");
    let mut contest = Contest {
        steps: step::all(&payload.kernel, scratch.path())?,
        qemu: Qemu::prepare(&payload)?,
        of_qemu: Figures::default(),
        forks: Forks::prepare(&vmm, &payload)?,
        vmm,
        payload,
    };
    for round in 0..=rounds {
        if round == 1 {
            contest.forget();
        }
        contest.round(round)?;
        say(&format!("round {round} of {rounds}"))?;
    }
    let initcalls = initcalls::longest(&bundle, &contest.payload, INITCALLS)?;
    let Contest { of_qemu, forks, .. } = &contest;
    of_qemu.write("QEMU microvm", &mut stderr().lock())?;
    forks.times.write("fork", &mut stderr().lock())?;
    let told = report(&contest.steps, &initcalls)?;
    let report = json!({
        "load_before": load,
        "host_load_before": env::var("CLEARPOD_HOST_LOAD").ok(),
        "commit": env::var("CLEARPOD_COMMIT").ok(),
        "unit": "ms",
        "memory_mib": MEMORY_MIB,
        "ratios": contest.ratios()?,
        "steps": told,
        "qemu_microvm": {"command": contest.qemu.command(), "times": of_qemu.json()},
        "fork": {"times": forks.times.json(), "exits": forks.exits},
        "initcalls_us": initcalls.iter().map(|(name, us)| json!([name, us])).collect::<Value>(),
    });
    writeln!(stdout(), "{report:#}")?;
    Ok(())
}

fn total(figures: Option<&Figures>) -> Result<f64> {
    figures
        .and_then(|figures| figures.median(TOTAL))
        .context("no boots")
}

/// Its tables go to standard error.
fn report(steps: &[Step], initcalls: &[(String, u64)]) -> Result<Map<String, Value>> {
    let mut out = stderr().lock();
    let as_it_is = total(steps.first().map(|step| &step.times))?;
    let mut told = Map::new();
    for step in steps {
        let ratio = rounded(total(Some(&step.times))? / as_it_is);
        step.times.write(step.name, &mut out)?;
        writeln!(out, "  {ratio} of {AS_IT_IS:?}; exits: {}", json!(step.exits))?;
        let value = json!({"times": step.times.json(), "vs_as_it_is": ratio, "exits": step.exits});
        told.insert(step.name.to_owned(), value);
    }
    for (name, us) in initcalls {
        writeln!(out, "  {us:>8} us  {name}")?;
    }
    Ok(told)
}

fn rounded(ratio: f64) -> f64 {
    (ratio * 1000.0).round() / 1000.0
}
