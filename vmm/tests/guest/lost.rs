//! Guests that an emulated processor loses (`deploy/node/README.md`, "What is known to be wrong").

use std::cell::Cell;
use std::io::{Write as _, stderr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use proto::machine::ExitReason;

use super::Artifacts;

/// Times that a test is done when KVM loses its guest each time.
const TRIES: usize = 3;

/// A test hears of a guest's end by a connection that closes, which is before the VMM's process has ended.
const END: Duration = Duration::from_secs(3);

thread_local! {
    /// A guest of the test that runs on this thread has ended because KVM could not run it.
    static KVM_LOST_IT: Cell<bool> = const { Cell::new(false) };
}

/// Does a test with a guest, if one can run here; one that cannot says so. It is done again when it failed and KVM has given up on one of
/// its guests: an emulated processor ends about one in a hundred by a triple fault that the guest has not caused, and the more pages it
/// faults in the more often.
pub(crate) fn on_kvm(test: fn(&Artifacts)) {
    let Some(artifacts) = Artifacts::find() else {
        return;
    };
    for left in (0..TRIES).rev() {
        KVM_LOST_IT.set(false);
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(&artifacts))) else {
            return;
        };
        if left == 0 || !KVM_LOST_IT.get() || !is_emulated() {
            resume_unwind(panic);
        }
        // Past the test harness, which shows what a test prints only when it fails in the end.
        drop(stderr().write_all(b"ONCE MORE: KVM lost a guest of this test (GuestUnrunnable)\n"));
    }
}

/// Whether /dev/kvm is that of an emulated node; another one loses no guest.
fn is_emulated() -> bool {
    std::env::var("CLEARPOD_BACKEND").is_ok_and(|backend| backend == "emulated")
}

/// How a VMM has ended.
pub(super) fn note(status: ExitStatus) {
    if status.code() == Some(ExitReason::GuestUnrunnable.code()) {
        KVM_LOST_IT.set(true);
    }
}

/// Of a test that fails: its VMM may be about to end by itself.
pub(super) fn wait_for_end(vmm: &mut Child) {
    let start = Instant::now();
    while start.elapsed() < END {
        if let Ok(Some(status)) = vmm.try_wait() {
            return note(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
