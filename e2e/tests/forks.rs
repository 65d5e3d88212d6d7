//! What happens to pods when templates, their files or the VMMs that go on from them come to harm, with real Machines.

use std::{
    fs::File,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use e2e::{Node, PodSpec, on_a_node, wait};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proto::cri::v1 as cri;
use serde_json::Value;

/// What somebody does to the files of the template in this directory.
type Damage = fn(&Path) -> Result<()>;

/// Found by the daemon before a pod goes on from it.
const UNDER_A_DAEMON: [(&str, Damage); 2] = [
    ("a bit of the memory flipped", |place| flip(&place.join("memory"))),
    ("the state cut", |place| cut(&place.join("state"))),
];
/// What the next daemon, or the VMM that is to go on from it, says of it. The VMM's own tests have 200 of these.
const WITHOUT_A_DAEMON: [(&str, Damage, &str); 3] = [
    ("state flipped", |place| flip(&place.join("state")), "checksum"),
    ("older state", |place| older(&place.join("state")), "format 0"),
    ("memory flipped", |place| flip(&place.join("memory")), NOT_WRITTEN),
];
/// With `CLEARPOD_THOROUGH`, too: each takes as long as the others.
const MORE_OF_THEM: [(&str, Damage, &str); 4] = [
    ("state cut", |place| cut(&place.join("state")), "bytes instead of"),
    (
        "foreign state",
        |place| foreign(&place.join("state")),
        "no snapshot",
    ),
    ("another's state", |place| exchange(place, "state"), "origin"),
    ("memory cut", |place| cut(&place.join("memory")), NOT_WRITTEN),
];
const NOT_WRITTEN: &str = "its memory is not what was written";

fn open(path: &Path) -> Result<File> {
    let file = fs_err::OpenOptions::new().read(true).write(true).open(path)?;
    Ok(file.into_parts().0)
}

fn cut(path: &Path) -> Result<()> {
    let file = open(path)?;
    Ok(file.set_len(file.metadata()?.len() / 2)?)
}

/// One bit of a page that is not zero.
fn flip(path: &Path) -> Result<()> {
    let file = open(path)?;
    let mut page = [0; 4096];
    for at in (0..file.metadata()?.len()).step_by(page.len()) {
        let count = file.read_at(&mut page, at)?;
        if let Some(full) = page
            .get(..count)
            .and_then(|page| page.iter().rposition(|byte| *byte != 0))
        {
            return Ok(file.write_all_at(&[page[full] ^ 1], at + full as u64)?);
        }
    }
    anyhow::bail!("{} is empty", path.display())
}

fn foreign(path: &Path) -> Result<()> {
    let file = open(path)?;
    file.set_len(0)?;
    Ok((&file).write_all(b"#!/bin/sh\n")?)
}

/// Its format is at offset 8.
fn older(path: &Path) -> Result<()> {
    Ok(open(path)?.write_all_at(&[0], 8)?)
}

/// Exchanges a file of the template with that of the other one that there is.
fn exchange(place: &Path, name: &str) -> Result<()> {
    let all = fs_err::read_dir(place.parent().context("its directory")?)?;
    let paths = all.filter_map(|entry| Some(entry.ok()?.path()));
    let other = paths
        .into_iter()
        .find(|path| path != place)
        .context("another template")?;
    let aside = place.join("aside");
    fs_err::rename(place.join(name), &aside)?;
    fs_err::rename(other.join(name), place.join(name))?;
    Ok(fs_err::rename(aside, other.join(name))?)
}

/// The directory of the template of pods without limits, and when it was made.
async fn template(node: &Node) -> Result<(PathBuf, Value)> {
    let templates = node.templates().await?;
    let unlimited = |template: &Value| template["memory_mib"] == 512;
    let template = templates.into_iter().find(unlimited).context("a template")?;
    ensure!(template["state"] == "ready", "{template}");
    let origin = template["origin"].as_str().context("origin")?;
    Ok((
        node.directory().join("templates").join(origin),
        template["files"]["made_at"].clone(),
    ))
}

async fn is_made_anew(node: &Node, made_at: &Value) -> Result<()> {
    wait::until(wait::SERVER, "another template", async || {
        let (_, now) = template(node).await.ok()?;
        (now != *made_at).then_some(())
    })
    .await
}

/// All of the daemon's log since its start.
fn whole_log(node: &Node) -> Result<String> {
    Ok(fs_err::read_to_string(node.daemon_log_path())?)
}

/// Starts a pod, which has to come to run in this way, and removes it.
async fn starts_by(node: &Node, start: &str) -> Result<()> {
    let sandbox = node.cri().run_pod(&node.pod("pod")).await?;
    let was = node.start_of(&sandbox).await?;
    node.cri().remove_pod(&sandbox).await?;
    ensure!(was == start, "it came to run by a {was}:\n{}", node.daemon_log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_template_costs_a_boot_and_is_made_anew() -> Result<()> {
    on_a_node(async || {
        let mut node = Node::start().await?;
        node.set_plain_network()?;
        let before = node.traces();
        for (name, damage) in UNDER_A_DAEMON {
            damaged_under_a_daemon(&node, damage)
                .await
                .with_context(|| format!("{name}:\n{}", node.daemon_log()))?;
            node.is_as_before(&before).context(name)?;
            // The next daemon has not seen a template spoil, so that it makes the next one at once.
            node.kill_daemon().await?;
            node.start_daemon().await?;
        }
        let mut damages = WITHOUT_A_DAEMON.to_vec();
        if std::env::var_os("CLEARPOD_THOROUGH").is_some() {
            another_shape(&node).await?;
            damages.extend(MORE_OF_THEM);
        }
        for (name, damage, reason) in damages {
            damaged_without_a_daemon(&mut node, damage, reason)
                .await
                .with_context(|| format!("{name}:\n{}", node.daemon_log()))?;
            node.is_as_before(&before).context(name)?;
        }
        starts_by(&node, "fork").await
    })
    .await
}

/// Pods of another shape come, so that there are two templates.
async fn another_shape(node: &Node) -> Result<()> {
    let mut pod = node.pod("small");
    let resources = cri::LinuxContainerResources {
        memory_limit_in_bytes: 256 << 20,
        ..Default::default()
    };
    pod.config.linux = Some(cri::LinuxPodSandboxConfig {
        resources: Some(resources),
        ..Default::default()
    });
    for _ in 0..2 {
        let sandbox = node.cri().run_pod(&pod).await?;
        node.cri().remove_pod(&sandbox).await?;
    }
    wait::until(wait::SERVER, "its template", async || {
        let templates = node.templates().await.ok()?;
        let is_ready = |template: &Value| template["state"] == "ready";
        (templates.len() == 2 && templates.iter().all(is_ready)).then_some(())
    })
    .await
}

async fn damaged_under_a_daemon(node: &Node, damage: Damage) -> Result<()> {
    let (place, made_at) = template(node).await?;
    damage(&place)?;
    starts_by(node, "boot").await?;
    ensure!(whole_log(node)?.contains("its files were changed by somebody else"));
    is_made_anew(node, &made_at).await
}

async fn damaged_without_a_daemon(node: &mut Node, damage: Damage, reason: &str) -> Result<()> {
    let (place, made_at) = template(node).await?;
    node.kill_daemon().await?;
    damage(&place)?;
    node.start_daemon().await?;
    // The daemon reads memory itself and has made another one by now; the state is the VMM's to judge.
    let start = if reason.contains("memory") { "fork" } else { "boot" };
    starts_by(node, start).await?;
    ensure!(whole_log(node)?.contains(reason), "no word of {reason:?}");
    is_made_anew(node, &made_at).await
}

/// A pod's sandbox and its container.
async fn running(node: &Node, pod: &PodSpec) -> Result<(String, String)> {
    let sandbox = node.cri().run_pod(pod).await?;
    let image = node.image();
    let container = node
        .cri()
        .run_shell(&sandbox, pod, "main", &image, "sleep 1000")
        .await?;
    Ok((sandbox, container))
}

/// Whoever cuts a template's memory takes it from the guests that go on from it. They end as after any death of their VMM.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_cut_under_running_guests_takes_them_and_nothing_else() -> Result<()> {
    on_a_node(async || {
        let node = Node::start().await?;
        node.set_plain_network()?;
        let (before, cri) = (node.traces(), node.cri());
        let mut cold = node.pod("cold");
        let annotation = ("clearpod.dev/boot".to_owned(), "cold".to_owned());
        cold.config.annotations.extend([annotation]);
        let survivor = running(&node, &cold).await?;
        let forks = [
            running(&node, &node.pod("one")).await?,
            running(&node, &node.pod("two")).await?,
        ];
        let (place, made_at) = template(&node).await?;
        open(&place.join("memory"))?.set_len(0)?;
        for (sandbox, container) in &forks {
            wait::until(wait::CONTAINER, "its guest's end", async || {
                // It may answer from what it has in memory of its own.
                drop(cri.exec(container, "ls -lR /bin >/dev/null").await);
                let pod = cri.pod(sandbox).await.ok()?.status?;
                (pod.state() == cri::PodSandboxState::SandboxNotready).then_some(())
            })
            .await
            .with_context(|| node.daemon_log())?;
            let state = cri.container(container).await?.state();
            ensure!(state == cri::ContainerState::ContainerExited, "{state:?}");
        }
        let (code, out, err) = cri.exec(&survivor.1, "echo lives").await?;
        ensure!((code, out.as_str()) == (0, "lives\n"), "{code} {out} {err}");
        starts_by(&node, "boot").await?;
        is_made_anew(&node, &made_at).await?;
        starts_by(&node, "fork").await?;
        for (sandbox, _) in forks.iter().chain([&survivor]) {
            cri.remove_pod(sandbox).await?;
        }
        node.is_as_before(&before)
    })
    .await
}

/// Between which steps of RunPodSandbox there is a VMM.
const PHASES: [&str; 3] = ["start.launched", "start.booted", "start.configured"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vmm_killed_in_any_phase_of_a_fork_costs_the_fork_and_not_the_pod() -> Result<()> {
    on_a_node(async || {
        let program = std::env::var_os("CLEARPOD_FAILPOINTS").context("CLEARPOD_FAILPOINTS is not set")?;
        let mut node = Node::start().await?;
        node.set_plain_network()?;
        let before = node.traces();
        for point in PHASES {
            daemon_that_waits_at(&mut node, program.as_ref(), point).await?;
            let (cri, pod) = (node.cri(), node.pod("killed"));
            let started = killed_at(&node, point, cri.run_pod(&pod)).await?;
            let sandbox = started.with_context(|| format!("{point}:\n{}", node.daemon_log()))?;
            let start = node.start_of(&sandbox).await?;
            node.cri().remove_pod(&sandbox).await?;
            ensure!(start == "boot", "{point}: by a {start}\n{}", node.daemon_log());
            node.is_as_before(&before).context(point)?;
        }
        let point = "create.volumes";
        daemon_that_waits_at(&mut node, program.as_ref(), point).await?;
        let (cri, pod) = (node.cri(), node.pod("killed"));
        let sandbox = cri.run_pod(&pod).await?;
        let config = PodSpec::shell("main", &node.image(), "sleep 1000");
        let create = Box::pin(cri.create(&sandbox, &pod, config));
        let created = killed_at(&node, point, create).await?;
        let refusal = created
            .err()
            .context("nothing can be made in a Machine that is gone")?;
        ensure!(refusal.message().contains("killed by signal 9"), "{refusal}");
        wait::until(wait::CONTAINER, "the pod's end", async || {
            let pod = node.cri().pod(&sandbox).await.ok()?.status?;
            (pod.state() == cri::PodSandboxState::SandboxNotready).then_some(())
        })
        .await?;
        node.cri().remove_pod(&sandbox).await?;
        node.is_as_before(&before).context(point)
    })
    .await
}

fn go(node: &Node) -> PathBuf {
    node.directory().join("go")
}

async fn daemon_that_waits_at(node: &mut Node, program: &Path, point: &str) -> Result<()> {
    node.kill_daemon().await?;
    let fail = [("FAILPOINTS", format!("{point}=return({})", go(node).display()))];
    node.start_daemon_with(program, &fail).await
}

/// The answer to `request`, when every VMM is killed as soon as the daemon is at `point`, and the daemon goes on then.
async fn killed_at<T>(node: &Node, point: &str, request: impl Future<Output = T>) -> Result<T> {
    let (answer, killed) = tokio::join!(request, async {
        wait::held_at(wait::CALL, point, &node.daemon_log_path()).await?;
        for pid in vmms(node) {
            kill(pid, Signal::SIGKILL)?;
        }
        // Seen by the daemon, which reaps them.
        wait::until(wait::MACHINE_DEATH, "their end", async || {
            vmms(node).is_empty().then_some(())
        })
        .await?;
        Ok::<_, anyhow::Error>(fs_err::write(go(node), "")?)
    });
    killed?;
    fs_err::remove_file(go(node))?;
    Ok(answer)
}

fn vmms(node: &Node) -> Vec<Pid> {
    let traces = node.traces().into_iter();
    let pids = traces.filter_map(|trace| trace.strip_prefix("process ")?.parse().ok());
    pids.map(Pid::from_raw).collect()
}
