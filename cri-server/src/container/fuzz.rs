//! A container's configuration as any client may send it, through all that judges it before a path of the host is opened.

use futures_util::FutureExt as _;
use proto::cri::v1 as cri;

use super::{devices, kubelet_path, limits::Limits, mounts, seccomp::Kernel, signal, spec};
use crate::{config::ContainerDefaults, image::RunConfig, sandbox::RequestError};

const VCPUS: u8 = 2;

/// What is accepted keeps to what the agent and the host rely on.
///
/// # Panics
/// When it does not.
pub(crate) fn judge(mut config: cri::ContainerConfig, sandbox: &cri::PodSandboxConfig) {
    // A profile of the host would be read: any file, and for ever if it is a pipe.
    if let Some(security) = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
        && let Some(profile) = &mut security.seccomp
    {
        profile.localhost_ref.clear();
    }
    // Each judges for itself: an early refusal is not to hide the others.
    drop(spec::refuse_unsupported(&config));
    drop(process(&config));
    drop(resources(&config));
    files(&config);
    if let Ok(Some(path)) = spec::log_path(sandbox, &config) {
        assert!(path.starts_with(&sandbox.log_directory), "{}", path.display());
    }
}

fn process(config: &cri::ContainerConfig) -> Result<(), RequestError> {
    let security = config.linux.clone().unwrap_or_default().security_context;
    drop(spec::namespaces(&security.unwrap_or_default(), None));
    let image = RunConfig::default();
    let defaults = ContainerDefaults::default();
    let request = spec::common("c1", config, &image, &defaults, Kernel::Guest)
        .now_or_never()
        .expect("without a profile of the host nothing is waited for")?;
    let process = request.process.expect("a container has a process");
    assert!(process.args.first().is_some_and(|program| !program.is_empty()));
    assert!((-1000..=1000).contains(&process.oom_score_adj));
    let number = signal::stop_signal(config.stop_signal(), &config.log_path);
    assert!((1..=64).contains(&number), "signal {number}");
    Ok(())
}

fn resources(config: &cri::ContainerConfig) -> Result<(), RequestError> {
    let wish = config
        .linux
        .clone()
        .and_then(|linux| linux.resources)
        .unwrap_or_default();
    let limits = Limits::from(&wish);
    let request = spec::resources(Some(&wish), VCPUS)?;
    assert!(request.cpu_weight <= 10_000, "weight {}", request.cpu_weight);
    // As after UpdateContainerResources with the same once more, in a guest that took all of it.
    let changed = limits.changed(&limits);
    drop(changed.shown(&request).to_cri());
    Ok(())
}

fn files(config: &cri::ContainerConfig) {
    for (index, mount) in config.mounts.iter().enumerate() {
        if mounts::check(&format!("mounts[{index}]"), mount).is_ok() {
            assert!(mount.container_path.starts_with('/'));
        }
        drop(kubelet_path::recognize(mount.host_path.as_ref()));
    }
    for device in &config.devices {
        if matches!(devices::access("devices", &device.permissions), Ok(true)) {
            assert!(!device.permissions.contains('w'));
        }
    }
}
