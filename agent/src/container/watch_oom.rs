//! Notices when the kernel kills a process of a container for memory, while the container goes on.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use proto::agent::v1::ContainerOom;
use proto::agent::v1::watch_event::Event;
use rustix::fs::inotify;

use crate::container::Container;
use crate::pod::Pod;
use crate::sys;

/// Runs until the init process has ended.
pub(super) async fn watch(pod: Arc<Pod>, container: Arc<Container>) {
    let watched = tokio::select! {
        watched = tell_kills(&pod, &container) => watched,
        _ = container.init.wait() => Ok(()),
    };
    match watched {
        // No memory controller: nothing can be killed for its limit.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => tracing::warn!(container = %container.id, %error, "memory events cannot be watched"),
        Ok(()) => {}
    }
}

async fn tell_kills(pod: &Pod, container: &Container) -> io::Result<()> {
    let events: OwnedFd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(
        &events,
        container.cgroup.path().join("memory.events"),
        inotify::WatchFlags::MODIFY,
    )?;
    let events = sys::readiness::register(events)?;
    let mut told = 0;
    loop {
        let mut ready = events.readable().await?;
        let mut buffer = [0; 1024];
        match rustix::io::read(events.get_ref(), &mut buffer) {
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN) => {
                ready.clear_ready();
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        let kills = container.cgroup.oom_kills();
        if kills > told && container.is_running() {
            pod.events.publish(&Event::Oom(ContainerOom {
                container_id: container.id.clone(),
            }));
        }
        told = kills;
    }
}
