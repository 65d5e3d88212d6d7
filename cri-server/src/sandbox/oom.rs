//! Which pods the host's out-of-memory killer takes first. Under other runtimes the processes of a container have the score that
//! kubelet gives it by its pod's quality of service; here the pod's memory is its VMM's.

use super::{driver::Driver, error::chain};
use crate::{container::spec, host::Kind};

impl Driver {
    /// Gives the VMM the score of the best protected of its containers. Without one that can still run it keeps what it has. virtiofsd
    /// keeps its own: it has next to no memory.
    pub(super) fn weigh_for_oom_killer(&self) {
        if self.plan.kind != Kind::Machine {
            return;
        }
        let scores = self
            .containers
            .values()
            .filter(|container| container.is_unfinished())
            .filter_map(|container| spec::oom_score_adj(container.wanted().oom_score_adj).ok());
        if let (Some(live), Some(score)) = (&self.live, scores.min())
            && let Err(error) = live.process.set_oom_score_adj(score)
        {
            tracing::warn!(
                sandbox = self.plan.id,
                score,
                error = chain(&error),
                "the out-of-memory killer does not know how much the pod is worth"
            );
        }
    }
}
