//! Places where a test can stop one task of the daemon for good, to kill the daemon there.
//!
//! `FAILPOINTS=start.launched=return clearpod serve` (built with feature `failpoints`) holds every RunPodSandbox after its
//! VMM was started. Without the feature nothing is compiled in.

/// Goes on, unless a test wants the task to stay here.
pub(crate) async fn reached(point: &'static str) {
    if stays(point) {
        #[cfg(feature = "failpoints")]
        held::add(point);
        tracing::warn!(point, "a fail point holds this task");
        std::future::pending::<()>().await;
    }
}

fn stays(point: &'static str) -> bool {
    fail::fail_point!(point, |_| true);
    // Without the feature the macro is empty.
    let _: &str = point;
    false
}

#[cfg(feature = "failpoints")]
pub use held::is_held;

#[cfg(feature = "failpoints")]
mod held {
    use std::sync::{Mutex, PoisonError};

    static HELD: Mutex<Vec<&str>> = Mutex::new(Vec::new());

    pub(super) fn add(point: &'static str) {
        HELD.lock().unwrap_or_else(PoisonError::into_inner).push(point);
    }

    /// Whether some task of this process has come to `point` and stays there, or did until its daemon was killed.
    #[must_use]
    pub fn is_held(point: &str) -> bool {
        HELD.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&point)
    }
}
