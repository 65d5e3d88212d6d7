//! Memory that pods give back, and memory that is not there.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{Node, PodSpec, on_a_node, process};
use proto::cri::v1 as cri;
use tokio::time::{Instant, sleep};

/// What a container takes and gives back.
const TAKEN_MIB: u64 = 512;
/// In which nine tenths of it are back; an emulated node may take four times as long.
const GIVEN_BACK: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);

/// A container's memory may not be all of this more than the pod has without it.
fn limited(name: &str, image: &str, memory_mib: i64) -> cri::ContainerConfig {
    let mut config = PodSpec::shell(name, image, "sleep 1000");
    let resources = cri::LinuxContainerResources {
        memory_limit_in_bytes: memory_mib << 20,
        ..Default::default()
    };
    config.linux = Some(cri::LinuxContainerConfig {
        resources: Some(resources),
        ..Default::default()
    });
    config
}

/// What a process has in memory, its share of what others have as well.
fn held_mib(pid: u32) -> Result<u64> {
    let text = fs_err::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    Ok(process::field_kib(&text, "Pss").context("Pss")? >> 10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_comes_back_and_its_want_costs_one_pod() -> Result<()> {
    on_a_node(async || {
        let node = Node::start().await?;
        node.set_plain_network()?;
        let figures = what_a_container_frees_comes_back(&node).await;
        println!("{}", figures.context("freed memory")?);
        a_pod_without_memory_is_the_only_one_to_go(&node)
            .await
            .context("want of memory")
    })
    .await
}

/// In words, how much of it and when.
async fn what_a_container_frees_comes_back(node: &Node) -> Result<String> {
    let cri = node.cri();
    let pod = node.pod("memory");
    let sandbox = cri.run_pod(&pod).await?;
    let config = limited("main", &node.image(), 700);
    let container = cri.create(&sandbox, &pod, config).await?;
    cri.start(&container).await?;
    let pid = node.vmm_pid(&sandbox).await?;
    let before = held_mib(pid)?;
    // One buffer, filled once, and gone with its process.
    let script = format!("dd if=/dev/zero of=/dev/null bs={TAKEN_MIB}M count=1");
    let mut taking = Box::pin(cri.exec(&container, &script));
    let mut peak = before;
    let (code, _, err) = loop {
        tokio::select! {
            ended = &mut taking => break ended?,
            () = sleep(PAUSE) => peak = peak.max(held_mib(pid)?),
        }
    };
    ensure!(code == 0, "{code} {err}");
    let ended = Instant::now();
    ensure!(peak >= before + TAKEN_MIB * 9 / 10, "{before} MiB, then {peak}");
    let enough = before + (peak - before) / 10;
    let (mut after_10, mut back) = (None, None);
    while back.is_none() || after_10.is_none() {
        let (now, elapsed) = (held_mib(pid)?, ended.elapsed());
        if now <= enough {
            back.get_or_insert(elapsed);
        }
        if elapsed >= GIVEN_BACK {
            after_10.get_or_insert(now);
        }
        ensure!(
            elapsed <= 4 * GIVEN_BACK,
            "{before} MiB before, {peak} at most, {now} MiB {elapsed:?} later"
        );
        sleep(PAUSE).await;
    }
    cri.remove_pod(&sandbox).await?;
    Ok(format!(
        "{before} MiB before, {peak} at most, {} after 10 s; nine tenths were back after {:.1} s",
        after_10.unwrap_or_default(),
        back.unwrap_or_default().as_secs_f64()
    ))
}

/// A parent cgroup for pods that may take no more than this; removed when it is dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    const NAME: &str = "/e2e-short";

    fn new() -> Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        fs_err::write(root.join("cgroup.subtree_control"), "+memory")?;
        let path = root.join(Self::NAME.trim_start_matches('/'));
        fs_err::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn limit(&self, mib: u64) -> Result<()> {
        Ok(fs_err::write(self.0.join("memory.max"), format!("{mib}M"))?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        drop(fs_err::remove_dir(&self.0));
    }
}

const WANT: &str = "out of memory";

async fn a_pod_without_memory_is_the_only_one_to_go(node: &Node) -> Result<()> {
    let cgroup = Cgroup::new()?;
    let before = node.traces();
    let cri = node.cri();
    let other = node.pod("other");
    let others = cri.run_pod(&other).await?;
    let witness = cri
        .run_shell(&others, &other, "main", &node.image(), "sleep 1000")
        .await?;

    let mut pod = node.pod("short");
    let parent = Cgroup::NAME.to_owned();
    pod.config.linux = Some(cri::LinuxPodSandboxConfig {
        cgroup_parent: parent,
        ..Default::default()
    });
    // A fork takes twice as much of its own.
    cgroup.limit(2)?;
    let started = cri.run_pod(&pod).await;
    let refusal = started.err().context("a Machine in 2 MiB")?;
    ensure!(refusal.message().contains(WANT), "{refusal}");
    let log = node.daemon_log();
    ensure!(log.contains("it is started once more, by a boot"), "{log}");

    cgroup.limit(300)?;
    let sandbox = cri.run_pod(&pod).await?;
    let start = node.start_of(&sandbox).await?;
    ensure!(
        start == "fork",
        "a kill says nothing of the template, and it is a {start}"
    );
    let container = cri
        .create(&sandbox, &pod, limited("main", &node.image(), 700))
        .await?;
    cri.start(&container).await?;
    let script = format!("dd if=/dev/zero of=/dev/null bs={TAKEN_MIB}M count=1");
    let taken = cri.exec(&container, &script).await;
    ensure!(!matches!(taken, Ok((0, ..))), "there are not {TAKEN_MIB} MiB");
    let ended = cri.ended(&container).await?;
    ensure!(ended.exit_code != 0 && ended.message.contains(WANT), "{ended:?}");
    cri.remove_pod(&sandbox).await?;

    let (code, out, err) = cri.exec(&witness, "echo lives").await?;
    ensure!((code, out.as_str()) == (0, "lives\n"), "{code} {out} {err}");
    cri.remove_pod(&others).await?;
    node.is_as_before(&before)?;
    // Only possible when no pod's cgroup is left in it.
    Ok(fs_err::remove_dir(&cgroup.0)?)
}
