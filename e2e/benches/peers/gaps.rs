//! What a run goes on without: peers that cannot run here, and figures that somebody does not get to.

use anyhow::{Context, Result, ensure};
use e2e::conditions::say;
use proto::cri::v1 as cri;
use serde_json::{Map, Value, json};

use crate::{OURS, pod::Peer};

/// What is missing in the report.
#[derive(Default)]
pub(crate) struct Gaps {
    /// Peers that cannot run a pod here, and figures of one that could not be measured: why.
    pub(crate) left_out: Map<String, Value>,
    ours: usize,
}

impl Gaps {
    /// Leaves a peer or a figure out, aloud.
    pub(crate) fn leave_out(&mut self, what: &str, error: &anyhow::Error) -> Result<()> {
        say(&format!("{what} is left out: {error:#}"))?;
        self.left_out.insert(what.to_owned(), json!(format!("{error:#}")));
        Ok(())
    }

    /// What was measured of a peer, or nothing when that went wrong; what runs of it is ended then.
    pub(crate) async fn figure<T>(
        &mut self,
        peer: &Peer,
        figure: &str,
        measured: Result<T>,
    ) -> Result<Option<T>> {
        match measured {
            Ok(measured) => Ok(Some(measured)),
            Err(error) => {
                self.ours += usize::from(peer.name == OURS);
                self.leave_out(&format!("{} {figure}", peer.name), &error)?;
                end_all(peer).await?;
                Ok(None)
            }
        }
    }

    /// That nothing of ours is missing.
    pub(crate) fn none_of_ours(&self) -> Result<()> {
        ensure!(self.ours == 0, "clearpod did not get to {} figures", self.ours);
        Ok(())
    }
}

/// Ends a peer's pods, so that what it is measured by next does not run beside them.
async fn end_all(peer: &Peer) -> Result<()> {
    let request = cri::ListPodSandboxRequest::default();
    let pods = peer.cri.runtime.clone().list_pod_sandbox(request).await;
    for pod in pods.context("list pods")?.into_inner().items {
        if let Err(error) = peer.cri.remove_pod(&pod.id).await {
            say(&format!("{}: pod {} stays: {error}", peer.name, pod.id))?;
        }
    }
    Ok(())
}
