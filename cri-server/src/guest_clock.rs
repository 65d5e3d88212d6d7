//! Guests follow the host's clock when it is set: a container on the host would see that, too. A guest is told the time when it starts
//! and counts on from there, and what the host's clock does afterwards is unknown to it.
//!
//! Each guest is asked, and moved by the difference if there is one: at the daemon's start, when the host's clock was set, and now and
//! then, since no two clocks run alike. Deadlines are on the monotonic clock and know nothing of all that.

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use rustix::{
    io::Errno,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use tokio::{io::unix::AsyncFd, task::JoinSet, time::sleep};

use crate::{
    clock::now_ns,
    guest::{GuestClient, GuestError},
    host::Kind,
    sandbox::{Node, chain},
    sys::readiness,
};

/// Between two looks at clocks of which nothing is known to have happened.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// A clock that is less wrong than this is left alone: a step hurts programs more.
const TOLERANCE_NS: i64 = 500_000_000;
/// A host that is set again and again meanwhile is followed by the next round.
const TRIES: usize = 3;

/// The task's whole life.
pub(crate) async fn keep(node: Arc<Node>) {
    let watch = watch_host();
    if let Err(error) = &watch {
        tracing::warn!(%error, "guests hear late of a host's clock that is set");
    }
    let mut guests = JoinSet::new();
    while !node.stop.is_cancelled() {
        for view in node.sandboxes.views() {
            let machine = view
                .machine
                .as_ref()
                .filter(|machine| machine.kind == Kind::Machine);
            if let Some(guest) = machine.map(|machine| machine.guest.clone()) {
                guests.spawn(follow(view.id.clone(), guest));
            }
        }
        tokio::select! {
            () = node.stop.cancelled() => return,
            () = async { while guests.join_next().await.is_some() {} } => {}
        }
        tokio::select! {
            () = node.stop.cancelled() => return,
            () = is_set(watch.as_ref().ok()) => tracing::info!("the host's clock was set: guests follow"),
            () = sleep(LOOK_AGAIN) => {}
        }
    }
}

async fn follow(sandbox: String, guest: GuestClient) {
    match set_right(&guest).await {
        Ok(0) => {}
        Ok(moved_ns) => tracing::info!(
            sandbox,
            moved_ms = moved_ns / 1_000_000,
            "the guest's clock was moved"
        ),
        Err(error) => tracing::warn!(sandbox, error = chain(&error), "the guest's clock may be wrong"),
    }
}

/// By how much it had to be moved.
async fn set_right(guest: &GuestClient) -> Result<i64, GuestError> {
    let mut moved: i64 = 0;
    for _ in 0..TRIES {
        let asked = now_ns();
        let told = guest.move_clock(0).await?;
        let Some(by) = correction(asked, told, now_ns()) else {
            break;
        };
        guest.move_clock(by).await?;
        moved = moved.saturating_add(by);
    }
    Ok(moved)
}

/// By how much a clock has to be moved that said `told` at some moment between `asked` and `answered` of the host's. `None`: it is as
/// right as can be known.
fn correction(asked: i64, told: u64, answered: i64) -> Option<i64> {
    let told = i64::try_from(told).unwrap_or(i64::MAX);
    // Negative when the host's clock was set back meanwhile: the next round is due then.
    let unknown = answered.checked_sub(asked).filter(|unknown| *unknown >= 0)? / 2;
    let by = asked.saturating_add(unknown).saturating_sub(told);
    (by.saturating_abs() > unknown.saturating_add(TOLERANCE_NS)).then_some(by)
}

/// A timer that never expires, and is cancelled whenever the clock is set: timerfd_create(2).
fn watch_host() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let never = Itimerspec {
        it_interval: zero,
        it_value: Timespec {
            tv_sec: i64::MAX,
            tv_nsec: 0,
        },
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(&timer, flags, &never)?;
    readiness::readable(timer)
}

/// Ends when the host's clock was set since it ended last.
async fn is_set(watch: Option<&AsyncFd<OwnedFd>>) {
    while let Some(watch) = watch {
        let Ok(mut readable) = watch.readable().await else {
            break;
        };
        match rustix::io::read(watch.get_ref(), &mut [0; 8]) {
            Err(Errno::AGAIN) => readable.clear_ready(),
            Err(Errno::INTR) => {}
            _ => return,
        }
    }
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_clock_is_moved_by_what_is_certain_to_be_wrong() {
        let noon: i64 = 1_800_000_000 * SECOND;
        let at = |seconds: i64| u64::try_from(noon + seconds * SECOND).unwrap();
        let asked = |told, seconds: i64| correction(noon, told, noon + seconds * SECOND);
        assert_eq!(asked(at(0), 0), None);
        assert_eq!(asked(at(3600), 0), Some(-3600 * SECOND));
        assert_eq!(asked(at(-3600), 0), Some(3600 * SECOND));
        assert_eq!(asked(at(-3600), 2), Some(3601 * SECOND));
        // A slow answer says little.
        assert_eq!(asked(at(8), 10), None);
        assert_eq!(asked(at(0), 10), None);
        // The host's clock was set in between.
        assert_eq!(asked(at(0), -3600), None);
        assert_eq!(asked(at(0), 3600), None);
        // A guest says what it likes.
        assert_eq!(asked(u64::MAX, 0), Some(noon - i64::MAX));
        assert_eq!(asked(0, 0), Some(noon));
        assert_eq!(correction(i64::MIN, 0, i64::MAX), None);
    }

    #[tokio::test]
    async fn nothing_is_heard_of_a_clock_that_nobody_sets() {
        let watch = watch_host().unwrap();
        let heard = tokio::time::timeout(Duration::from_millis(50), is_set(Some(&watch)));
        assert!(heard.await.is_err());
    }
}
