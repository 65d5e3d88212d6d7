//! Locking a mutex whose holder cannot have left its data half-changed: the agent aborts on panic.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks; never held over an await.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
