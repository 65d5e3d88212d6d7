//! Asks guests what they use: some at a time, each with a deadline of its own, so that one that does not answer costs its own
//! entry and nothing else.

use std::sync::Arc;

use futures_util::{Stream, StreamExt as _, stream};
use proto::agent::v1;

use super::credible;
use crate::{
    clock::{monotonic_ns, now_ns},
    guest::GuestError,
    sandbox::{MachineView, Node, RequestError, SandboxView, chain},
};

/// Guests that are asked at the same time.
const AT_ONCE: usize = 16;

/// What one guest said, and when by the host's clocks: the guest's may say anything.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) view: Arc<SandboxView>,
    pub(crate) stats: v1::StatsResponse,
    /// The most that it can use.
    pub(crate) processors: u32,
    pub(crate) at_ns: i64,
    pub(crate) monotonic_ns: u64,
}

/// The guests of these sandboxes, in their order; those that do not run or do not answer are left out.
pub(crate) fn gather(
    node: Arc<Node>,
    views: Vec<Arc<SandboxView>>,
    with_files: bool,
) -> impl Stream<Item = Measured> + Send {
    node.samples.keep(&node.sandboxes.views());
    let asked = stream::iter(views).map(move |view| {
        let node = Arc::clone(&node);
        async move {
            let machine = view.machine.clone()?;
            match ask(
                &node,
                view,
                &machine,
                Ask {
                    container: None,
                    with_files,
                },
            )
            .await
            {
                Ok(measured) => Some(measured),
                Err((view, error)) => {
                    tracing::warn!(
                        sandbox = view.id,
                        error = chain(&error),
                        "left out of the statistics"
                    );
                    None
                }
            }
        }
    });
    asked.buffered(AT_ONCE).filter_map(std::future::ready)
}

/// One guest, all of it or one container.
pub(crate) async fn measure(
    node: &Node,
    view: Arc<SandboxView>,
    container: Option<&str>,
) -> Result<Measured, RequestError> {
    let id = view.id.clone();
    let machine = view.machine.clone().ok_or_else(|| RequestError::WrongState {
        operation: format!("measure sandbox {id}"),
        reason: "its machine does not run".to_owned(),
    })?;
    let wanted = Ask {
        container,
        with_files: false,
    };
    ask(node, view, &machine, wanted)
        .await
        .map_err(|(_, error)| RequestError::guest(format!("measure sandbox {id}"))(error))
}

/// What is asked of a guest.
#[derive(Debug, Clone, Copy)]
struct Ask<'a> {
    container: Option<&'a str>,
    with_files: bool,
}

async fn ask(
    node: &Node,
    view: Arc<SandboxView>,
    machine: &MachineView,
    wanted: Ask<'_>,
) -> Result<Measured, (Arc<SandboxView>, GuestError)> {
    let deadline = node.config.deadlines.stats();
    let answer = machine.guest.stats(wanted.container, wanted.with_files);
    let answer = tokio::time::timeout(deadline, answer).await;
    let stats = match answer {
        Ok(Ok(stats)) => stats,
        Ok(Err(error)) => return Err((view, error)),
        Err(_) => {
            let timeout = GuestError::Timeout {
                operation: "read the statistics",
                after: deadline,
            };
            return Err((view, timeout));
        }
    };
    let bounds = credible::Bounds::of(machine, &node.config.machine);
    Ok(Measured {
        view,
        stats: bounds.clamp(stats),
        processors: bounds.processors,
        at_ns: now_ns(),
        monotonic_ns: monotonic_ns(),
    })
}
