//! `[host_pods]` of the configuration: off until the operator turns it on.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

/// The shim's program, beside the daemon's.
const SHIM: &str = "clearpod-shim";

/// Whether and how pods run in the host's namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostPodsConfig {
    /// Sandboxes that ask for the host's network, PID or IPC namespace run; else they are refused.
    pub enabled: bool,
    /// Privileged sandboxes run there, too; else they are privileged in their Machine.
    pub privileged: bool,
    /// The OCI runtime, crun or runc: an absolute path, or a name to be found in PATH.
    pub runtime: PathBuf,
    /// The shim's program; `clearpod-shim` beside the daemon's when unset.
    pub shim: Option<PathBuf>,
}

impl Default for HostPodsConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            privileged: false,
            runtime: "crun".into(),
            shim: None,
        }
    }
}

impl HostPodsConfig {
    /// Checks what the types cannot: the field's dotted name, and what is wrong.
    pub(crate) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.privileged && !self.enabled {
            return Err(("host_pods.privileged", "needs host_pods.enabled"));
        }
        if !self.runtime.is_absolute() && !is_name(&self.runtime) {
            return Err(("host_pods.runtime", "must be an absolute path or a plain name"));
        }
        if self.shim.as_ref().is_some_and(|shim| !shim.is_absolute()) {
            return Err(("host_pods.shim", "must be an absolute path"));
        }
        Ok(())
    }

    /// The shim's program.
    pub(crate) fn shim(&self) -> PathBuf {
        self.shim.clone().unwrap_or_else(|| {
            let beside = std::env::current_exe().ok();
            let directory = beside.as_deref().and_then(Path::parent);
            directory.unwrap_or(Path::new("/usr/libexec/clearpod")).join(SHIM)
        })
    }

    /// The OCI runtime's absolute path; `None` when it is not there.
    pub(crate) fn find_runtime(&self) -> Option<PathBuf> {
        if self.runtime.is_absolute() {
            return self.runtime.is_file().then(|| self.runtime.clone());
        }
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|directory| directory.join(&self.runtime))
            .find(|program| program.is_absolute() && program.is_file())
    }
}

fn is_name(path: &Path) -> bool {
    let mut parts = path.components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_in_path_and_a_path_must_exist() {
        let with = |runtime: &str| HostPodsConfig {
            runtime: runtime.into(),
            ..HostPodsConfig::default()
        };
        assert!(with("sh").find_runtime().is_some_and(|path| path.is_absolute()));
        assert_eq!(with("no-such-runtime").find_runtime(), None);
        assert_eq!(with("/no/such/runtime").find_runtime(), None);
    }

    #[test]
    fn the_shim_is_beside_the_daemon_unless_it_is_named() {
        let beside = HostPodsConfig::default().shim();
        assert_eq!(beside.parent(), std::env::current_exe().unwrap().parent());
        let named = HostPodsConfig {
            shim: Some("/x/shim".into()),
            ..HostPodsConfig::default()
        };
        assert_eq!(named.shim(), Path::new("/x/shim"));
    }
}
