//! Random sequences of calls against CRI's rules: one after the other, where every answer is known (`rules`), and many at
//! once, where what must hold is known (`race`).
//!
//! A sequence that breaks a rule is shrunk and printed with the seed that leads to it: `CLEARPOD_SEED=N cargo test …` goes that
//! way again, `PROPTEST_CASES` makes it more of them.

mod one_by_one;
mod race;
mod rules;

use cri_server::{
    guest::fake::{Fault, FaultPoint},
    machine::MachineExit,
};
use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{Config, RngSeed, TestRunner},
};
use tonic::Status;

use self::rules::{Command, Number};
use crate::support::TestNode;

const UNKNOWN: &str = "0123456789abcdef0123456789abcdef";
/// Of pods, and of containers of one pod: few, so that they meet.
const NAMES: u8 = 3;

/// What happens next. An index is among all that were ever made, and one more, which never was.
#[derive(Debug, Clone)]
enum Step {
    RunPod {
        name: u8,
        fault: Option<FaultPoint>,
    },
    StopPod(Index),
    RemovePod(Index),
    /// Somebody kills the VMM.
    KillMachine(Index),
    Create {
        pod: Index,
        name: u8,
        command: Command,
        fails: bool,
    },
    Start {
        container: Index,
        fails: bool,
    },
    Stop {
        container: Index,
        grace: u8,
    },
    Remove {
        container: Index,
        fails: bool,
    },
}

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let index = any::<Index>;
    let seldom = || prop::bool::weighted(0.1);
    let fault = prop::option::weighted(
        0.15,
        prop::sample::select(vec![
            FaultPoint::Launch,
            FaultPoint::Boot,
            FaultPoint::Call("ConfigureSandbox"),
        ]),
    );
    let command = prop_oneof![
        4 => Just(Command::Sleeps),
        1 => Just(Command::Stubborn),
        3 => (0..200_u8).prop_map(Command::Exits),
        1 => Just(Command::Missing),
    ];
    let create = (index(), 0..NAMES, command, seldom());
    let step = prop_oneof![
        4 => (0..NAMES, fault).prop_map(|(name, fault)| Step::RunPod { name, fault }),
        1 => index().prop_map(Step::StopPod),
        2 => index().prop_map(Step::RemovePod),
        1 => index().prop_map(Step::KillMachine),
        6 => create.prop_map(|(pod, name, command, fails)| Step::Create { pod, name, command, fails }),
        6 => (index(), seldom()).prop_map(|(container, fails)| Step::Start { container, fails }),
        3 => (index(), 0..2_u8).prop_map(|(container, grace)| Step::Stop { container, grace }),
        3 => (index(), seldom()).prop_map(|(container, fails)| Step::Remove { container, fails }),
    ];
    prop::collection::vec(step, 1..most)
}

/// The number that an index means among `count` and one more.
fn among(index: &Index, count: usize) -> Number {
    index.index(count + 1)
}

/// Runs `test` on many sequences; the shortest that fails is shown, and how to come to it again.
fn for_all<S: Strategy>(cases: u32, strategy: &S, test: impl Fn(S::Value)) {
    let seed = match std::env::var("CLEARPOD_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => rand_seed(),
    };
    let config = Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 100,
        ..Config::default()
    };
    let config = match std::env::var("PROPTEST_CASES") {
        Ok(cases) => Config {
            cases: cases.parse().unwrap(),
            ..config
        },
        Err(_) => config,
    };
    let outcome = TestRunner::new(config).run(strategy, |steps| {
        test(steps);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("CLEARPOD_SEED={seed}: {error}");
    }
}

fn rand_seed() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

impl Command {
    fn words(self) -> Vec<String> {
        let script = match self {
            Self::Sleeps => "echo up; sleep infinity".to_owned(),
            Self::Stubborn => "trap '' TERM; echo up; sleep infinity".to_owned(),
            Self::Exits(code) => format!("echo up; exit {code}"),
            Self::Missing => return vec!["/no/such/program".to_owned()],
        };
        ["sh", "-c", &script].map(str::to_owned).to_vec()
    }
}

async fn run_pod(node: &TestNode, name: u8, fault: Option<FaultPoint>) -> Result<String, Status> {
    if let Some(point) = fault {
        node.host.inject(point, Fault::Fail, 1);
    }
    node.run_pod(&format!("pod-{name}")).await
}

/// With a log of its own, whatever else has the name.
async fn create(node: &TestNode, pod: &str, name: u8, command: Command, log: &str) -> Result<String, Status> {
    let words = command.words();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut config = node.container_config(&format!("c-{name}"), &words);
    config.log_path = format!("{log}.log");
    node.create(pod, config).await
}

fn kill_machine(node: &TestNode, pod: &str) {
    if let Some(machine) = node.host.machine(pod) {
        machine.kill(MachineExit::Signalled(9));
    }
}
