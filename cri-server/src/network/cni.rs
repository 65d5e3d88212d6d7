//! Runs a network's plugins in order, and remembers what it takes to undo that. CNI specification 1.1, section 4.
//!
//! The record of an ADD is stored before the first plugin runs and again with the result. DEL works from the record
//! alone, so that it undoes what was done even when the configuration has changed or the ADD never came to its end.
//!
//! A daemon that is killed leaves the plugin that it ran running. Killing that as well would leave half of its work where
//! no DEL looks for it; so it comes to its end, holding a lock, and the next daemon's DEL waits for that.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    NetworkConfig, NetworkError, PodNetwork, cni_args,
    conflist::{NetworkList, plugin_type},
    namespace_path,
    plugin::{Invocation, Verb},
};

/// Between two looks at a lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// What was, or may have been, done for a pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) pod: PodNetwork,
    pub(super) list: NetworkList,
    /// The last plugin's result; absent while ADD runs, or after it failed.
    pub(super) result: Option<Value>,
}

impl Record {
    fn path(config: &NetworkConfig, sandbox_id: &str) -> PathBuf {
        config.cache_dir.join(format!("{sandbox_id}.json"))
    }

    fn lock_path(config: &NetworkConfig, sandbox_id: &str) -> PathBuf {
        config.cache_dir.join(format!("{sandbox_id}.lock"))
    }

    pub(super) fn load(config: &NetworkConfig, sandbox_id: &str) -> Result<Option<Self>, NetworkError> {
        let path = Self::path(config, sandbox_id);
        let text = match fs_err::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(NetworkError::system("read the record of a CNI ADD", error)),
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| NetworkError::BadConfiguration {
                file: path,
                problem: error.to_string(),
            })
    }

    /// Atomically: a record is whole or absent, whenever the daemon is killed.
    fn store(&self, config: &NetworkConfig) -> Result<(), NetworkError> {
        let path = Self::path(config, &self.pod.sandbox_id);
        let new = path.with_extension("new");
        let stored = fs_err::create_dir_all(&config.cache_dir)
            .and_then(|()| fs_err::write(&new, serde_json::to_vec(self).map_err(io::Error::from)?))
            .and_then(|()| fs_err::rename(&new, &path));
        stored.map_err(|error| NetworkError::system("store the record of a CNI ADD", error))
    }

    pub(super) fn forget(config: &NetworkConfig, sandbox_id: &str) -> Result<(), NetworkError> {
        // The record last: it is what a later DEL knows of all this.
        for path in [
            Self::lock_path(config, sandbox_id),
            Self::path(config, sandbox_id),
        ] {
            match fs_err::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(NetworkError::system("remove the record of a CNI ADD", error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Sandbox ids that have a record.
    pub(super) fn ids(config: &NetworkConfig) -> Result<Vec<String>, NetworkError> {
        let entries = match fs_err::read_dir(&config.cache_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(NetworkError::system("list the records of CNI ADDs", error)),
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names
            .filter_map(|name| name.strip_suffix(".json").map(str::to_owned))
            .collect())
    }
}

/// Runs ADD through the chain; on failure the plugins get their DEL, and the record stays for a later one if that fails.
pub(super) async fn add(config: &NetworkConfig, pod: &PodNetwork) -> Result<Value, NetworkError> {
    let (_, list) = NetworkList::load(&config.conf_dir)?;
    let mut record = Record {
        pod: pod.clone(),
        list,
        result: None,
    };
    record.store(config)?;
    let lock = lock_add(config, &pod.sandbox_id)?;
    let added = chain_add(config, &record, &lock).await;
    drop(lock);
    match added {
        Ok(result) => {
            record.result = Some(result.clone());
            record.store(config)?;
            Ok(result)
        }
        Err(error) => {
            if let Err(undo) = del(config, &pod.sandbox_id).await {
                tracing::warn!(sandbox = pod.sandbox_id, error = %undo, "CNI DEL after a failed ADD");
            }
            Err(error)
        }
    }
}

async fn chain_add(config: &NetworkConfig, record: &Record, lock: &File) -> Result<Value, NetworkError> {
    let mut result = Value::Null;
    for plugin in &record.list.plugins {
        result = run(config, record, Verb::Add, plugin, &result, Some(lock)).await?;
    }
    Ok(result)
}

/// The lock of an ADD (flock(2)): as long as this file, or a plugin that inherited it, is there.
fn lock_add(config: &NetworkConfig, sandbox_id: &str) -> Result<File, NetworkError> {
    let failed = |error| NetworkError::system("lock a CNI ADD", error);
    let file = fs_err::File::create(Record::lock_path(config, sandbox_id)).map_err(failed)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| failed(errno.into()))?;
    Ok(file.into_parts().0)
}

/// Waits for the plugin of an ADD that nobody saw the end of, for as long as a plugin may run.
async fn wait_for_add(config: &NetworkConfig, sandbox_id: &str) {
    let Ok(file) = fs_err::File::open(Record::lock_path(config, sandbox_id)) else {
        return;
    };
    let over = async {
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            tokio::time::sleep(LOCK_PAUSE).await;
        }
    };
    if tokio::time::timeout(config.plugin_deadline(), over)
        .await
        .is_err()
    {
        tracing::warn!(sandbox = sandbox_id, "a CNI plugin of an earlier ADD still runs");
    }
}

/// Runs DEL backwards through the recorded chain and forgets the record. Nothing recorded: nothing to do.
pub(super) async fn del(config: &NetworkConfig, sandbox_id: &str) -> Result<(), NetworkError> {
    let Some(record) = Record::load(config, sandbox_id)? else {
        return Ok(());
    };
    if record.result.is_none() {
        wait_for_add(config, sandbox_id).await;
    }
    let result = record.result.clone().unwrap_or(Value::Null);
    for plugin in record.list.plugins.iter().rev() {
        run(config, &record, Verb::Del, plugin, &result, None).await?;
    }
    Record::forget(config, sandbox_id)
}

/// Runs CHECK through the recorded chain, where its version has that.
pub(super) async fn check(config: &NetworkConfig, sandbox_id: &str) -> Result<(), NetworkError> {
    let Some(record) = Record::load(config, sandbox_id)? else {
        return Err(NetworkError::Unsupported(format!(
            "sandbox {sandbox_id} was never attached"
        )));
    };
    if !record.list.allows_check() {
        return Ok(());
    }
    let result = record.result.clone().unwrap_or(Value::Null);
    for plugin in &record.list.plugins {
        run(config, &record, Verb::Check, plugin, &result, None).await?;
    }
    Ok(())
}

async fn run(
    config: &NetworkConfig,
    record: &Record,
    verb: Verb,
    plugin: &Map<String, Value>,
    previous: &Value,
    lock: Option<&File>,
) -> Result<Value, NetworkError> {
    let namespace = namespace_path(&config.namespace_dir, &record.pod.sandbox_id);
    let args = cni_args(&record.pod);
    let invocation = Invocation {
        verb,
        container_id: &record.pod.sandbox_id,
        namespace: if namespace.exists() {
            &namespace
        } else {
            Path::new("")
        },
        args: &args,
        bin_dirs: &config.bin_dirs,
        deadline: config.plugin_deadline(),
        lock,
    };
    invocation
        .run(
            plugin_type(plugin),
            &plugin_configuration(record, plugin, previous),
        )
        .await
}

/// The plugin's own object, with what the runtime adds (section 3, "Deriving execution configuration").
fn plugin_configuration(record: &Record, plugin: &Map<String, Value>, previous: &Value) -> Value {
    let mut configuration = plugin.clone();
    configuration.insert("cniVersion".to_owned(), json!(record.list.cni_version));
    configuration.insert("name".to_owned(), json!(record.list.name));
    let runtime = runtime_config(&record.pod, configuration.remove("capabilities").as_ref());
    if !runtime.is_empty() {
        configuration.insert("runtimeConfig".to_owned(), Value::Object(runtime));
    }
    if !previous.is_null() {
        configuration.insert("prevResult".to_owned(), previous.clone());
    }
    Value::Object(configuration)
}

fn runtime_config(pod: &PodNetwork, capabilities: Option<&Value>) -> Map<String, Value> {
    let wants = |name: &str| {
        capabilities
            .and_then(|all| all.get(name))
            .and_then(Value::as_bool)
            == Some(true)
    };
    let mut runtime = Map::new();
    if wants("portMappings") && !pod.port_mappings.is_empty() {
        runtime.insert("portMappings".to_owned(), json!(pod.port_mappings));
    }
    if let Some(bandwidth) = pod.bandwidth.as_ref().filter(|_| wants("bandwidth")) {
        runtime.insert("bandwidth".to_owned(), json!(bandwidth));
    }
    if let Some(dns) = pod.dns.as_ref().filter(|_| wants("dns")) {
        runtime.insert("dns".to_owned(), json!(dns));
    }
    runtime
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::network::PortMapping;

    /// A directory with a network of two scripted plugins that log how they are called.
    struct Scripted {
        dir: tempfile::TempDir,
        config: NetworkConfig,
    }

    impl Scripted {
        fn new(first: &str, second: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path();
            for (name, script) in [("first", first), ("second", second)] {
                let log = root.join("log");
                let script = format!(
                    "#!/bin/sh\nconf=$(cat)\necho \"{name} $CNI_COMMAND $conf\" >> {}\n{script}\n",
                    log.display()
                );
                fs_err::write(root.join(name), script).unwrap();
                fs_err::set_permissions(root.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
            }
            let list = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [
                {"type": "first"}, {"type": "second", "capabilities": {"portMappings": true}}]});
            fs_err::create_dir(root.join("conf")).unwrap();
            fs_err::write(root.join("conf/10.conflist"), list.to_string()).unwrap();
            let config = NetworkConfig {
                conf_dir: root.join("conf"),
                bin_dirs: vec![root.to_owned()],
                cache_dir: root.join("cache"),
                namespace_dir: root.join("netns"),
                plugin_seconds: 20,
                max_parallel: 2,
            };
            Self { dir, config }
        }

        fn calls(&self) -> Vec<String> {
            let log = fs_err::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            log.lines()
                .map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "))
                .collect()
        }

        fn log(&self) -> String {
            fs_err::read_to_string(self.dir.path().join("log")).unwrap()
        }
    }

    fn pod() -> PodNetwork {
        PodNetwork {
            sandbox_id: "pod1".into(),
            port_mappings: vec![PortMapping {
                host_port: 8080,
                container_port: 80,
                protocol: "tcp".into(),
                host_ip: String::new(),
            }],
            ..PodNetwork::default()
        }
    }

    #[tokio::test]
    async fn results_and_capabilities_go_down_the_chain_and_del_goes_back() {
        let scripted = Scripted::new("echo '{\"from\":1}'", "echo '{\"from\":2}'");
        let result = add(&scripted.config, &pod()).await.unwrap();
        assert_eq!(result, json!({"from": 2}));
        let log = scripted.log();
        assert!(log.contains(r#""prevResult":{"from":1}"#), "{log}");
        assert!(
            log.contains(r#""containerPort":80,"hostPort":8080,"protocol":"tcp""#),
            "{log}"
        );
        assert!(!log.contains("capabilities"), "{log}");
        check(&scripted.config, "pod1").await.unwrap();
        del(&scripted.config, "pod1").await.unwrap();
        assert_eq!(
            scripted.calls(),
            [
                "first ADD",
                "second ADD",
                "first CHECK",
                "second CHECK",
                "second DEL",
                "first DEL"
            ]
        );
        del(&scripted.config, "pod1").await.unwrap();
        assert_eq!(scripted.calls().len(), 6, "a second DEL has nothing to do");
    }

    #[tokio::test]
    async fn a_plugin_that_fails_takes_back_what_came_before() {
        let scripted = Scripted::new(
            "echo '{}'",
            r#"[ "$CNI_COMMAND" = DEL ] && exit 0; echo '{"code":7,"msg":"no"}'; exit 1"#,
        );
        let error = add(&scripted.config, &pod()).await.unwrap_err();
        assert!(matches!(error, NetworkError::Plugin { code: 7, .. }), "{error}");
        assert_eq!(
            scripted.calls(),
            ["first ADD", "second ADD", "second DEL", "first DEL"]
        );
        assert_eq!(Record::ids(&scripted.config).unwrap(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn del_uses_what_add_was_done_with() {
        let scripted = Scripted::new("echo '{}'", "echo '{}'");
        add(&scripted.config, &pod()).await.unwrap();
        fs_err::remove_file(scripted.config.conf_dir.join("10.conflist")).unwrap();
        assert_eq!(Record::ids(&scripted.config).unwrap(), ["pod1"]);
        del(&scripted.config, "pod1").await.unwrap();
        assert_eq!(scripted.calls()[2..], ["second DEL", "first DEL"]);
    }

    #[tokio::test]
    async fn del_waits_for_the_plugin_of_an_add_that_was_cut_short() {
        let scripted = Scripted::new(
            r#"[ "$CNI_COMMAND" = DEL ] && exit 0; sleep 0.5; echo late >> "${0%/*}/log"; echo '{}'"#,
            "echo '{}'",
        );
        // As a daemon that is killed: nobody waits for the plugin any more, and it goes on.
        let (_, list) = NetworkList::load(&scripted.config.conf_dir).unwrap();
        let record = Record {
            pod: pod(),
            list,
            result: None,
        };
        record.store(&scripted.config).unwrap();
        let lock = lock_add(&scripted.config, "pod1").unwrap();
        let mut plugin = std::process::Command::new(scripted.dir.path().join("first"));
        plugin
            .env("CNI_COMMAND", "ADD")
            .stdin(std::process::Stdio::null());
        crate::sys::spawn::detach(&mut plugin, None, vec![lock.into()]);
        let mut plugin = {
            let child = plugin.stdout(std::process::Stdio::null()).spawn().unwrap();
            drop(plugin);
            child
        };
        del(&scripted.config, "pod1").await.unwrap();
        assert_eq!(scripted.calls(), ["first ADD", "late", "second DEL", "first DEL"]);
        assert_eq!(fs_err::read_dir(&scripted.config.cache_dir).unwrap().count(), 0);
        plugin.wait().unwrap();
    }

    #[tokio::test]
    async fn a_del_that_fails_can_be_repeated() {
        let scripted = Scripted::new(
            r#"[ "$CNI_COMMAND" = DEL ] && [ ! -e "${0%/*}/ok" ] && exit 1; echo '{}'"#,
            "echo '{}'",
        );
        add(&scripted.config, &pod()).await.unwrap();
        assert!(del(&scripted.config, "pod1").await.is_err());
        fs_err::write(scripted.dir.path().join("ok"), "").unwrap();
        del(&scripted.config, "pod1").await.unwrap();
        assert!(Record::load(&scripted.config, "pod1").unwrap().is_none());
    }
}
