//! What a sandbox is, and what follows from each input: a pure function, no I/O.
//!
//! ```text
//!             Started                MachineEnded, Stop, Remove
//!  Starting ───────────▶ Ready ───────────────────────────────▶ NotReady ──Remove, nothing held──▶ (forgotten)
//!      │                                                           ▲  │
//!      └──StartFailed, MachineEnded, Stop, Remove──────────────────┘  └─Released{left}: held = left
//! ```
//!
//! CRI sees Ready as SANDBOX_READY and NotReady as SANDBOX_NOTREADY; Starting is not shown, since nobody has its id yet.
//! Stop and Remove are never refused: kubelet repeats them until they succeed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Something of the host that a sandbox holds. Every name derives from the sandbox's id and request, so that the list alone
/// is enough to give all of it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Acquired {
    Directory,
    /// What is bound in the directory, and who serves it; made when a container needs it.
    Shares,
    Cgroup,
    Scratch,
    Network,
    Machine,
}

impl Acquired {
    /// All that a start acquires, in its order.
    pub(crate) const ALL: [Self; 6] = [
        Self::Directory,
        Self::Shares,
        Self::Cgroup,
        Self::Scratch,
        Self::Network,
        Self::Machine,
    ];
}

impl fmt::Display for Acquired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "machine directory",
            Self::Shares => "shared volumes",
            Self::Cgroup => "cgroup",
            Self::Scratch => "scratch disk",
            Self::Network => "pod network",
            Self::Machine => "VMM or shim process",
        })
    }
}

/// How far a sandbox is. `held` is what of the host is to be given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SandboxState {
    Starting { held: Vec<Acquired> },
    Ready { held: Vec<Acquired> },
    NotReady { cause: Cause, held: Vec<Acquired> },
}

/// Why a sandbox is not ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cause {
    /// It never was; its name is free for the next try.
    StartFailed { message: String },
    /// The Machine ended by itself.
    MachineEnded { message: String },
    /// It was asked to.
    Stopped,
}

/// What can happen to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    Started,
    StartFailed {
        message: String,
    },
    MachineEnded {
        message: String,
    },
    /// A release came to its end; `left` could not be given back.
    Released {
        left: Vec<Acquired>,
    },
    Stop,
    Remove,
    /// A container is to be created or started.
    Use,
}

/// What is to be done about it, after the next state was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Nothing,
    /// Containers are marked as ended; what is held stays for Stop.
    EndContainers,
    /// End containers and Machine, give everything back.
    Release,
    /// The same, then [`Step::Forget`] if nothing is left.
    ReleaseThenForget,
    /// Drop the sandbox's records and its name.
    Forget,
}

/// A sandbox that is not ready runs no container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotReady;

/// The state that follows, and what is to be done.
pub(crate) fn decide(state: &SandboxState, input: Input) -> Result<(SandboxState, Step), NotReady> {
    use SandboxState::{NotReady as Down, Ready, Starting};
    let down = |cause, held: &Vec<Acquired>| Down {
        cause,
        held: held.clone(),
    };
    Ok(match (state, input) {
        (Starting { held }, Input::Started) => (Ready { held: held.clone() }, Step::Nothing),
        (Starting { held }, Input::StartFailed { message } | Input::MachineEnded { message }) => {
            (down(Cause::StartFailed { message }, held), Step::Release)
        }
        (Starting { held } | Ready { held }, Input::Stop) => (down(Cause::Stopped, held), Step::Release),
        (Starting { held } | Ready { held }, Input::Remove) => {
            (down(Cause::Stopped, held), Step::ReleaseThenForget)
        }
        (Ready { held }, Input::MachineEnded { message }) => {
            (down(Cause::MachineEnded { message }, held), Step::EndContainers)
        }
        (Starting { .. } | Down { .. }, Input::Use) => return Err(NotReady),
        (Ready { .. }, Input::Use | Input::Started | Input::StartFailed { .. } | Input::Released { .. })
        | (Starting { .. }, Input::Released { .. })
        | (Down { .. }, Input::Started | Input::StartFailed { .. } | Input::MachineEnded { .. }) => {
            (state.clone(), Step::Nothing)
        }
        (Down { held, .. }, Input::Stop) if held.is_empty() => (state.clone(), Step::Nothing),
        (Down { .. }, Input::Stop) => (state.clone(), Step::Release),
        (Down { held, .. }, Input::Remove) if held.is_empty() => (state.clone(), Step::Forget),
        (Down { .. }, Input::Remove) => (state.clone(), Step::ReleaseThenForget),
        (Down { cause, .. }, Input::Released { left }) => (down(cause.clone(), &left), Step::Nothing),
    })
}

impl SandboxState {
    pub(crate) fn held(&self) -> &[Acquired] {
        match self {
            Self::Starting { held } | Self::Ready { held } | Self::NotReady { held, .. } => held,
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self, Self::Ready { .. })
    }

    /// Whether another sandbox may have the same name, uid, namespace and attempt.
    pub(crate) fn holds_name(&self) -> bool {
        !matches!(
            self,
            Self::NotReady {
                cause: Cause::StartFailed { .. },
                ..
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn inputs() -> impl Strategy<Value = Vec<Input>> {
        let message = || "m".to_owned();
        let some = prop::sample::subsequence(Acquired::ALL.to_vec(), 0..=Acquired::ALL.len());
        let one = prop_oneof![
            Just(Input::Started),
            Just(Input::StartFailed { message: message() }),
            Just(Input::MachineEnded { message: message() }),
            some.prop_map(|left| Input::Released { left }),
            Just(Input::Stop),
            Just(Input::Remove),
            Just(Input::Use),
        ];
        prop::collection::vec(one, 0..40)
    }

    fn starting() -> SandboxState {
        SandboxState::Starting {
            held: Acquired::ALL.to_vec(),
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_in_whatever_order(inputs in inputs()) {
            let mut state = starting();
            for input in inputs {
                let decided = decide(&state, input.clone());
                match (&input, &decided) {
                    (Input::Use, Ok(_)) => prop_assert!(state.is_ready()),
                    (Input::Use, Err(NotReady)) => prop_assert!(!state.is_ready()),
                    (_, refused) => prop_assert!(refused.is_ok(), "{:?} refused in {:?}", input, state),
                }
                let Ok((next, step)) = decided else { continue };
                // What is down stays down, and is forgotten only when it holds nothing.
                if matches!(state, SandboxState::NotReady { .. }) {
                    prop_assert!(!next.is_ready());
                }
                if step == Step::Forget {
                    prop_assert!(next.held().is_empty());
                }
                // Nothing that is held gets lost but by a release.
                if !matches!(input, Input::Released { .. }) {
                    prop_assert_eq!(state.held(), next.held());
                }
                // After Stop or Remove nothing is ready, whatever was before.
                if matches!(input, Input::Stop | Input::Remove) {
                    prop_assert!(!next.is_ready());
                }
                state = next;
            }
            // From anywhere, a Remove whose release succeeds ends in Forget.
            let (state, step) = decide(&state, Input::Remove).unwrap();
            let (state, step) = match step {
                Step::ReleaseThenForget => {
                    let (state, _) = decide(&state, Input::Released { left: Vec::new() }).unwrap();
                    decide(&state, Input::Remove).unwrap()
                }
                _ => (state, step),
            };
            prop_assert_eq!(step, Step::Forget);
            prop_assert!(state.held().is_empty());
        }
    }

    #[test]
    fn a_failed_start_frees_the_name_and_a_stop_does_not() {
        let message = "m".to_owned();
        let (failed, step) = decide(&starting(), Input::StartFailed { message }).unwrap();
        assert!(!failed.holds_name() && step == Step::Release);
        let (ready, _) = decide(&starting(), Input::Started).unwrap();
        let (stopped, _) = decide(&ready, Input::Stop).unwrap();
        assert!(ready.holds_name() && stopped.holds_name());
    }

    #[test]
    fn a_machine_that_ends_leaves_what_it_held_for_stop() {
        let (ready, _) = decide(&starting(), Input::Started).unwrap();
        let message = "m".to_owned();
        let (ended, step) = decide(&ready, Input::MachineEnded { message }).unwrap();
        assert_eq!((step, ended.held()), (Step::EndContainers, &Acquired::ALL[..]));
        assert_eq!(decide(&ended, Input::Stop).unwrap().1, Step::Release);
    }
}
