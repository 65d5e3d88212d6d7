//! What is asked of the containers of a sandbox, carried out by its owner task.
//!
//! `container::state` decides, `container::spec` translates; here the guest is told, the record written, the log kept.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use proto::cri::v1 as cri;
use tokio::sync::broadcast;

use super::{
    driver::Driver,
    error::{RequestError, chain},
    live::Live,
    node::new_id,
    room::Room,
    state::Input,
    stop_container::KILL_PATIENCE,
    view::ContainerView,
    volumes::VolumeUse,
};
use crate::{
    clock::now_ns,
    container::{
        host_spec,
        limits::Limits,
        mounts::{PlannedMount, Volume},
        signal,
        spec::{self, ContainerPlan, Surroundings},
        state::{Answer, Ask, ContainerState, Exited, WrongState, decide},
    },
    failpoint,
    guest::{Created, Exit, GuestError, GuestEvent, Phase},
    host::Kind,
    image::{Image, RunConfig},
    stdio::{ContainerLog, LogSpec, OutputEvent, ProcessId},
    store::ContainerRecord,
};

/// To learn whether the guest knows a container that does not end.
const GLANCE: Duration = Duration::from_millis(200);
/// containerd's code for a container that could not be started for another reason than its command.
const START_ERROR: i32 = 128;

/// A container as its sandbox's owner task has it.
#[derive(Debug)]
pub(crate) struct Container {
    pub(super) record: ContainerRecord,
    request: Arc<cri::CreateContainerRequest>,
    /// Until its output is complete, or its Machine is gone.
    pub(super) log: Option<ContainerLog>,
}

impl Container {
    pub(super) fn new(record: ContainerRecord, request: cri::CreateContainerRequest) -> Self {
        Self {
            record,
            request: Arc::new(request),
            log: None,
        }
    }

    pub(super) fn is_listed(&self) -> bool {
        self.record.state != ContainerState::Creating
    }

    pub(super) fn is_unfinished(&self) -> bool {
        !matches!(self.record.state, ContainerState::Exited(_))
    }

    /// Images that it needs as long as it is there.
    pub(super) fn image_ids(&self) -> impl Iterator<Item = &str> {
        let volumes = self.record.volumes.iter().filter_map(|used| match used {
            VolumeUse::Image { image_id, .. } => Some(image_id.as_str()),
            _ => None,
        });
        volumes.chain([self.record.image_id.as_str()])
    }

    fn config(&self) -> cri::ContainerConfig {
        self.request.config.clone().unwrap_or_default()
    }

    pub(super) fn view(&self) -> Arc<ContainerView> {
        let record = self.record.clone();
        Arc::new(ContainerView {
            id: record.id,
            sandbox_id: record.sandbox_id,
            request: Arc::clone(&self.request),
            created_at: record.created_at,
            state: record.state,
            image_id: record.image_id,
            image_ref: record.image_ref,
            image: record.image,
            user: record.user,
            log_path: record.log_path,
            volumes: record.volumes,
            stop_signal: record.stop_signal,
            updated: record.updated,
            shown: record.shown,
        })
    }

    /// The limits that are asked for.
    pub(super) fn wanted(&self) -> Limits {
        let asked = || {
            let linux = self.config().linux.unwrap_or_default();
            linux.resources.as_ref().map(Limits::from).unwrap_or_default()
        };
        self.record.updated.clone().unwrap_or_else(asked)
    }

    pub(super) fn process(&self) -> ProcessId {
        ProcessId {
            container_id: self.record.id.clone(),
            exec_id: None,
        }
    }
}

impl Driver {
    /// CreateContainer.
    pub(super) async fn create_container(
        &mut self,
        request: cri::CreateContainerRequest,
    ) -> Result<String, RequestError> {
        self.transition(Input::Use).await?;
        let config = request
            .config
            .clone()
            .ok_or_else(|| RequestError::invalid("config", "missing"))?;
        self.refuse_taken_name(&config)?;
        let wanted = config.image.clone().unwrap_or_default().image;
        let image = self.node.images.resolve(&wanted).ok_or(RequestError::NotFound {
            kind: "image",
            id: wanted,
        })?;
        let id = new_id()?;
        let pod = self.request.config.clone().unwrap_or_default();
        let limits = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
        // A limit above what the host has is no mistake: it is what the pod may use, not what it was promised.
        self.make_room(
            &id,
            &limits.map(Limits::from).unwrap_or_default(),
            &Room::default(),
        )
        .await?;
        let plan = self.plan_container(&id, &config, &pod, &image.config).await?;
        let volumes = self.assign_volumes(&plan.mounts)?;
        let record = ContainerRecord {
            id: id.clone(),
            sandbox_id: self.record.id.clone(),
            created_at: now_ns(),
            state: ContainerState::Creating,
            image_id: image.id.clone(),
            image_ref: image.repo_digests.first().unwrap_or(&image.id).clone(),
            image: image.config.clone(),
            user: None,
            log_path: plan.log_path.clone(),
            termination_log: plan.termination_log.clone(),
            volumes,
            stop_signal: signal::stop_signal(config.stop_signal(), &image.config.stop_signal),
            updated: None,
            shown: None,
        };
        self.node
            .store
            .add_container(&record, &request)
            .await
            .map_err(RequestError::failed("reserve the container"))?;
        failpoint::reached("create.reserved").await;
        self.containers
            .insert(id.clone(), Container::new(record, request));
        match self.make(&id, plan, &image).await {
            Ok(()) => {
                self.weigh_for_oom_killer();
                Ok(id)
            }
            Err(error) => {
                let error = match &self.live {
                    Some(live) => live.cause(&self.plan, error).await,
                    None => error,
                };
                self.unmake(&id).await;
                self.give_room_back().await;
                Err(error)
            }
        }
    }

    /// What is asked for as it is to be made, in a Machine or on the host.
    async fn plan_container(
        &self,
        id: &str,
        config: &cri::ContainerConfig,
        pod: &cri::PodSandboxConfig,
        image: &RunConfig,
    ) -> Result<ContainerPlan, RequestError> {
        let defaults = &self.node.config.container;
        match self.plan.kind {
            Kind::Machine => {
                let around = Surroundings {
                    sandbox: pod,
                    vcpus: self.live()?.size.vcpus,
                    id_map: self.plan.id_map,
                    image,
                    defaults,
                    memory_homes: &self.live()?.shared.memory_homes,
                };
                spec::plan(id, config, &around).await
            }
            Kind::Host(host) => host_spec::plan(id, config, pod, image, defaults, host).await,
        }
    }

    pub(super) fn live_mut(&mut self) -> Result<&mut Live, RequestError> {
        self.live.as_mut().ok_or_else(|| not_ready(&self.record.id))
    }

    fn refuse_taken_name(&self, config: &cri::ContainerConfig) -> Result<(), RequestError> {
        let metadata = config
            .metadata
            .as_ref()
            .filter(|metadata| !metadata.name.is_empty())
            .ok_or_else(|| RequestError::invalid("config.metadata.name", "missing"))?;
        let holder = self
            .containers
            .values()
            .find(|container| container.config().metadata.as_ref() == Some(metadata));
        match holder {
            None => Ok(()),
            Some(holder) => Err(RequestError::NameTaken {
                kind: "container",
                name: format!("{} (attempt {})", metadata.name, metadata.attempt),
                holder: holder.record.id.clone(),
            }),
        }
    }

    /// Layers, the guest's part, the log.
    async fn make(&mut self, id: &str, plan: ContainerPlan, image: &Image) -> Result<(), RequestError> {
        let images = Arc::clone(&self.node.images);
        let live = self.live.as_mut().ok_or_else(|| not_ready(&self.record.id))?;
        live.hold(&image.id, || Some(images.lease(image)));
        let mut request = plan.request;
        let generations = followed(&plan.mounts);
        let terminal = request.process.as_ref().is_some_and(|process| process.terminal);
        request.layers = live.add_layers(image, &self.node.config.machine).await?;
        failpoint::reached("create.layers").await;
        let uses = self.container(id)?.record.volumes.clone();
        request
            .mounts
            .extend(self.attach_volumes(plan.mounts, &uses).await?);
        request.devices.extend(self.attach_devices(plan.devices).await?);
        failpoint::reached("create.volumes").await;
        let Created { user, actual, .. } = self
            .live()?
            .guest
            .create_container(request)
            .await
            .map_err(RequestError::guest(format!("create container {id}")))?;
        failpoint::reached("create.made").await;
        let log = ContainerLog::open(self.log_spec(id, terminal)?)
            .await
            .map_err(RequestError::failed("open the container's log"))?;
        let container = self.container_mut(id)?;
        container.log = Some(log);
        container.record.user = user;
        container.record.shown = Some(container.wanted().shown(&actual));
        container.record.state = ContainerState::Created;
        self.follow_volumes(&generations);
        self.put_container(id).await
    }

    fn log_spec(&self, id: &str, terminal: bool) -> Result<LogSpec, RequestError> {
        let live = self.live.as_ref().ok_or_else(|| not_ready(&self.record.id))?;
        Ok(LogSpec {
            dialer: live.dialer.clone(),
            container_id: id.to_owned(),
            terminal,
            log_path: self.container(id)?.record.log_path.clone(),
            // In the Machine's directory: it is needed as long as the guest keeps the output.
            position_path: self.plan.layout.directory().join(format!("log-{id}.json")),
        })
    }

    /// Containers that the last daemon did not get to make: nobody has their ids.
    pub(super) async fn unmake_half_made(&mut self) {
        let half_made = self
            .containers
            .iter()
            .filter(|(_, container)| !container.is_listed());
        let ids: Vec<_> = half_made.map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.unmake(&id).await;
        }
    }

    /// A container that was not made entirely leaves nothing.
    async fn unmake(&mut self, id: &str) {
        self.containers.remove(id);
        if let Some(live) = &self.live
            && let Err(error) = live.guest.remove_container(id).await
        {
            tracing::warn!(
                container = id,
                error = chain(&error),
                "the guest may keep a part of the container"
            );
        }
        self.release_volumes().await;
        if let Err(error) = self.node.store.forget_container(id).await {
            tracing::error!(container = id, %error, "could not be forgotten");
        }
    }

    /// StartContainer.
    pub(super) async fn start_container(&mut self, id: &str) -> Result<(), RequestError> {
        self.transition(Input::Use).await?;
        self.check(id, Ask::Start, "start")?;
        let error = match self.live()?.guest.start_container(id).await {
            Ok(_guests_clock) => {
                // By the host's clock: the guest's may say anything.
                let started_at = now_ns();
                self.container_mut(id)?.record.state = ContainerState::Running { started_at };
                return self.put_container(id).await;
            }
            Err(error) => error,
        };
        // After a refusal it will never run; after a lost answer the guest's next event tells.
        if let GuestError::Refused { .. } = &error {
            let code = error.exec_exit_code().unwrap_or(START_ERROR);
            let exited = Exited::never_started(now_ns(), code, chain(&error));
            self.mark_exited(id, exited).await;
        }
        Err(RequestError::guest(format!("start container {id}"))(error))
    }

    /// RemoveContainer.
    pub(super) async fn remove_container(&mut self, id: &str) -> Result<(), RequestError> {
        if !self.containers.contains_key(id) {
            return Ok(());
        }
        if self.check(id, Ask::Remove, "remove")? == Answer::KillFirst && self.live.is_some() {
            self.signal(id, signal::KILL, true).await?;
            let process = self.container(id)?.process();
            let exit = self.live()?.guest.wait(&process, KILL_PATIENCE).await;
            let exit = exit.map_err(RequestError::guest(format!("kill container {id}")))?;
            self.exited(id, &exit).await;
        }
        self.finish_log(id).await;
        if let Some(live) = &self.live {
            live.guest
                .remove_container(id)
                .await
                .map_err(RequestError::guest(format!("remove container {id}")))?;
        }
        self.node
            .store
            .forget_container(id)
            .await
            .map_err(RequestError::failed("forget the container"))?;
        self.containers.remove(id);
        self.release_volumes().await;
        self.give_room_back().await;
        self.weigh_for_oom_killer();
        Ok(())
    }

    /// Output that a container has written is in its log before the guest forgets it; a container that never ran has none.
    async fn finish_log(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        // One that never ran keeps it: the guest may refuse to remove it, and then it may be started still.
        if container.record.state.started_at() == 0 {
            return;
        }
        if let Some(log) = container.log.take() {
            let end = log.finish(self.node.config.deadlines.drain()).await;
            tracing::debug!(container = id, ?end, "log finished");
        }
    }

    /// ReopenContainerLog.
    pub(super) async fn reopen_log(&self, id: &str) -> Result<(), RequestError> {
        self.check(id, Ask::ReopenLog, "reopen the log of")?;
        let container = self.container(id)?;
        let log = container.log.as_ref().ok_or_else(|| RequestError::WrongState {
            operation: format!("reopen the log of container {id}"),
            reason: "it has ended".to_owned(),
        })?;
        log.reopen()
            .await
            .map_err(RequestError::failed("reopen the container's log"))
    }

    /// For a client that attaches.
    pub(super) fn follow_output(
        &self,
        id: &str,
    ) -> Result<Option<broadcast::Receiver<OutputEvent>>, RequestError> {
        self.check(id, Ask::Exec, "attach to")?;
        let log = self.container(id)?.log.as_ref();
        Ok(log.and_then(ContainerLog::subscribe))
    }

    /// What the guest tells.
    pub(super) async fn guest_event(&mut self, event: GuestEvent) {
        match event {
            GuestEvent::Exited { container_id, exit } => self.exited(&container_id, &exit).await,
            GuestEvent::Oom { container_id } => {
                tracing::info!(
                    container = container_id,
                    "a process of the container was killed for memory"
                );
            }
            GuestEvent::Snapshot(reports) => {
                for report in &reports {
                    match &report.phase {
                        Phase::Created => {}
                        Phase::Running { .. } => self.runs(&report.container_id).await,
                        Phase::Exited { exit, .. } => self.exited(&report.container_id, exit).await,
                    }
                }
                self.reconcile(reports.into_iter().map(|report| report.container_id).collect())
                    .await;
            }
        }
    }

    /// The guest runs a container that we know as created: the daemon was killed between telling and recording.
    async fn runs(&mut self, id: &str) {
        if let Some(container) = self.containers.get_mut(id)
            && container.record.state == ContainerState::Created
        {
            container.record.state = ContainerState::Running { started_at: now_ns() };
            self.store_container(id).await;
        }
    }

    /// What only one side knows: the guest's forgotten containers go, ours that the guest lost end. None is half made: that is
    /// over before anything of the guest is heard ([`Self::unmake_half_made`]).
    async fn reconcile(&mut self, in_guest: std::collections::BTreeSet<String>) {
        let ours: Vec<(String, ContainerState)> = self
            .containers
            .values()
            .map(|container| (container.record.id.clone(), container.record.state.clone()))
            .collect();
        for (id, state) in &ours {
            match state {
                ContainerState::Created | ContainerState::Running { .. } if !in_guest.contains(id) => {
                    self.ask_after(id, state.started_at()).await;
                }
                _ => {}
            }
        }
        let Some(guest) = self.live.as_ref().map(|live| live.guest.clone()) else {
            return;
        };
        for id in in_guest.difference(&ours.iter().map(|(id, _)| id.clone()).collect()) {
            if let Err(error) = guest.remove_container(id).await {
                tracing::warn!(
                    container = id,
                    error = chain(&error),
                    "an unknown container stays in the guest"
                );
            }
        }
    }

    /// A snapshot may be older than a container that it does not name, so the guest is asked.
    async fn ask_after(&mut self, id: &str, started_at: i64) {
        let (Ok(live), Ok(container)) = (self.live(), self.container(id)) else {
            return;
        };
        match live.guest.wait(&container.process(), GLANCE).await {
            Ok(exit) => self.exited(id, &exit).await,
            Err(error) if error.is_not_found() => {
                let message = "the guest does not know the container";
                let exited = Exited::with_machine(started_at, now_ns(), message);
                self.mark_exited(id, exited).await;
            }
            Err(error) => tracing::debug!(container = id, error = chain(&error), "the container goes on"),
        }
    }

    /// A container's process has ended. Told again, it changes nothing.
    pub(super) async fn exited(&mut self, id: &str, exit: &Exit) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        if !container.is_unfinished() || container.record.state == ContainerState::Creating {
            return;
        }
        let started_at = container.record.state.started_at();
        if let (Some(path), false) = (
            &container.record.termination_log,
            exit.termination_message.is_empty(),
        ) && let Err(error) = fs_err::tokio::write(path, &exit.termination_message).await
        {
            tracing::warn!(container = id, %error, "the termination message is lost");
        }
        let mut exited = Exited::by_itself(started_at, exit);
        // The guest's clock may say anything; it is believed as far as it can be.
        exited.finished_at = exited.finished_at.clamp(started_at, now_ns().max(started_at));
        self.mark_exited(id, exited).await;
    }

    /// Records an end and tells whoever waits for it.
    pub(super) async fn mark_exited(&mut self, id: &str, exited: Exited) {
        if let Some(container) = self.containers.get_mut(id) {
            container.record.state = ContainerState::Exited(exited);
            self.store_container(id).await;
            self.publish();
        }
        for reply in self
            .stopping
            .remove(id)
            .into_iter()
            .flat_map(|stopping| stopping.replies)
        {
            drop(reply.send(Ok(())));
        }
    }

    /// Resumes the logs of a recovered sandbox's containers.
    pub(crate) fn resume_logs(&mut self) {
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        for id in ids {
            let Some(container) = self.containers.get(&id).filter(|container| container.is_listed()) else {
                continue;
            };
            let terminal = container.config().tty;
            if let Ok(spec) = self.log_spec(&id, terminal)
                && let Some(container) = self.containers.get_mut(&id)
            {
                container.log = Some(ContainerLog::resume(spec));
            }
        }
    }

    /// Ends of containers are facts: they are kept in memory even if they cannot be stored; the guest's snapshot or the
    /// Machine's end tells them again after a restart.
    async fn store_container(&self, id: &str) {
        if let Err(error) = self.put_container(id).await {
            tracing::error!(container = id, error = chain(&error), "not recorded");
        }
    }

    pub(super) async fn put_container(&self, id: &str) -> Result<(), RequestError> {
        let record = &self.container(id)?.record;
        self.node
            .store
            .put_container(record)
            .await
            .map_err(RequestError::failed("record the container's state"))
    }

    pub(super) fn check(&self, id: &str, ask: Ask, verb: &str) -> Result<Answer, RequestError> {
        decide(&self.container(id)?.record.state, ask).map_err(|WrongState(reason)| {
            RequestError::WrongState {
                operation: format!("{verb} container {id}"),
                reason: reason.to_owned(),
            }
        })
    }

    pub(super) fn container(&self, id: &str) -> Result<&Container, RequestError> {
        self.containers.get(id).ok_or_else(|| unknown(id))
    }

    pub(super) fn container_mut(&mut self, id: &str) -> Result<&mut Container, RequestError> {
        self.containers.get_mut(id).ok_or_else(|| unknown(id))
    }

    pub(super) fn live(&self) -> Result<&Live, RequestError> {
        self.live.as_ref().ok_or_else(|| not_ready(&self.record.id))
    }
}

/// Which generation of each followed volume the guest gets.
fn followed(mounts: &[PlannedMount]) -> BTreeMap<PathBuf, String> {
    let followed = mounts.iter().filter_map(|planned| match &planned.volume {
        Volume::Followed { path, source } => Some((path.clone(), source.generation.clone())),
        _ => None,
    });
    followed.collect()
}

fn unknown(id: &str) -> RequestError {
    RequestError::NotFound {
        kind: "container",
        id: id.to_owned(),
    }
}

pub(super) fn not_ready(sandbox_id: &str) -> RequestError {
    RequestError::WrongState {
        operation: format!("use sandbox {sandbox_id}"),
        reason: "its machine does not run".to_owned(),
    }
}
