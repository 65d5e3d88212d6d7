//! One sandbox after a restart of the daemon: from its record to an owner task that goes on where the last one was.

use std::sync::Arc;

use proto::cri::v1 as cri;

use super::{
    driver::{Driver, Origin},
    error::{RequestError, chain},
    ledger::Ledger,
    live::Live,
    node::Node,
    plan,
    state::{Acquired, Input, SandboxState},
};
use crate::{
    machine::AdoptError,
    store::{ContainerRecord, SandboxRecord},
};

/// Takes a sandbox over. One that was starting is undone, as nobody has its id.
pub(crate) async fn recover(
    node: &Arc<Node>,
    record: SandboxRecord,
    request: cri::RunPodSandboxRequest,
    containers: Vec<(ContainerRecord, cri::CreateContainerRequest)>,
) -> Result<(), RequestError> {
    let plan = plan::plan_again(&record.id, &request, &node.config).or_else(|error| {
        // It was valid when it was stored; the configuration has changed since. Its names are enough to end it.
        tracing::error!(
            sandbox = record.id,
            error = chain(&error),
            "only its names are known"
        );
        plan::plan_again(&record.id, &plan::nameless(&record.id), &node.config)
    })?;
    let (mut driver, handle) = Driver::new(Arc::clone(node), plan, request, record);
    driver = driver.with_containers(containers);
    match driver.record.state.clone() {
        SandboxState::Starting { .. } => {
            let message = "the daemon was restarted during the start".to_owned();
            driver.transition(Input::StartFailed { message }).await?;
            match driver.remove().await {
                Ok(()) => return Ok(()),
                // It stays, not ready, for Stop and Remove to try again.
                Err(error) => tracing::error!(
                    sandbox = driver.record.id,
                    error = chain(&error),
                    "not undone yet"
                ),
            }
        }
        SandboxState::Ready { .. } => take_over(&mut driver).await,
        SandboxState::NotReady { .. } => {}
    }
    node.sandboxes.reserve(handle)?;
    node.tasks.spawn(driver.run(Origin::Recovered));
    Ok(())
}

async fn take_over(driver: &mut Driver) {
    match driver.node.launcher.adopt(&driver.plan.layout).await {
        Ok(process) => {
            let mut live = Live::new(&driver.plan, process);
            if let Some(control) = &live.control {
                match control.describe().await {
                    Ok(description) => live.place(description.devices),
                    // The next container's layers may be added twice, which the VMM refuses by name; nothing else needs it.
                    Err(error) => {
                        tracing::error!(
                            sandbox = driver.record.id,
                            error = chain(&error),
                            "the VMM does not answer"
                        );
                    }
                }
            }
            live.recall_size(&driver.plan).await;
            for container in driver.containers.values() {
                let images = &driver.node.images;
                for image in container.image_ids() {
                    live.hold(image, || images.lease_id(image).map(|(_, lease)| lease));
                }
            }
            driver.adopt(live);
            driver.weigh_for_oom_killer();
            driver.resume_logs();
            if let Err(why) = driver.recover_volumes().await {
                driver.end_useless_machine(&why).await;
            }
        }
        Err(AdoptError::Gone { .. } | AdoptError::NeverStarted { .. }) => {
            driver
                .machine_ended("the machine ended while the daemon was not running")
                .await;
        }
        Err(error @ AdoptError::Unknown { .. }) => driver.machine_ended(&chain(&error)).await,
    }
}

/// Gives back whatever carries the names of a sandbox that is in no record; returns what could not be.
pub(crate) async fn remove_orphan(node: &Node, id: &str) -> Vec<String> {
    let plan = match plan::plan(id, &plan::nameless(id), &node.config) {
        Ok(plan) => plan,
        Err(error) => return vec![chain(&error)],
    };
    let left = Ledger::new(node, &plan).give_back(&Acquired::ALL).await;
    left.iter()
        .map(|left| format!("{}: {}", left.step, chain(left.error.as_ref())))
        .collect()
}
