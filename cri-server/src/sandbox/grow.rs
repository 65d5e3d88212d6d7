//! A Machine that becomes larger or smaller while it runs. Memory is plugged through a virtio-mem device, which comes when it is
//! first needed; processors that the guest knows of are brought online and stay. On the host the Machine's cgroup lets it have
//! what it was granted before the guest can take it.

use std::time::Duration;

use proto::machine::Device;
use tokio::time::{Instant, sleep};

use super::{
    driver::Driver,
    error::{RequestError, chain},
    live::{Live, MEMORY},
    plan::{SandboxPlan, machine_bytes},
    room::{Demand, Room, Size},
};
use crate::{
    container::limits::Limits,
    host::Kind,
    machine::{CgroupLimits, ControlClient},
};

const GROW: &str = "make the machine larger";
/// The guest plugs a GiB within a fraction of a second; this is a node under heavy load.
const PLUGGED_WITHIN: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

impl Driver {
    /// Makes the Machine as large as its containers need it with `new` in the place of what `id` has now.
    pub(super) async fn make_room(
        &mut self,
        id: &str,
        new: &Limits,
        asked: &Room,
    ) -> Result<(), RequestError> {
        if self.plan.kind != Kind::Machine {
            return Ok(());
        }
        asked.fits(Size::most(&self.plan))?;
        let target = self.least_size(Some((id, new)))?;
        self.grow(target).await
    }

    /// For what the pod as a whole may use from now on, `overhead` being the guest's part of it.
    pub(super) async fn make_room_for_pod(
        &mut self,
        resources: &Limits,
        overhead: &Limits,
        asked: &Room,
    ) -> Result<(), RequestError> {
        if self.plan.kind != Kind::Machine {
            return Ok(());
        }
        let most = Size::most(&self.plan);
        asked.fits(most)?;
        let extra = match u64::try_from(overhead.memory) {
            Ok(bytes @ 1..) => bytes.div_ceil(1 << 20),
            _ => self.node.config.machine.memory_overhead_mib,
        };
        let pod = Demand::of([resources.clone()]).size(extra, most);
        let target = self.least_size(None)?.max(pod);
        self.grow(target).await?;
        self.live_mut()?.pod_size = pod;
        Ok(())
    }

    /// Takes back what is not needed any more, as far as the guest lets it go.
    pub(super) async fn give_room_back(&mut self) {
        let Ok(target) = self.least_size(None) else {
            return;
        };
        let plan = &self.plan;
        if let Some(live) = &mut self.live
            && let Err(error) = live.shrink(plan, target).await
        {
            tracing::warn!(
                sandbox = plan.id,
                error = chain(&error),
                "the machine stays as large as it is"
            );
        }
    }

    /// What the Machine must have: what it started with, what the pod was granted, what its containers have together.
    fn least_size(&self, new: Option<(&str, &Limits)>) -> Result<Size, RequestError> {
        let others = self
            .containers
            .values()
            .filter(|container| container.is_unfinished())
            .filter(|container| new.is_none_or(|(id, _)| container.record.id != id))
            .map(|container| container.wanted());
        let demand = Demand::of(others.chain(new.map(|(_, limits)| limits.clone())));
        let overhead = self.node.config.machine.memory_overhead_mib;
        let containers = demand.size(overhead, Size::most(&self.plan));
        let least = Size::planned(&self.plan).max(self.live()?.pod_size);
        Ok(least.max(containers))
    }

    async fn grow(&mut self, target: Size) -> Result<(), RequestError> {
        let now = self.live()?.size;
        if target.memory_mib > now.memory_mib {
            self.allow_on_host(target).await?;
        }
        let plan = &self.plan;
        let live = self
            .live
            .as_mut()
            .ok_or_else(|| RequestError::failed(GROW)("it has ended"))?;
        live.plug(plan, target).await?;
        live.bring_online(target.vcpus).await
    }

    async fn allow_on_host(&self, target: Size) -> Result<(), RequestError> {
        let Some(cgroup) = self.plan.cgroup.clone() else {
            return Ok(());
        };
        let limits = CgroupLimits {
            memory_max_bytes: Some(machine_bytes(target.memory_mib, &self.node.config)),
            ..CgroupLimits::default()
        };
        super::resize::on_cgroup(cgroup, move |cgroup| cgroup.cgroup.limit(&limits)).await
    }
}

impl Live {
    /// A Machine that was taken over may have grown: its VMM and its guest know how far.
    pub(super) async fn recall_size(&mut self, plan: &SandboxPlan) {
        let most = Size::most(plan);
        if self.device(MEMORY).is_ok()
            && let Some(control) = &self.control
            && let Ok(stats) = control.stats().await
        {
            let plugged = stats.memory.map_or(0, |memory| memory.requested_mib);
            self.size.memory_mib = plan.memory_mib.saturating_add(plugged).min(most.memory_mib);
        }
        if plan.vcpus_possible > plan.vcpus
            && let Ok(info) = self.guest.info().await
        {
            let online = u8::try_from(info.cpus_online).unwrap_or(u8::MAX);
            self.size.vcpus = online.clamp(plan.vcpus, most.vcpus);
        }
        // What the pod was granted is not known any more: nothing is taken from it before it is told again.
        self.pod_size = self.size;
    }

    async fn plug(&mut self, plan: &SandboxPlan, target: Size) -> Result<(), RequestError> {
        if target.memory_mib <= self.size.memory_mib {
            return Ok(());
        }
        let planned = Size::planned(plan);
        if self.device(MEMORY).is_err() {
            let id = MEMORY.to_owned();
            self.add_device(MEMORY, Device::Memory { id }, None).await?;
        }
        let address = self.device(MEMORY)?.to_owned();
        let used = self.guest.resize(self.size.vcpus, Some(&address)).await;
        used.map_err(RequestError::guest(GROW))?;
        let control = self.control()?;
        let (before, after) = (self.size.plugged_mib(planned), target.plugged_mib(planned));
        control
            .resize_memory(after)
            .await
            .map_err(RequestError::failed(GROW))?;
        if let Err(error) = plugged(control, after).await {
            // The guest has more than it had at most; it is asked to give that back.
            if let Err(error) = control.resize_memory(before).await {
                tracing::warn!(
                    sandbox = plan.id,
                    error = chain(&error),
                    "the wish for memory stays"
                );
            }
            return Err(error);
        }
        self.size.memory_mib = plan.memory_mib.saturating_add(after);
        Ok(())
    }

    async fn bring_online(&mut self, vcpus: u8) -> Result<(), RequestError> {
        if vcpus > self.size.vcpus {
            let online = self.guest.resize(vcpus, None).await;
            online.map_err(RequestError::guest(GROW))?;
            self.size.vcpus = vcpus;
        }
        Ok(())
    }

    async fn shrink(&mut self, plan: &SandboxPlan, target: Size) -> Result<(), RequestError> {
        let planned = Size::planned(plan);
        let after = target.plugged_mib(planned);
        if after < self.size.plugged_mib(planned) {
            let asked = self.control()?.resize_memory(after).await;
            asked.map_err(RequestError::failed("make the machine smaller"))?;
            self.size.memory_mib = plan.memory_mib.saturating_add(after);
        }
        Ok(())
    }

    fn control(&self) -> Result<&ControlClient, RequestError> {
        let none = || RequestError::failed(GROW)("a pod on the host has no machine");
        self.control.as_ref().ok_or_else(none)
    }
}

/// Until the guest has plugged what it was asked for.
async fn plugged(control: &ControlClient, wanted_mib: u64) -> Result<(), RequestError> {
    let until = Instant::now() + PLUGGED_WITHIN;
    loop {
        let stats = control.stats().await.map_err(RequestError::failed(GROW))?;
        let plugged = stats.memory.map_or(0, |memory| memory.plugged_mib);
        if plugged >= wanted_mib {
            return Ok(());
        }
        if Instant::now() >= until {
            let why = format!(
                "its guest plugged {plugged} of {wanted_mib} MiB within {} s",
                PLUGGED_WITHIN.as_secs()
            );
            return Err(RequestError::failed(GROW)(why));
        }
        sleep(LOOK_AGAIN).await;
    }
}
