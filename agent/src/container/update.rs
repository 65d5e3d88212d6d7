//! Other limits for a container that exists.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use proto::agent::v1::{ContainerPhase, ErrorCode, Resources, UpdateContainerRequest};

use crate::cgroup::Cgroup;
use crate::container::Container;
use crate::container::plan::OOM_SCORE_ADJ;
use crate::error::{Context as _, Failure};
use crate::lock::lock;

/// A container that forks faster than this looks keeps some of the old values.
const OOM_LOOKS: usize = 5;

impl Container {
    /// Sets them, and says what the cgroup has then.
    ///
    /// # Errors
    /// As of [`update`].
    pub(crate) fn update(&self, request: &UpdateContainerRequest, proc: &Path) -> Result<Resources, Failure> {
        let phase = lock(&self.state).phase();
        update(&self.id, phase, &self.cgroup, request, proc)
    }
}

/// Sets limits of the container `id`, and says what its cgroup has then.
///
/// # Errors
/// `InvalidArgument` naming the field, `WrongState` when it has ended, `Cgroup`, `System`.
pub(crate) fn update(
    id: &str,
    phase: ContainerPhase,
    cgroup: &Cgroup,
    request: &UpdateContainerRequest,
    proc: &Path,
) -> Result<Resources, Failure> {
    if phase == ContainerPhase::Exited {
        let text = format!("container {id} has ended");
        return Err(Failure::new(ErrorCode::WrongState, text));
    }
    let score = request.oom_score_adj;
    if let Some(score) = score
        && !OOM_SCORE_ADJ.contains(&score)
    {
        let text = format!("oom_score_adj: {score} is not within {OOM_SCORE_ADJ:?}");
        return Err(Failure::invalid(text));
    }
    let resources = request.resources.clone().unwrap_or_default();
    cgroup.relimit(&resources)?;
    if let Some(score) = score {
        set_oom_score_adj(cgroup, score, proc)?;
    }
    Ok(cgroup.actual(&resources))
}

/// Of every process. One that is forked meanwhile has its parent's: so until a look finds none that is new.
fn set_oom_score_adj(cgroup: &Cgroup, score: i32, proc: &Path) -> Result<(), Failure> {
    let mut done = BTreeSet::new();
    for _ in 0..OOM_LOOKS {
        let processes: BTreeSet<i32> = cgroup.processes()?.into_iter().collect();
        if processes.is_subset(&done) {
            break;
        }
        for pid in processes.difference(&done) {
            let file = proc.join(pid.to_string()).join("oom_score_adj");
            match fs::write(&file, score.to_string()) {
                // It has ended.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                written => {
                    written.context(ErrorCode::System, || {
                        format!("write {score} to {}", file.display())
                    })?;
                }
            }
        }
        done.extend(processes);
    }
    Ok(())
}
