//! Places where a test can stop one task of the daemon for good, to kill the daemon there.
//!
//! `FAILPOINTS=start.launched=return clearpod serve` (built with feature `failpoints`) hangs the next RunPodSandbox after
//! its VMM was started. Without the feature nothing is compiled in.

/// Goes on, unless a test wants the task to stay here.
pub(crate) async fn reached(point: &'static str) {
    if stays(point) {
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
