//! What a container wrote: its upper layer, walked in the background and not often, because the container decides how many
//! files there are. A walk is bounded in entries and memory; between two of them passes at least [`KEPT`], and as many
//! times as long as the last one took as it must to be a small part of the guest's processor.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// A result is not measured again for so long.
const KEPT: Duration = Duration::from_secs(5);
/// Of the guest's processor, one part in so many goes into walks of one container.
const SHARE: u32 = 50;
/// Files of a tree that are counted before it is too large.
const MAX_ENTRIES: u64 = 200_000;
/// Directories that wait to be read: their paths are in the agent's memory.
const MAX_PENDING: usize = 10_000;

/// Measures one upper layer.
#[derive(Debug)]
pub(crate) struct Writable {
    upper: PathBuf,
    measured: watch::Sender<Measured>,
}

/// What is known of an upper layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// It was not measured yet.
    Nothing,
    Counted {
        bytes: u64,
        inodes: u64,
    },
    /// Counting it to its end would take too long.
    TooLarge,
}

#[derive(Debug, Clone, Copy)]
struct Measured {
    known: Known,
    walking: bool,
    /// The next walk is not before.
    due: Option<Instant>,
}

impl Writable {
    pub(crate) fn new(upper: PathBuf) -> Arc<Self> {
        let nothing = Measured {
            known: Known::Nothing,
            walking: false,
            due: None,
        };
        Arc::new(Self {
            upper,
            measured: watch::Sender::new(nothing),
        })
    }

    /// Has it measured by a task of `tasks`, unless that happens already or is too early.
    pub(crate) fn refresh(self: &Arc<Self>, tasks: &TaskTracker) {
        let begins = self.measured.send_if_modified(|measured| {
            let begins = !measured.walking && measured.due.is_none_or(|due| due <= Instant::now());
            measured.walking |= begins;
            begins
        });
        if begins {
            let writable = Arc::clone(self);
            tasks.spawn_blocking(move || writable.measure());
        }
    }

    fn measure(&self) {
        let began = Instant::now();
        let known = walk(&self.upper, MAX_ENTRIES, MAX_PENDING);
        let rest = KEPT.max(began.elapsed() * SHARE);
        self.measured.send_replace(Measured {
            known,
            walking: false,
            due: Some(Instant::now() + rest),
        });
    }

    /// What is known when no walk is under way any more, or at `until`.
    pub(crate) async fn known(&self, until: Instant) -> Known {
        let mut measured = self.measured.subscribe();
        let walked = measured.wait_for(|measured| !measured.walking);
        // The sender is in `self`, so only the time can be over.
        drop(tokio::time::timeout_at(until, walked).await);
        self.measured.borrow().known
    }
}

/// Disk blocks and inodes below `root`. Files that vanish meanwhile do not count. No recursion: the container decides how
/// deep its directories are.
fn walk(root: &Path, max_entries: u64, max_pending: usize) -> Known {
    let (mut bytes, mut inodes) = (0_u64, 0_u64);
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            inodes += 1;
            // stat(2): st_blocks counts units of 512 bytes. A file with several names counts once per name.
            bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512));
            if metadata.is_dir() {
                directories.push(entry.path());
            }
            if inodes > max_entries || directories.len() > max_pending {
                return Known::TooLarge;
            }
        }
    }
    Known::Counted { bytes, inodes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_measured_with_its_directories() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/file"), vec![1; 10_000]).unwrap();
        let Known::Counted { bytes, inodes } = walk(root.path(), 10, 10) else {
            panic!("not counted");
        };
        assert_eq!(inodes, 3);
        assert!(bytes >= 10_000);
    }

    #[test]
    fn a_walk_ends_when_there_is_too_much() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        assert_eq!(walk(root.path(), 2, 10), Known::TooLarge);
        assert_eq!(walk(root.path(), 10, 2), Known::TooLarge);
        assert_eq!(
            walk(Path::new("/nonexistent"), 1, 1),
            Known::Counted { bytes: 0, inodes: 0 }
        );
    }

    #[tokio::test]
    async fn a_result_is_kept_for_a_while() {
        let root = tempfile::tempdir().unwrap();
        let (writable, tasks) = (Writable::new(root.path().to_owned()), TaskTracker::new());
        let soon = || Instant::now() + Duration::from_secs(30);
        assert_eq!(writable.known(soon()).await, Known::Nothing);
        writable.refresh(&tasks);
        let Known::Counted { inodes: 0, .. } = writable.known(soon()).await else {
            panic!("not counted");
        };
        fs::write(root.path().join("file"), "text").unwrap();
        writable.refresh(&tasks);
        assert!(
            matches!(writable.known(soon()).await, Known::Counted { inodes: 0, .. }),
            "it is too early for another walk"
        );
        writable.measured.send_modify(|measured| measured.due = None);
        writable.refresh(&tasks);
        assert!(matches!(
            writable.known(soon()).await,
            Known::Counted { inodes: 1, .. }
        ));
    }
}
