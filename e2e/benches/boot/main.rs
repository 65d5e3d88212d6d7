//! What a cold boot is made of: its phases, the exits that it takes by kind, the kernel's initcalls, and what each thing that was
//! done about it is worth, found by undoing it. One JSON object on standard output, a table on standard error. `e2e/bench`
//! builds it and runs it where Machines run.
//!
//! On an emulated node times are no times of hardware: ratios and counts are what they are for.

#[path = "../alone/mod.rs"]
mod alone;
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
    step::{AS_IT_IS, Step},
};

/// Of the guest that is booted.
const MEMORY_MIB: u64 = 512;
/// Longest initcalls that are told.
const INITCALLS: usize = 25;

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
    let mut steps = step::all(&payload.kernel, scratch.path())?;
    let qemu = Qemu::prepare(&payload)?;
    let mut of_qemu = Figures::default();
    for round in 0..=rounds {
        if round == 1 {
            of_qemu = Figures::default();
            steps.iter_mut().for_each(Step::forget);
        }
        for turn in 0..steps.len() {
            let number = (round + turn) % steps.len();
            if let Some(step) = steps.get_mut(number) {
                step.boot(&vmm, &payload).context(step.name)?;
            }
        }
        qemu.boot(&mut of_qemu)?;
        say(&format!("round {round} of {rounds}"))?;
    }
    let initcalls = initcalls::longest(&bundle, &payload, INITCALLS)?;
    let theirs = json!({"command": qemu.command(), "times": of_qemu.json()});
    of_qemu.write("QEMU microvm", &mut stderr().lock())?;
    let ratio = total(steps.first().map(|step| &step.times))? / total(Some(&of_qemu))?;
    let told = report(&steps, &initcalls)?;
    let report = json!({
        "load_before": load,
        "host_load_before": env::var("CLEARPOD_HOST_LOAD").ok(),
        "commit": env::var("CLEARPOD_COMMIT").ok(),
        "unit": "ms",
        "memory_mib": MEMORY_MIB,
        "ratios": {"boot_vs_qemu_microvm": rounded(ratio)},
        "steps": told,
        "qemu_microvm": theirs,
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
