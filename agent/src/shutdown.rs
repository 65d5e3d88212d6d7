//! The end of the Machine: containers killed, file systems written back, then the power.

use std::sync::Arc;
use std::time::Duration;

use rustix::system::RebootCommand;
use tokio::sync::watch;

use crate::container::remove;
use crate::pod::Pod;

/// From the RPC's answer to the end, so that the answer reaches the daemon.
const ANSWER_FIRST: Duration = Duration::from_millis(20);
/// How long containers may take to go; what they wrote is lost with the Machine anyway.
const CONTAINERS_WITHIN: Duration = Duration::from_secs(5);

/// Asked for by the RPC, awaited by main.
#[derive(Debug, Clone)]
pub(crate) struct Shutdown(watch::Sender<bool>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(watch::channel(false).0)
    }
}

impl Shutdown {
    pub(crate) fn request(&self) {
        self.0.send_replace(true);
    }

    pub(crate) async fn requested(&self) {
        // The sender is `self`: the channel cannot close.
        self.0.subscribe().wait_for(|requested| *requested).await.ok();
    }
}

/// Ends everything, then the Machine.
pub(crate) async fn power_off(pod: &Arc<Pod>) {
    tokio::time::sleep(ANSWER_FIRST).await;
    let containers = async {
        for container in pod.containers.all() {
            if let Err(error) = remove::remove(pod, &container.id).await {
                tracing::warn!(container = %container.id, %error, "container left at the Machine's end");
            }
        }
    };
    if tokio::time::timeout(CONTAINERS_WITHIN, containers).await.is_err() {
        tracing::warn!("containers did not end in time");
    }
    pod.disks.unmount_all().await;
    end_machine().await;
}

/// Writes back what is dirty and resets the Machine, which the VMM takes for its end. Without ACPI there is no power
/// switch: a reset is what a Machine has. Does not return.
pub(crate) async fn end_machine() {
    rustix::fs::sync();
    loop {
        if let Err(error) = rustix::system::reboot(RebootCommand::Restart) {
            tracing::error!(%error, "the kernel refuses to restart");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
