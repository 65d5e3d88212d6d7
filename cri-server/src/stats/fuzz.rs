//! A guest's numbers through everything that is made of them.

use std::sync::Arc;

use proto::agent::v1;

use super::{
    credible::Bounds,
    fixture,
    gather::Measured,
    metrics,
    sample::Samples,
    usage::{Figures, sandbox_stats},
};

/// Statistics and metrics of a sandbox whose guest said `stats`, of a container that is known.
///
/// # Panics
/// When they are of something that the guest cannot have.
pub(crate) fn judge(mut stats: v1::StatsResponse) {
    let fixture = fixture::measured();
    if let (Some(said), Some(known)) = (stats.containers.first_mut(), fixture.view.containers.first()) {
        said.container_id.clone_from(&known.id);
    }
    let bounds = Bounds {
        memory_bytes: 1 << 30,
        scratch_bytes: 1 << 34,
        processors: 2,
    };
    let measured = Measured {
        view: Arc::clone(&fixture.view),
        stats: bounds.clamp(stats),
        ..fixture
    };
    let samples = Samples::default();
    let earlier = Measured {
        stats: v1::StatsResponse::default(),
        monotonic_ns: 0,
        ..measured.clone()
    };
    for measured in [&earlier, &measured] {
        let stats = sandbox_stats(&Figures {
            measured,
            samples: &samples,
            scratch: "/scratch",
        });
        let linux = stats.linux.expect("the statistics of a Linux pod");
        let memory = linux.memory.and_then(|memory| memory.usage_bytes);
        assert!(memory.is_none_or(|bytes| bytes.value <= bounds.memory_bytes));
        let cpu = linux.cpu.and_then(|cpu| cpu.usage_nano_cores);
        assert!(cpu.is_none_or(|cores| cores.value <= 2_000_000_000));
        let container = linux.containers.first().and_then(|container| container.memory);
        let memory = container.and_then(|memory| memory.usage_bytes);
        assert!(memory.is_none_or(|bytes| bytes.value <= bounds.memory_bytes));
    }
    drop(metrics::sandbox_metrics(&measured));
}
