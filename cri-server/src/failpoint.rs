//! Places where a test can stop one task of the daemon, to kill the daemon there or something that it depends on.
//!
//! `FAILPOINTS=start.launched=return clearpod serve` (built with feature `failpoints`) holds every RunPodSandbox after its
//! VMM was started, for good; `start.launched=return(PATH)` until there is something at that path. Without the feature nothing
//! is compiled in.

use std::{path::Path, time::Duration};

/// Between two looks at whether a held task may go on.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Goes on, unless a test wants the task to stay here.
pub(crate) async fn reached(point: &'static str) {
    let Some(until) = stays(point) else {
        return;
    };
    #[cfg(feature = "failpoints")]
    let _held = held::Held::new(point);
    tracing::warn!(point, "a fail point holds this task");
    match until {
        None => std::future::pending::<()>().await,
        Some(path) => {
            while !Path::new(&path).exists() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }
}

/// Whether the task stays, and what it waits for.
fn stays(point: &'static str) -> Option<Option<String>> {
    fail::fail_point!(point, Some);
    // Without the feature the macro is empty.
    let _: &str = point;
    None
}

#[cfg(feature = "failpoints")]
pub use held::is_held;

#[cfg(feature = "failpoints")]
mod held {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    static HELD: Mutex<Vec<&str>> = Mutex::new(Vec::new());

    /// A task stays at a point as long as this lives: until it may go on, or its daemon is killed.
    pub(super) struct Held(&'static str);

    impl Held {
        pub(super) fn new(point: &'static str) -> Self {
            all().push(point);
            Self(point)
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            let mut all = all();
            if let Some(at) = all.iter().position(|point| *point == self.0) {
                all.swap_remove(at);
            }
        }
    }

    /// Whether some task of this process has come to `point` and stays there.
    #[must_use]
    pub fn is_held(point: &str) -> bool {
        all().contains(&point)
    }

    fn all() -> MutexGuard<'static, Vec<&'static str>> {
        HELD.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
