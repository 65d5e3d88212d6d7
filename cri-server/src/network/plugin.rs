//! Runs one CNI plugin once: environment, standard input, deadline, answer. CNI specification 1.1, section 2.

use std::{
    env,
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Pid};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::timeout,
};

use super::{INTERFACE, NetworkError};
use crate::sys::spawn::detach;

/// A result is a few hundred bytes; more than this is refused.
const MAX_ANSWER: u64 = 1024 * 1024;
/// What of standard error goes into a message.
const MAX_COMPLAINT: usize = 2048;

/// What a plugin is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Check,
    Del,
}

impl Verb {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
        }
    }
}

/// Who the plugin works for.
#[derive(Debug)]
pub(super) struct Invocation<'a> {
    pub(super) verb: Verb,
    pub(super) container_id: &'a str,
    /// Empty when the namespace is gone (DEL).
    pub(super) namespace: &'a Path,
    pub(super) args: &'a str,
    pub(super) bin_dirs: &'a [PathBuf],
    pub(super) deadline: Duration,
    /// Stays open, and locked, as long as the plugin or a child of it runs.
    pub(super) lock: Option<&'a File>,
}

impl Invocation<'_> {
    /// Runs the plugin with `configuration` on its standard input; its result, `Null` for verbs that have none.
    pub(super) async fn run(&self, plugin: &str, configuration: &Value) -> Result<Value, NetworkError> {
        let binary = find(plugin, self.bin_dirs)?;
        let mut child = self.spawn(&binary)?;
        let group = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .map(Pid::from_raw);
        let answer = timeout(self.deadline, converse(&mut child, configuration.to_string())).await;
        if let (Err(_), Some(group)) = (&answer, group) {
            // The plugin leads a session of its own, so its children (ipam, iptables) end with it.
            if let Err(errno) = nix::sys::signal::killpg(group, Signal::SIGKILL) {
                tracing::warn!(plugin, %errno, "cannot kill a CNI plugin that hangs");
            }
        }
        match answer {
            Err(_) => Err(NetworkError::PluginTimeout {
                plugin: plugin.to_owned(),
                command: self.verb.name(),
                seconds: self.deadline.as_secs(),
            }),
            Ok(Err(source)) => Err(NetworkError::system(
                format!("run CNI plugin {}", binary.display()),
                source,
            )),
            Ok(Ok(answer)) => self.judge(plugin, &answer),
        }
    }

    fn spawn(&self, binary: &Path) -> Result<Child, NetworkError> {
        let failed = |source| NetworkError::system(format!("start CNI plugin {}", binary.display()), source);
        let lock = self.lock.map(File::try_clone).transpose().map_err(failed)?;
        let bin_path = env::join_paths(self.bin_dirs).unwrap_or_default();
        let mut command = Command::new(binary);
        command
            .env_clear()
            .env(
                "PATH",
                env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()),
            )
            .env("CNI_COMMAND", self.verb.name())
            .env("CNI_CONTAINERID", self.container_id)
            .env("CNI_NETNS", self.namespace)
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_ARGS", self.args)
            .env("CNI_PATH", bin_path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        detach(
            command.as_std_mut(),
            None,
            lock.into_iter().map(OwnedFd::from).collect(),
        );
        command.spawn().map_err(failed)
    }

    fn judge(&self, plugin: &str, answer: &Answer) -> Result<Value, NetworkError> {
        if !answer.status.success() {
            return Err(self.failure(plugin, answer));
        }
        if self.verb != Verb::Add {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer.output).map_err(|error| NetworkError::PluginAnswer {
            plugin: plugin.to_owned(),
            command: self.verb.name(),
            problem: error.to_string(),
        })
    }

    /// The error object on standard output (section 5), or what the plugin wrote instead.
    fn failure(&self, plugin: &str, answer: &Answer) -> NetworkError {
        #[derive(Deserialize)]
        struct CniError {
            code: u32,
            #[serde(default)]
            msg: String,
            #[serde(default)]
            details: String,
        }
        let plugin = plugin.to_owned();
        let command = self.verb.name();
        match serde_json::from_slice::<CniError>(&answer.output) {
            Ok(CniError { code, msg, details }) if details.is_empty() => NetworkError::Plugin {
                plugin,
                command,
                code,
                message: msg,
            },
            Ok(CniError { code, msg, details }) => NetworkError::Plugin {
                plugin,
                command,
                code,
                message: format!("{msg}: {details}"),
            },
            Err(_) => {
                let said = if answer.complaint.is_empty() {
                    &answer.output
                } else {
                    &answer.complaint
                };
                let said = &said[..said.len().min(MAX_COMPLAINT)];
                let problem = format!("{}: {}", answer.status, String::from_utf8_lossy(said).trim());
                NetworkError::PluginAnswer {
                    plugin,
                    command,
                    problem,
                }
            }
        }
    }
}

/// The plugin's binary.
pub(super) fn find(plugin: &str, bin_dirs: &[PathBuf]) -> Result<PathBuf, NetworkError> {
    bin_dirs
        .iter()
        .map(|dir| dir.join(plugin))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            let searched: Vec<_> = bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
            NetworkError::PluginMissing {
                plugin: plugin.to_owned(),
                searched: searched.join(", "),
            }
        })
}

struct Answer {
    status: ExitStatus,
    output: Vec<u8>,
    complaint: Vec<u8>,
}

async fn converse(child: &mut Child, configuration: String) -> std::io::Result<Answer> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let tell = async {
        if let Some(mut stdin) = stdin {
            // A plugin may answer without reading everything.
            if let Err(error) = stdin.write_all(configuration.as_bytes()).await {
                tracing::debug!(%error, "a CNI plugin did not read its configuration");
            }
        }
    };
    let ((), output, complaint) = tokio::join!(tell, read_some(stdout), read_some(stderr));
    Ok(Answer {
        status: child.wait().await?,
        output: output?,
        complaint: complaint?,
    })
}

async fn read_some(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(MAX_ANSWER).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, time::Instant};

    use serde_json::json;

    use super::*;

    struct Plugins {
        dirs: Vec<PathBuf>,
        _dir: tempfile::TempDir,
    }

    fn plugin(script: &str) -> Plugins {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scripted");
        fs_err::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Plugins {
            dirs: vec![dir.path().to_owned()],
            _dir: dir,
        }
    }

    async fn run(script: &str, verb: Verb, deadline: Duration) -> Result<Value, NetworkError> {
        let plugins = plugin(script);
        let invocation = Invocation {
            verb,
            container_id: "pod1",
            namespace: Path::new("/run/netns/x"),
            args: "IgnoreUnknown=1",
            bin_dirs: &plugins.dirs,
            deadline,
            lock: None,
        };
        invocation.run("scripted", &json!({"name": "pods"})).await
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_plugin_gets_its_environment_and_configuration() {
        let script = r#"conf=$(cat); echo "{\"conf\":$conf,\"said\":\"$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS\"}""#;
        let result = run(script, Verb::Add, LONG).await.unwrap();
        assert_eq!(result["conf"]["name"], "pods");
        assert_eq!(result["said"], "ADD pod1 /run/netns/x eth0 IgnoreUnknown=1");
    }

    #[tokio::test]
    async fn a_plugins_error_object_is_told() {
        let script = r#"echo '{"code":11,"msg":"no address","details":"pool is empty"}'; exit 1"#;
        let error = run(script, Verb::Add, LONG).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "CNI plugin scripted ADD failed with code 11: no address: pool is empty"
        );
    }

    #[tokio::test]
    async fn a_plugin_that_fails_in_its_own_words_is_quoted() {
        let error = run("echo boom >&2; exit 3", Verb::Del, LONG)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("boom") && error.contains('3'), "{error}");
    }

    #[tokio::test]
    async fn an_answer_that_is_no_json_is_an_error() {
        let error = run("echo hello", Verb::Add, LONG).await.unwrap_err();
        assert!(matches!(error, NetworkError::PluginAnswer { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_plugin_that_hangs_is_killed_with_its_children() {
        let pid_file = tempfile::NamedTempFile::new().unwrap();
        let script = format!("sleep 600 & echo $! > {}; wait", pid_file.path().display());
        let started = Instant::now();
        let error = run(&script, Verb::Add, Duration::from_millis(500))
            .await
            .unwrap_err();
        assert!(matches!(error, NetworkError::PluginTimeout { .. }), "{error}");
        assert!(started.elapsed() < LONG);
        let child: i32 = fs_err::read_to_string(pid_file.path())
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let gone = |pid| match fs_err::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        for _ in 0..100 {
            if gone(child) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the plugin's child {child} lives on");
    }

    #[tokio::test]
    async fn a_missing_plugin_names_where_it_was_looked_for() {
        let error = find("nowhere", &["/a".into(), "/b".into()]).unwrap_err();
        assert_eq!(error.to_string(), "CNI plugin nowhere was not found in /a, /b");
    }
}
