//! Views as CRI messages, and CRI filters. Pure.

use std::collections::HashMap;

use proto::cri::v1 as cri;

use crate::{
    container::{
        signal,
        state::{ContainerState, Exited},
    },
    image::{Image, ImageUser},
    sandbox::{ContainerView, RequestError, SandboxView, VolumeUse},
};

pub(super) fn sandbox_state(view: &SandboxView) -> cri::PodSandboxState {
    if view.state.is_ready() {
        cri::PodSandboxState::SandboxReady
    } else {
        cri::PodSandboxState::SandboxNotready
    }
}

pub(super) fn sandbox(view: &SandboxView) -> cri::PodSandbox {
    let config = view.config();
    cri::PodSandbox {
        id: view.id.clone(),
        metadata: config.metadata,
        state: sandbox_state(view).into(),
        created_at: view.created_at,
        labels: config.labels,
        annotations: config.annotations,
        runtime_handler: view.request.runtime_handler.clone(),
    }
}

pub(super) fn sandbox_status(view: &SandboxView) -> cri::PodSandboxStatus {
    let config = view.config();
    let security = config.linux.and_then(|linux| linux.security_context);
    // The address of a Machine that is gone may belong to another pod by now.
    let ips = if view.state.is_ready() {
        view.ips.as_slice()
    } else {
        &[]
    };
    let mut ips = ips.iter().map(ToString::to_string);
    cri::PodSandboxStatus {
        id: view.id.clone(),
        metadata: config.metadata,
        state: sandbox_state(view).into(),
        created_at: view.created_at,
        network: Some(cri::PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| cri::PodIp { ip }).collect(),
        }),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace {
                options: Some(
                    security
                        .and_then(|security| security.namespace_options)
                        .unwrap_or_default(),
                ),
            }),
        }),
        labels: config.labels,
        annotations: config.annotations,
        runtime_handler: view.request.runtime_handler.clone(),
    }
}

pub(super) fn container_state(state: &ContainerState) -> cri::ContainerState {
    match state {
        ContainerState::Creating | ContainerState::Created => cri::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => cri::ContainerState::ContainerRunning,
        ContainerState::Exited(_) => cri::ContainerState::ContainerExited,
    }
}

/// The image as the client named it.
fn image_spec(config: &cri::ContainerConfig) -> cri::ImageSpec {
    let mut spec = config.image.clone().unwrap_or_default();
    if !spec.user_specified_image.is_empty() {
        spec.image.clone_from(&spec.user_specified_image);
    }
    spec
}

pub(super) fn container(view: &ContainerView) -> cri::Container {
    let config = view.config();
    cri::Container {
        id: view.id.clone(),
        pod_sandbox_id: view.sandbox_id.clone(),
        image: Some(image_spec(&config)),
        metadata: config.metadata,
        image_ref: view.image_ref.clone(),
        state: container_state(&view.state).into(),
        created_at: view.created_at,
        labels: config.labels,
        annotations: config.annotations,
        image_id: view.image_id.clone(),
    }
}

pub(super) fn container_status(view: &ContainerView) -> cri::ContainerStatus {
    let config = view.config();
    let image = image_spec(&config);
    let (finished_at, exit_code, reason, message) = match &view.state {
        ContainerState::Exited(Exited {
            finished_at,
            exit_code,
            reason,
            message,
            ..
        }) => (*finished_at, *exit_code, reason.clone(), message.clone()),
        ContainerState::Creating | ContainerState::Created | ContainerState::Running { .. } => {
            Default::default()
        }
    };
    let log_path = view.log_path.as_ref().map(|path| path.display().to_string());
    cri::ContainerStatus {
        id: view.id.clone(),
        metadata: config.metadata,
        state: container_state(&view.state).into(),
        created_at: view.created_at,
        started_at: view.state.started_at(),
        finished_at,
        exit_code,
        image: Some(image),
        image_ref: view.image_ref.clone(),
        reason,
        message,
        labels: config.labels,
        annotations: config.annotations,
        mounts: mounts(config.mounts, &view.volumes),
        log_path: log_path.unwrap_or_default(),
        resources: Some(cri::ContainerResources {
            linux: view.limits(),
            windows: None,
        }),
        image_id: view.image_id.clone(),
        user: view.user.as_ref().map(|(uid, gid, groups)| cri::ContainerUser {
            linux: Some(cri::LinuxContainerUser {
                uid: i64::from(*uid),
                gid: i64::from(*gid),
                supplemental_groups: groups.iter().map(|group| i64::from(*group)).collect(),
            }),
        }),
        stop_signal: signal::to_cri(view.stop_signal).into(),
    }
}

/// As they were asked for; those of images with what PullImage said of the image.
fn mounts(mut mounts: Vec<cri::Mount>, volumes: &[VolumeUse]) -> Vec<cri::Mount> {
    for used in volumes {
        if let VolumeUse::Image {
            container_path,
            image_id,
        } = used
            && let Some(mount) = mounts
                .iter_mut()
                .find(|mount| mount.container_path == *container_path)
            && let Some(image) = &mut mount.image
        {
            image.image_ref.clone_from(image_id);
        }
    }
    mounts
}

/// Of all containers of a sandbox.
pub(super) fn container_statuses(view: &SandboxView) -> Vec<cri::ContainerStatus> {
    let containers = view.containers.iter();
    containers.map(|container| container_status(container)).collect()
}

pub(super) fn image(image: &Image) -> cri::Image {
    let (uid, username) = match &image.user {
        ImageUser::Unset => (Some(0), String::new()),
        ImageUser::Uid(uid) => (Some(*uid), String::new()),
        ImageUser::Name(name) => (None, name.clone()),
    };
    cri::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: uid.map(|value| cri::Int64Value { value }),
        username,
        spec: None,
        pinned: image.pinned,
    }
}

/// What is to be gone and is not known is gone: kubelet repeats Stop and Remove.
pub(super) fn gone_is_done(result: Result<(), RequestError>) -> Result<(), RequestError> {
    match result {
        Err(RequestError::NotFound { .. }) => Ok(()),
        result => result,
    }
}

/// Every label that is selected is there with that value.
fn labels_match(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

pub(super) fn sandbox_matches(filter: &cri::PodSandboxFilter, item: &cri::PodSandbox) -> bool {
    item.id.starts_with(&filter.id)
        && filter.state.is_none_or(|wanted| wanted.state == item.state)
        && labels_match(&filter.label_selector, &item.labels)
}

pub(super) fn container_stats_match(filter: &cri::ContainerStatsFilter, view: &ContainerView) -> bool {
    view.id.starts_with(&filter.id)
        && view.sandbox_id.starts_with(&filter.pod_sandbox_id)
        && labels_match(&filter.label_selector, &view.config().labels)
}

pub(super) fn sandbox_stats_match(filter: &cri::PodSandboxStatsFilter, view: &SandboxView) -> bool {
    view.is_listed()
        && view.id.starts_with(&filter.id)
        && labels_match(&filter.label_selector, &view.config().labels)
}

pub(super) fn container_matches(filter: &cri::ContainerFilter, item: &cri::Container) -> bool {
    item.id.starts_with(&filter.id)
        && item.pod_sandbox_id.starts_with(&filter.pod_sandbox_id)
        && filter.state.is_none_or(|wanted| wanted.state == item.state)
        && labels_match(&filter.label_selector, &item.labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn filters_are_exact_on_labels_and_states_and_short_on_ids() {
        let item = cri::Container {
            id: "abcdef".to_owned(),
            pod_sandbox_id: "123456".to_owned(),
            state: cri::ContainerState::ContainerRunning.into(),
            labels: labels(&[("app", "web"), ("tier", "front")]),
            ..cri::Container::default()
        };
        let matches = |id: &str, state: Option<cri::ContainerState>, selector: &[(&str, &str)]| {
            let filter = cri::ContainerFilter {
                id: id.to_owned(),
                state: state.map(|state| cri::ContainerStateValue { state: state.into() }),
                pod_sandbox_id: String::new(),
                label_selector: labels(selector),
            };
            container_matches(&filter, &item)
        };
        assert!(matches("", None, &[]) && matches("abc", None, &[("app", "web")]));
        assert!(!matches("bcd", None, &[]) && !matches("", None, &[("app", "we")]));
        assert!(matches("", Some(cri::ContainerState::ContainerRunning), &[]));
        assert!(!matches("", Some(cri::ContainerState::ContainerCreated), &[]));
    }
}
