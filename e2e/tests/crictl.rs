//! Every command of the real crictl, as docs/crictl.md says of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{Node, on_a_node, wait};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

const TABLE: &str = include_str!("../../docs/crictl.md");
/// The port on which the test's container answers.
const PORT: u16 = 8080;

/// What the table says of each command.
fn table() -> BTreeMap<&'static str, &'static str> {
    let rows = TABLE.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| {
        let (command, rest) = row.split_once("` | ")?;
        Some((command, rest.split_once(" |")?.0))
    })
    .collect()
}

/// The names in the list of commands that crictl prints.
fn commands(help: &str) -> BTreeSet<String> {
    let lines = help.lines().skip_while(|line| !line.starts_with("COMMANDS:"));
    let lines = lines.skip(1).take_while(|line| !line.trim().is_empty());
    lines
        .filter_map(|line| line.split([',', ' ']).find(|word| !word.is_empty()))
        .map(str::to_owned)
        .collect()
}

/// crictl on a node, and which of its commands have been run.
struct Crictl<'n> {
    node: &'n Node,
    run: BTreeSet<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command() -> Result<()> {
    on_a_node(async || {
        let node = Node::start().await?;
        let mut crictl = Crictl {
            node: &node,
            run: BTreeSet::new(),
        };
        let pod = crictl
            .pods_and_containers()
            .await
            .context("pods and containers")?;
        crictl.streams(&pod).await.context("streams")?;
        crictl.numbers(&pod).await.context("numbers")?;
        crictl.runtime_and_images().await.context("runtime and images")?;
        crictl.removal(&pod).await.context("removal")?;
        let help = node.crictl(&["--help"]).await?;
        for command in commands(&help) {
            let said = table().get(command.as_str()).copied();
            let said =
                said.with_context(|| format!("crictl has a command that is not in the table: {command}"))?;
            ensure!(
                (said == "yes") == crictl.run.contains(&command),
                "{command}: the table says {said}, and the test ran {:?}",
                crictl.run
            );
        }
        Ok(())
    })
    .await
}

/// What the later steps work on.
struct Made {
    sandbox: String,
    /// Echoes its input, and answers on [`PORT`].
    container: String,
    files: [String; 2],
}

impl Crictl<'_> {
    async fn ok(&mut self, args: &[&str]) -> Result<String> {
        self.run.extend(args.first().map(|command| (*command).to_owned()));
        self.node.crictl(args).await
    }

    async fn json(&mut self, args: &[&str]) -> Result<Value> {
        let text = self.ok(args).await?;
        serde_json::from_str(&text).with_context(|| format!("{args:?}: {text}"))
    }

    /// With `input`, until its output has `wanted` in it.
    async fn stream(&mut self, args: &[&str], input: &str, wanted: &str) -> Result<()> {
        self.run.extend(args.first().map(|command| (*command).to_owned()));
        let mut command = self.node.crictl_command(args);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (mut to, from) = (
            child.stdin.take().context("stdin")?,
            child.stdout.take().context("stdout")?,
        );
        to.write_all(input.as_bytes()).await?;
        let mut lines = BufReader::new(from).lines();
        let found = async {
            let mut seen = String::new();
            while let Some(line) = lines.next_line().await? {
                if line.contains(wanted) {
                    return Ok(());
                }
                seen.push_str(&line);
            }
            anyhow::bail!("{args:?}: {wanted:?} is not in {seen:?}")
        };
        let found = timeout(wait::CONTAINER, found).await;
        found.with_context(|| format!("{args:?}: no {wanted:?}"))??;
        child.kill().await.context("end crictl")
    }

    async fn pods_and_containers(&mut self) -> Result<Made> {
        let directory = self.node.directory().to_owned();
        let pod = json!({"metadata": {"name": "all", "namespace": "default", "uid": "u1"},
            "log_directory": directory.join("logs/all"), "linux": {}});
        let script = format!("nc -ll -p {PORT} -e echo served & echo up; exec cat");
        let container = json!({"metadata": {"name": "main"}, "image": {"image": self.node.image()}, "stdin": true,
            "command": ["sh", "-c", script], "log_path": "main.log", "linux": {}});
        let file = |name: &str, content: &Value| -> Result<String> {
            let path = directory.join(name);
            fs_err::write(&path, content.to_string())?;
            Ok(path.to_str().context("path")?.to_owned())
        };
        let files = [file("pod.json", &pod)?, file("container.json", &container)?];
        let mut events = JoinSet::new();
        events.spawn(first_events(self.node.crictl_command(&["events"])));
        let sandbox = self.ok(&["runp", &files[0]]).await?;
        let id = self.ok(&["create", &sandbox, &files[1], &files[0]]).await?;
        self.ok(&["start", &id]).await?;
        self.run.insert("events".to_owned());
        let told = timeout(wait::CONTAINER, events.join_next())
            .await
            .context("no event")?
            .context("no task")???;
        ensure!(told.contains("CONTAINER_CREATED_EVENT"), "{told}");
        ensure!(self.ok(&["pods"]).await?.contains("Ready"));
        ensure!(self.ok(&["ps"]).await?.contains("main"));
        let shown = self.json(&["inspect", &id]).await?;
        ensure!(shown["status"]["state"] == "CONTAINER_RUNNING", "{shown}");
        let shown = self.json(&["inspectp", &sandbox]).await?;
        ensure!(shown["status"]["state"] == "SANDBOX_READY", "{shown}");
        let alone = self
            .ok(&["run", &files[1], &files[0].replace("pod.json", "second.json")])
            .await;
        ensure!(alone.is_err(), "a pod of a file that is not there: {alone:?}");
        let second = json!({"metadata": {"name": "second", "namespace": "default", "uid": "u2"},
            "log_directory": directory.join("logs/second"), "linux": {}});
        let second = file("second.json", &second)?;
        let ran = self.ok(&["run", "--no-pull", &files[1], &second]).await?;
        ensure!(self.ok(&["ps", "-q"]).await?.lines().count() == 2, "{ran}");
        Ok(Made {
            sandbox,
            container: id,
            files,
        })
    }

    async fn streams(&mut self, made: &Made) -> Result<()> {
        let id = made.container.as_str();
        wait::until(wait::CONTAINER, "the first line of log", async || {
            (!self.node.log("all", "main").is_empty()).then_some(())
        })
        .await?;
        ensure!(self.ok(&["logs", id]).await? == "up");
        ensure!(self.ok(&["exec", "--sync", id, "echo", "there"]).await? == "there");
        for transport in ["spdy", "websocket"] {
            self.stream(
                &["exec", "-i", "-r", transport, id, "cat"],
                "executed\n",
                "executed",
            )
            .await?;
            self.stream(&["attach", "-i", "-r", transport, id], "attached\n", "attached")
                .await?;
            self.forward(&made.sandbox, transport).await.context(transport)?;
        }
        self.stream(&["logs", "-f", id], "", "attached").await
    }

    async fn forward(&mut self, sandbox: &str, transport: &str) -> Result<()> {
        let mapping = format!("0:{PORT}");
        let args = ["port-forward", "-r", transport, sandbox, &mapping];
        self.run.insert(args[0].to_owned());
        let mut child = self
            .node
            .crictl_command(&args)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        let line = timeout(wait::CONTAINER, lines.next_line())
            .await
            .context("no address")??;
        // "Forwarding from 127.0.0.1:41235 -> 8080"
        let line = line.context("port-forward ended")?;
        let address = line.split(' ').nth(2).context(line.clone())?;
        let mut answer = String::new();
        let mut connection = TcpStream::connect(address).await?;
        timeout(wait::CONTAINER, connection.read_to_string(&mut answer))
            .await
            .context("no answer")??;
        ensure!(answer == "served\n", "{answer:?}");
        child.kill().await.context("end crictl")
    }

    async fn numbers(&mut self, made: &Made) -> Result<()> {
        let id = made.container.as_str();
        let stats = self.json(&["stats", "-o", "json", "--id", id]).await?;
        let used = &stats["stats"][0]["memory"]["workingSetBytes"]["value"];
        ensure!(used.as_str().is_some_and(|bytes| bytes != "0"), "{stats}");
        let stats = self
            .json(&["statsp", "-o", "json", "--id", &made.sandbox])
            .await?;
        ensure!(stats["stats"][0]["linux"]["memory"].is_object(), "{stats}");
        let names = self.ok(&["metricdescs"]).await?;
        ensure!(names.contains("container_memory_working_set_bytes"), "{names}");
        let metrics = self.ok(&["metricsp"]).await?;
        ensure!(metrics.contains("container_cpu_usage_seconds_total"), "{metrics}");
        self.ok(&[
            "update",
            "--memory",
            "104857600",
            "--cpu-quota",
            "50000",
            "--cpu-period",
            "100000",
            id,
        ])
        .await?;
        let shown = self.json(&["inspect", id]).await?;
        let linux = &shown["status"]["resources"]["linux"];
        ensure!(
            linux["memoryLimitInBytes"] == "104857600" && linux["cpuQuota"] == "50000",
            "{linux}"
        );
        let inside = self
            .ok(&["exec", "--sync", id, "cat", "/sys/fs/cgroup/memory.max"])
            .await?;
        ensure!(inside == "104857600", "{inside}");
        Ok(())
    }

    async fn runtime_and_images(&mut self) -> Result<()> {
        ensure!(self.ok(&["version"]).await?.contains("clearpod"));
        let driver = self.ok(&["runtime-config"]).await?;
        ensure!(driver.to_lowercase().contains("cgroup"), "{driver}");
        self.ok(&["update-runtime-config", "--pod-cidr", "10.9.0.0/16"])
            .await?;
        let info = self.json(&["info"]).await?;
        ensure!(info.to_string().contains("10.9.0.0/16"), "{info}");
        let image = self.node.image();
        self.ok(&["pull", &image]).await?;
        let name = image.rsplit_once(':').context("tag")?.0;
        ensure!(self.ok(&["images"]).await?.contains(name));
        ensure!(self.json(&["inspecti", &image]).await?["status"]["id"].is_string());
        let usage = self.json(&["imagefsinfo"]).await?;
        ensure!(usage.to_string().contains("usedBytes"), "{usage}");
        let refused = self.node.crictl(&["checkpoint", "none"]).await;
        ensure!(refused.is_err(), "{refused:?}");
        Ok(())
    }

    async fn removal(&mut self, made: &Made) -> Result<()> {
        self.ok(&["stop", "--timeout", "1", &made.container]).await?;
        self.ok(&["rm", &made.container]).await?;
        self.ok(&["stopp", &made.sandbox]).await?;
        self.ok(&["rmp", &made.sandbox]).await?;
        self.ok(&["rmp", "--all", "--force"]).await?;
        ensure!(self.ok(&["pods", "-q"]).await?.is_empty());
        self.ok(&["rmi", &self.node.image()]).await?;
        ensure!(self.ok(&["images", "-q"]).await?.is_empty());
        fs_err::remove_file(&made.files[0]).context("the pod's file")
    }
}

/// What `crictl events` says first.
async fn first_events(mut events: tokio::process::Command) -> Result<String> {
    let mut child = events.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut from = child.stdout.take().context("stdout")?;
    let (mut told, mut buffer) = (String::new(), vec![0; 16 * 1024]);
    while !told.contains("CONTAINER_CREATED_EVENT") {
        let read = from.read(&mut buffer).await?;
        ensure!(read > 0, "crictl ended: {told}");
        told.push_str(&String::from_utf8_lossy(buffer.get(..read).unwrap_or_default()));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(told)
}

#[test]
fn the_table_and_the_list_of_commands_are_read() {
    let help = "NAME:\n   crictl\n\nCOMMANDS:\n   images, image, img     List images\n   ps      List\n\nGLOBAL OPTIONS:\n   --x";
    assert_eq!(commands(help).into_iter().collect::<Vec<_>>(), ["images", "ps"]);
    let table = table();
    assert_eq!(
        (table["ps"], table["checkpoint"], table["config"]),
        ("yes", "no", "itself")
    );
}
