//! Nodes whose disk or memory runs out while pods are made: it costs a start at most, and no pod that runs.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use e2e::{Node, PodSpec, is_emulated, on_a_node, process, wait};
use nix::{fcntl::posix_fallocate, sys::statvfs::statvfs};
use proto::cri::v1 as cri;
use serde_json::Value;

/// Memory for files, mounted as long as this lives.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(size: &str) -> Result<Self> {
        let path = tempfile::tempdir_in("/run")?.keep();
        mount(
            &["-t", "tmpfs", "-o", &format!("huge=always,size={size}"), "none"],
            &path,
        )?;
        Ok(Self(path))
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Takes so much more of it. Nothing is written: zeros would take an emulated node minutes.
    fn take(&self, bytes: u64) -> Result<()> {
        let mut options = fs_err::OpenOptions::new();
        let file = options.create(true).append(true).open(self.filler())?;
        let end = file.metadata()?.len();
        posix_fallocate(file.file(), end.try_into()?, bytes.try_into()?)?;
        Ok(())
    }

    fn fill(&self) -> Result<()> {
        let stat = statvfs(&self.0)?;
        self.take(stat.blocks_available() * stat.fragment_size())
    }

    fn empty(&self) -> Result<()> {
        Ok(fs_err::remove_file(self.filler())?)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).output());
        drop(fs_err::remove_dir(&self.0));
    }
}

fn mount(arguments: &[&str], path: &Path) -> Result<()> {
    let output = Command::new("mount").args(arguments).arg(path).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// The only template that there is.
async fn template(node: &Node) -> Result<Value> {
    let templates = node.templates().await?;
    ensure!(templates.len() == 1, "{templates:?}");
    Ok(templates.into_iter().next().unwrap_or_default())
}

/// How a pod comes to run, which is removed.
async fn start_of_a_pod(node: &Node) -> Result<String> {
    let sandbox = node.cri().run_pod(&node.pod("pod")).await?;
    let start = node.start_of(&sandbox).await;
    node.cri().remove_pod(&sandbox).await?;
    start
}

/// A node whose templates have a file system of their own.
async fn with_templates_in(place: &Tmpfs) -> Result<Node> {
    let mut node = Node::start().await?;
    node.kill_daemon().await?;
    let directory = place.0.display();
    node.write_config(&format!(
        "[machine.templates]\nrest_seconds = 0\ndirectory = \"{directory}\"\n"
    ))?;
    node.set_plain_network()?;
    Ok(node)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn templates_for_which_there_is_no_room_cost_no_pod() -> Result<()> {
    on_a_node(async || {
        let place = Tmpfs::new("70m")?;
        let mut node = with_templates_in(&place).await?;
        node.start_daemon().await?;
        let before = node.traces();
        let template = template(&node).await?;
        ensure!(
            template["state"] == "failed"
                && template["why"].to_string().contains("are free in its directory"),
            "{template}"
        );
        let left = fs_err::read_dir(&place.0)?.count();
        ensure!(left == 0, "{left} are left of a template that was not made");
        let start = start_of_a_pod(&node).await?;
        ensure!(start == "boot", "{start}");
        node.is_as_before(&before)?;
        // With more room the next daemon makes it.
        node.kill_daemon().await?;
        mount(&["-o", "remount,size=500m"], &place.0)?;
        node.start_daemon().await?;
        let start = start_of_a_pod(&node).await?;
        ensure!(start == "fork", "{start}\n{}", node.daemon_log());
        node.kill_daemon().await
    })
    .await
}

/// There is room when the guest's memory begins to be written, and none when it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_while_a_template_is_written_costs_the_template() -> Result<()> {
    on_a_node(async || {
        let program = env::var_os("CLEARPOD_FAILPOINTS").context("CLEARPOD_FAILPOINTS is not set")?;
        let place = Tmpfs::new("300m")?;
        let mut node = with_templates_in(&place).await?;
        let (go, log) = (node.directory().join("go"), node.daemon_log_path());
        let point = "template.paused";
        let fail = [("FAILPOINTS", format!("{point}=return({})", go.display()))];
        let (started, filled) = tokio::join!(node.start_daemon_with(program.as_ref(), &fail), async {
            wait::held_at(wait::SERVER, point, &log).await?;
            place.fill()?;
            Ok::<_, anyhow::Error>(fs_err::write(&go, "")?)
        });
        filled.and(started)?;
        let before = node.traces();
        let failed = template(&node).await?;
        ensure!(
            failed["state"] == "failed" && failed["why"].to_string().contains("No space left on device"),
            "{failed}"
        );
        let left = fs_err::read_dir(&place.0)?.count();
        ensure!(left == 1, "{left} files beside what fills the disk");
        let start = start_of_a_pod(&node).await?;
        ensure!(start == "boot", "{start}");
        node.is_as_before(&before)?;
        // The same daemon makes it when there is room again.
        place.empty()?;
        wait::until(wait::SERVER, "the template", async || {
            (template(&node).await.ok()?["state"] == "ready").then_some(())
        })
        .await
        .with_context(|| node.daemon_log())?;
        let start = start_of_a_pod(&node).await?;
        ensure!(start == "fork", "{start}\n{}", node.daemon_log());
        node.kill_daemon().await
    })
    .await
}

/// What is available of the host's memory, MiB.
fn available_mib() -> Result<u64> {
    let text = fs_err::read_to_string("/proc/meminfo")?;
    Ok(process::field_kib(&text, "MemAvailable").context("MemAvailable")? >> 10)
}

/// Takes the host's memory until so much is available.
fn leave(hog: &Tmpfs, mib: u64) -> Result<()> {
    while let more @ 1.. = available_mib()?.saturating_sub(mib) {
        hog.take(more << 20)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_without_memory_starts_no_pod_and_keeps_those_that_run() -> Result<()> {
    on_a_node(async || {
        if !is_emulated() {
            eprintln!("SKIPPED: takes all memory of the host: only on an emulated node");
            return Ok(());
        }
        let node = Node::start().await?;
        node.set_plain_network()?;
        let before = node.traces();
        let (cri, pod) = (node.cri(), node.pod("witness"));
        let sandbox = cri.run_pod(&pod).await?;
        let witness = cri
            .run_shell(&sandbox, &pod, "main", &node.image(), "sleep 1000")
            .await?;
        let hog = Tmpfs::new("100%")?;
        // 64 MiB to start with and 64 that stay free (machine.memory_reserve_mib) are more.
        leave(&hog, 110)?;
        let refused = cri
            .run_pod(&node.pod("refused"))
            .await
            .err()
            .context("a pod without memory")?;
        ensure!(
            refused.code() == tonic::Code::ResourceExhausted
                && refused.message().contains("MiB of memory available"),
            "{refused}"
        );
        let (code, out, err) = cri.exec(&witness, "echo lives").await?;
        ensure!((code, out.as_str()) == (0, "lives\n"), "{code} {out} {err}");
        hog.empty()?;
        // Enough for one fork and not for much more.
        leave(&hog, 180)?;
        let start = start_of_a_pod(&node).await?;
        ensure!(start == "fork", "{start}\n{}", node.daemon_log());
        let (code, out, err) = cri.exec(&witness, "echo lives").await?;
        ensure!((code, out.as_str()) == (0, "lives\n"), "{code} {out} {err}");
        drop(hog);
        cri.remove_pod(&sandbox).await?;
        node.is_as_before(&before)
    })
    .await
}

/// A pod whose container has this score of kubelet's: sandbox and container.
async fn worth(node: &Node, name: &str, oom_score_adj: i64) -> Result<(String, String)> {
    let (cri, pod) = (node.cri(), node.pod(name));
    let sandbox = cri.run_pod(&pod).await?;
    let mut config = PodSpec::shell("main", &node.image(), "sleep 1000");
    let resources = cri::LinuxContainerResources {
        oom_score_adj,
        ..Default::default()
    };
    config.linux = Some(cri::LinuxContainerConfig {
        resources: Some(resources),
        ..Default::default()
    });
    let container = cri.create(&sandbox, &pod, config).await?;
    cri.start(&container).await?;
    Ok((sandbox, container))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_out_of_memory_killer_takes_the_pod_that_was_promised_nothing() -> Result<()> {
    on_a_node(async || {
        if !is_emulated() {
            eprintln!("SKIPPED: lets the host's out-of-memory killer choose: only on an emulated node");
            return Ok(());
        }
        let node = Node::start().await?;
        node.set_plain_network()?;
        let cri = node.cri();
        let (promised, container) = worth(&node, "guaranteed", -997).await?;
        let (unpromised, _) = worth(&node, "best-effort", 1000).await?;
        // As it does without memory: the one with the most points goes (Documentation/admin-guide/sysrq.rst).
        fs_err::write("/proc/sysrq-trigger", "f")?;
        wait::until(wait::SERVER, "the pod's end", async || {
            let status = cri.pod(&unpromised).await.ok()?.status?;
            (status.state() == cri::PodSandboxState::SandboxNotready).then_some(())
        })
        .await?;
        ensure!(
            node.daemon_log()
                .contains("the host killed the VMM: it was out of memory"),
            "{}",
            node.daemon_log()
        );
        let (code, out, err) = cri.exec(&container, "echo lives").await?;
        ensure!((code, out.as_str()) == (0, "lives\n"), "{code} {out} {err}");
        cri.remove_pod(&unpromised).await?;
        Ok(cri.remove_pod(&promised).await?)
    })
    .await
}
