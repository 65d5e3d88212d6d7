//! Tells when something changes in a directory of the host: one inotify instance for the whole daemon, since Linux allows
//! root 128 of them and a node may run more pods than that.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};
use tokio::{io::unix::AsyncFd, sync::Notify};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::sys::readiness;

/// Bytes of events that are read at once.
const BUFFER: usize = 4096;

/// The node's watch of directories. Its task runs from the first [`Self::watch`] until the daemon stops.
#[derive(Debug)]
pub(crate) struct DirectoryWatch {
    tasks: TaskTracker,
    stop: CancellationToken,
    instance: Mutex<Option<Arc<Instance>>>,
}

#[derive(Debug)]
struct Instance {
    inotify: AsyncFd<OwnedFd>,
    /// Who waits for each watch.
    waiting: Mutex<HashMap<i32, Vec<Weak<Notify>>>>,
}

/// One directory that is watched, until this is dropped.
#[derive(Debug)]
pub(crate) struct Watched {
    instance: Arc<Instance>,
    descriptor: i32,
    notify: Arc<Notify>,
}

impl DirectoryWatch {
    pub(crate) fn new(tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self {
            tasks,
            stop,
            instance: Mutex::default(),
        }
    }

    /// Watches what is made in a directory or moved into it. Needs a tokio runtime.
    pub(crate) fn watch(&self, directory: &Path) -> io::Result<Watched> {
        let instance = self.instance()?;
        let notify = Arc::new(Notify::new());
        let events = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        // Under the lock: an event that comes at once finds who waits for it.
        let mut waiting = lock(&instance.waiting);
        let descriptor = inotify::add_watch(instance.inotify.get_ref(), directory, events)?;
        waiting
            .entry(descriptor)
            .or_default()
            .push(Arc::downgrade(&notify));
        drop(waiting);
        Ok(Watched {
            instance,
            descriptor,
            notify,
        })
    }

    fn instance(&self) -> io::Result<Arc<Instance>> {
        let mut held = lock(&self.instance);
        if let Some(instance) = held.as_ref() {
            return Ok(Arc::clone(instance));
        }
        let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let instance = Arc::new(Instance {
            inotify: readiness::readable(descriptor)?,
            waiting: Mutex::default(),
        });
        let (reader, stop) = (Arc::clone(&instance), self.stop.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                error = reader.read() => tracing::error!(%error, "changes of volumes are not seen any more"),
            }
        });
        *held = Some(Arc::clone(&instance));
        Ok(instance)
    }
}

impl Watched {
    /// Returns when something has changed since the last call, or may have.
    pub(crate) async fn changed(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut waiting = lock(&self.instance.waiting);
        let Some(others) = waiting.get_mut(&self.descriptor) else {
            return;
        };
        others.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(&self.notify)));
        if others.is_empty() {
            waiting.remove(&self.descriptor);
            let removed = inotify::remove_watch(self.instance.inotify.get_ref(), self.descriptor);
            if let Err(error) = removed {
                tracing::debug!(%error, "the directory has gone, and the watch with it");
            }
        }
    }
}

impl Instance {
    /// Never returns but with what ended it.
    async fn read(&self) -> io::Error {
        loop {
            let mut ready = match self.inotify.readable().await {
                Ok(ready) => ready,
                Err(error) => return error,
            };
            if let Err(error) = self.drain() {
                return error;
            }
            ready.clear_ready();
        }
    }

    fn drain(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut events = inotify::Reader::new(self.inotify.get_ref(), &mut buffer);
        loop {
            match events.next() {
                Ok(event) => self.tell(event.wd(), event.events()),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn tell(&self, descriptor: i32, events: ReadFlags) {
        let waiting = lock(&self.waiting);
        let lost = events.contains(ReadFlags::QUEUE_OVERFLOW);
        let concerned = waiting.iter().filter(|(watch, _)| lost || **watch == descriptor);
        for notify in concerned
            .flat_map(|(_, notifies)| notifies)
            .filter_map(Weak::upgrade)
        {
            notify.notify_one();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// For an event to arrive.
    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn each_directory_tells_of_its_own_changes_until_it_is_let_go() {
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let watch = DirectoryWatch::new(tasks.clone(), stop.clone());
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = watch.watch(one.path()).unwrap();
        let again = watch.watch(one.path()).unwrap();
        let second = watch.watch(other.path()).unwrap();
        std::os::unix::fs::symlink("x", one.path().join("link")).unwrap();
        fs_err::rename(one.path().join("link"), one.path().join("..data")).unwrap();
        for watched in [&first, &again] {
            tokio::time::timeout(SOON, watched.changed()).await.unwrap();
        }
        let quiet = tokio::time::timeout(Duration::from_millis(50), second.changed()).await;
        assert!(quiet.is_err());
        drop(first);
        fs_err::write(one.path().join("new"), "").unwrap();
        tokio::time::timeout(SOON, again.changed()).await.unwrap();
        drop(again);
        assert_eq!(lock(&watch.instance().unwrap().waiting).len(), 1);
        assert!(watch.watch(Path::new("/no/such/directory")).is_err());
        stop.cancel();
        tasks.close();
        tokio::time::timeout(SOON, tasks.wait()).await.unwrap();
    }
}
