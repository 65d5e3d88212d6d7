//! Keeps the guest's copies of configMaps, secrets and the like what they are on the host: one task per volume, from its
//! first container to its last.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    task::{AbortHandle, JoinSet},
    time::sleep,
};

use super::error::chain;
use crate::{
    container::files::{self, Budget, ReadError},
    directory_watch::DirectoryWatch,
    guest::GuestClient,
};

/// Between two tries to bring a volume up to date, doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// The volumes of one Machine that are followed; dropped with it.
#[derive(Debug, Default)]
pub(super) struct Followers {
    tasks: JoinSet<()>,
    by_path: BTreeMap<PathBuf, AbortHandle>,
}

/// What a follower works with.
#[derive(Debug, Clone)]
pub(super) struct Follower {
    pub(super) directories: Arc<DirectoryWatch>,
    pub(super) guest: GuestClient,
    pub(super) budget: Budget,
}

impl Followers {
    /// Follows a volume unless that is done already. `generation` is what the guest has, if that is known.
    pub(super) fn follow(&mut self, path: &Path, generation: Option<String>, with: Follower) {
        while self.tasks.try_join_next().is_some() {}
        let running = |handle: &AbortHandle| !handle.is_finished();
        if self.by_path.get(path).is_some_and(running) {
            return;
        }
        let task = self.tasks.spawn(with.run(path.to_owned(), generation));
        self.by_path.insert(path.to_owned(), task);
    }

    /// Ends what follows volumes that are not among `used`.
    pub(super) fn keep(&mut self, used: impl Fn(&Path) -> bool) {
        self.by_path.retain(|path, task| {
            let kept = used(path);
            if !kept {
                task.abort();
            }
            kept
        });
    }
}

/// How one look at a volume ended.
enum Look {
    /// Guest and host have the same, or nothing can be done about it before the host's changes.
    Done,
    Again,
    /// The guest has no such volume any more.
    Over,
}

impl Follower {
    async fn run(self, path: PathBuf, mut sent: Option<String>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let watched = match self.directories.watch(&path) {
                Ok(watched) => watched,
                Err(error) => {
                    tracing::warn!(volume = %path.display(), %error, "cannot be watched");
                    sleep(LAST_PAUSE).await;
                    continue;
                }
            };
            // After the watch has begun: what changed before is seen now, what changes later is told.
            loop {
                match self.look(&path, &mut sent).await {
                    Look::Done => {
                        pause = FIRST_PAUSE;
                        watched.changed().await;
                    }
                    Look::Again => {
                        sleep(pause).await;
                        pause = (pause * 2).min(LAST_PAUSE);
                        if pause == LAST_PAUSE {
                            // The directory may be another one by now.
                            break;
                        }
                    }
                    Look::Over => return,
                }
            }
        }
    }

    async fn look(&self, path: &Path, sent: &mut Option<String>) -> Look {
        let (volume, mut budget) = (path.to_owned(), self.budget);
        let read = tokio::task::spawn_blocking(move || files::generation(&volume, &mut budget)).await;
        let source = match read {
            Ok(Ok(source)) => source,
            Ok(Err(error @ ReadError::Unfit { .. })) => {
                tracing::error!(%error, "the guest keeps the files that it has");
                return Look::Done;
            }
            Ok(Err(error @ ReadError::Io(_))) => {
                tracing::debug!(volume = %path.display(), %error, "not readable now");
                return Look::Again;
            }
            // The daemon stops.
            Err(_) => return Look::Over,
        };
        if sent.as_ref() == Some(&source.generation) {
            return Look::Done;
        }
        let generation = source.generation.clone();
        match self.guest.update_files(source).await {
            Ok(()) => {
                *sent = Some(generation);
                Look::Done
            }
            Err(error) if error.is_not_found() => Look::Over,
            Err(error) => {
                tracing::warn!(volume = %path.display(), error = chain(&error), "not brought up to date yet");
                Look::Again
            }
        }
    }
}
