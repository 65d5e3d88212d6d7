//! Entry point for snapshots: the input is a file, and the body of one whose head is right.

use crate::snapshot::file::{FORMAT, decode, frame};
use crate::snapshot::testing;

/// A state file, as far as it goes without KVM: read, and what it says of the devices taken over by devices.
pub fn snapshot_state(input: &[u8]) {
    drop(decode(input));
    let Some(state) = frame(FORMAT, input).and_then(|bytes| decode(&bytes).ok()) else {
        return;
    };
    let Some(functions) = testing::functions() else {
        return;
    };
    for (placed, (_, _, mut function)) in state.devices.iter().zip(functions) {
        function.restore(&placed.function).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::file::encode;

    /// Where the body begins.
    const HEAD: usize = 20;

    #[test]
    fn the_state_of_these_devices_is_taken_over_by_them() {
        let bytes = encode(&testing::state().unwrap()).unwrap();
        snapshot_state(&bytes);
        snapshot_state(&bytes[HEAD..]);
        let state = decode(&bytes).unwrap();
        for (placed, (_, _, mut function)) in state.devices.iter().zip(testing::functions().unwrap()) {
            assert_eq!(function.restore(&placed.function), Ok(()));
        }
        let others = testing::functions().unwrap().into_iter().rev();
        for (placed, (_, _, mut function)) in state.devices.iter().zip(others) {
            assert!(function.restore(&placed.function).is_err());
        }
    }
}
