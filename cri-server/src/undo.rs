//! Undoing what was acquired: newest first, each step tried again with growing pauses, and what could not be undone is
//! handed back to be kept for the next Stop or Remove.
//!
//! What the steps are is the sandbox's business (`sandbox::ledger`); this is only the order and the patience.

use std::{error::Error, fmt, time::Duration};

use async_trait::async_trait;

/// Tries of one step before it is handed back.
const TRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Something that can undo steps.
#[async_trait]
pub(crate) trait Undo {
    /// What was acquired; its text describes it.
    type Step: fmt::Display + Copy + Send + Sync;

    /// Undoes one step. Undoing what was never made, or was undone before, succeeds.
    async fn undo(&self, step: Self::Step) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// A step that could not be undone.
#[derive(Debug)]
pub(crate) struct Left<S> {
    pub(crate) step: S,
    pub(crate) error: Box<dyn Error + Send + Sync>,
}

/// Undoes `steps`, the last one first. A step that fails does not keep older ones from being undone. What is left comes
/// back in the order in which it was acquired.
pub(crate) async fn unwind<U: Undo + Sync>(undo: &U, steps: &[U::Step]) -> Vec<Left<U::Step>> {
    let mut left = Vec::new();
    for step in steps.iter().rev() {
        if let Err(error) = patiently(undo, *step).await {
            left.push(Left { step: *step, error });
        }
    }
    left.reverse();
    left
}

async fn patiently<U: Undo + Sync>(undo: &U, step: U::Step) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        match undo.undo(step).await {
            Ok(()) => return Ok(()),
            Err(error) => tracing::warn!(%step, %error, "undoing failed; trying again"),
        }
        tokio::time::sleep(pause).await;
        pause *= 4;
    }
    undo.undo(step).await
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Mutex};

    use super::*;

    /// Steps are numbers; each fails as often as it is told.
    #[derive(Default)]
    struct Scripted {
        failures: Mutex<BTreeMap<u8, u32>>,
        undone: Mutex<Vec<u8>>,
    }

    #[async_trait]
    impl Undo for Scripted {
        type Step = u8;

        async fn undo(&self, step: u8) -> Result<(), Box<dyn Error + Send + Sync>> {
            if let Some(failures) = self.failures.lock().unwrap().get_mut(&step)
                && *failures > 0
            {
                *failures -= 1;
                return Err("not yet".into());
            }
            self.undone.lock().unwrap().push(step);
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_step_is_undone_first() {
        let undo = Scripted::default();
        assert!(unwind(&undo, &[1, 2, 3]).await.is_empty());
        assert_eq!(*undo.undone.lock().unwrap(), [3, 2, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_fails_for_good_is_handed_back_and_holds_up_no_other() {
        let undo = Scripted::default();
        *undo.failures.lock().unwrap() = BTreeMap::from([(1, 2), (2, u32::MAX), (3, u32::MAX)]);
        let left = unwind(&undo, &[1, 2, 3, 4]).await;
        assert_eq!(left.iter().map(|left| left.step).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(*undo.undone.lock().unwrap(), [4, 1]);
    }
}
