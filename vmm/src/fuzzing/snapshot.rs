//! Entry point for snapshots: the input is a file, the body of one whose head is right, and changes of a body that is right.

use crate::snapshot::file::{FORMAT, HEAD, decode, encode, frame};
use crate::snapshot::testing;

/// A state file, as far as it goes without KVM: read, and what it says of the devices taken over by devices.
pub fn snapshot_state(input: &[u8]) {
    drop(decode(input));
    take_over(input);
    let Some(bytes) = testing::state().and_then(|state| encode(&state).ok()) else {
        return;
    };
    let mut body = bytes.get(HEAD..).unwrap_or_default().to_vec();
    for change in input.chunks_exact(3) {
        let [low, high, byte] = [change[0], change[1], change[2]];
        let at = usize::from(u16::from_le_bytes([low, high])) % body.len().max(1);
        if let Some(place) = body.get_mut(at) {
            *place = byte;
        }
    }
    take_over(&body);
}

fn take_over(body: &[u8]) {
    let state = frame(FORMAT, body).and_then(|bytes| decode(&bytes).ok());
    let (Some(state), Some(functions)) = (state, testing::functions()) else {
        return;
    };
    for (placed, (_, _, mut function)) in state.devices.iter().zip(functions) {
        // Either it fits or it does not.
        function.restore(&placed.function).ok();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_state_of_these_devices_is_taken_over_by_them() {
        let bytes = encode(&testing::state().unwrap()).unwrap();
        let state = decode(&bytes).unwrap();
        for (placed, (_, _, mut function)) in state.devices.iter().zip(testing::functions().unwrap()) {
            assert_eq!(function.restore(&placed.function), Ok(()));
        }
        let others = testing::functions().unwrap().into_iter().rev();
        for (placed, (_, _, mut function)) in state.devices.iter().zip(others) {
            assert!(function.restore(&placed.function).is_err());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_state_panics(input in prop::collection::vec(any::<u8>(), 0..300)) {
            snapshot_state(&input);
        }
    }
}
