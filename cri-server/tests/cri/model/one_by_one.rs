//! One call after the other: every answer is the model's, and after each of them lists show what the model has.

use std::collections::BTreeMap;

use cri_server::guest::fake::{Fault, FaultPoint};
use proptest::{prelude::*, sample::Index};

use super::{
    Step, UNKNOWN, among, create, for_all, kill_machine,
    rules::{Answer, Command, ContainerState, Number, World},
    run_pod, runtime, steps,
};
use crate::support::{TestNode, eventually};

/// A step of the model, or something that changes nothing in it.
#[derive(Debug, Clone)]
enum Move {
    Step(Step),
    RestartDaemon { politely: bool },
}

fn moves() -> impl Strategy<Value = Vec<Vec<Move>>> {
    let politely = any::<bool>().prop_map(|politely| vec![Move::RestartDaemon { politely }]);
    let some = steps(6).prop_map(|steps| steps.into_iter().map(Move::Step).collect());
    let some = prop_oneof![9 => some, 1 => politely];
    prop::collection::vec(some, 1..9)
}

/// The daemon and what it should be.
struct Both {
    node: TestNode,
    world: World,
}

#[test]
fn every_answer_is_the_rules() {
    for_all(12, &moves(), |moves| {
        let runtime = runtime();
        runtime.block_on(async {
            let mut both = Both {
                node: TestNode::start().await,
                world: World::default(),
            };
            for step in moves.into_iter().flatten() {
                both.take(&step).await;
            }
            both.end().await;
        });
    });
}

impl Both {
    async fn take(&mut self, step: &Move) {
        match step {
            Move::Step(step) => {
                self.step(step).await;
                self.node.host.heal();
            }
            Move::RestartDaemon { politely: true } => self.node.restart_daemon().await,
            Move::RestartDaemon { politely: false } => self.node.kill_daemon().await,
        }
        self.compare(step).await;
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::RunPod { name, fault } => {
                let expected = self.world.run_pod(*name, fault.is_some());
                let ran = run_pod(&self.node, *name, *fault).await;
                answered(step, &ran, expected);
                if let (Ok(id), Some(pod)) = (ran, self.world.pods.last_mut()) {
                    pod.id = id;
                }
            }
            Step::StopPod(index) => {
                let (pod, id) = self.pod(index);
                answered(step, &self.node.stop_pod(&id).await, self.world.stop_pod(pod));
            }
            Step::RemovePod(index) => {
                let (pod, id) = self.pod(index);
                answered(step, &self.node.remove_pod(&id).await, self.world.remove_pod(pod));
            }
            Step::KillMachine(index) => {
                let (pod, id) = self.pod(index);
                kill_machine(&self.node, &id);
                self.world.machine_ends(pod);
                self.settle().await;
            }
            Step::Create {
                pod,
                name,
                command,
                fails,
            } => self.create(step, pod, *name, *command, *fails).await,
            Step::Start { container, fails } => self.start(step, container, *fails).await,
            Step::Stop { container, grace } => {
                let (container, id) = self.container(container);
                let expected = self.world.stop(container, *grace);
                let stopped = self.node.stop_container(&id, (*grace).into()).await;
                answered(step, &stopped, expected);
            }
            Step::Remove { container, fails } => {
                let (container, id) = self.container(container);
                self.fail(*fails, "RemoveContainer");
                let expected = self.world.remove(container, *fails);
                answered(step, &self.node.remove_container(&id).await, expected);
            }
        }
    }

    async fn create(&mut self, step: &Step, pod: &Index, name: u8, command: Command, fails: bool) {
        let (pod, id) = self.pod(pod);
        let log = self.world.containers.len().to_string();
        self.fail(fails, "CreateContainer");
        let expected = self.world.create(pod, name, command, fails);
        let created = create(&self.node, &id, name, command, &log).await;
        answered(step, &created, expected);
        if let (Ok(id), Some(container)) = (created, self.world.containers.last_mut()) {
            container.id = id;
        }
    }

    async fn start(&mut self, step: &Step, container: &Index, fails: bool) {
        let (container, id) = self.container(container);
        self.fail(fails, "StartContainer");
        let expected = self.world.start(container, fails);
        answered(step, &self.node.start_container(&id).await, expected);
        if expected.is_ok() {
            // Traps are set, and its end is told.
            let pod = self.world.name_of(container);
            let log = self.node.log(&pod, &container.to_string(), 1).await;
            assert_eq!(log, ["stdout F up"], "after {step:?}");
            self.settle().await;
        }
    }

    fn fail(&self, fails: bool, call: &'static str) {
        if fails {
            self.node.host.inject(FaultPoint::Call(call), Fault::Fail, 1);
        }
    }

    /// What happens by itself has happened.
    async fn settle(&self) {
        eventually("the daemon hears of what happened", async || {
            self.shown_containers().await == self.world.listed_containers()
                && self.shown_pods().await == self.world.listed_pods()
        })
        .await;
    }

    async fn compare(&self, after: &Move) {
        assert_eq!(
            self.shown_pods().await,
            self.world.listed_pods(),
            "pods after {after:?}"
        );
        assert_eq!(
            self.shown_containers().await,
            self.world.listed_containers(),
            "containers after {after:?}"
        );
        for container in &self.world.containers {
            let status = self.node.container_status(&container.id).await;
            match container.state {
                ContainerState::Gone => assert!(status.is_err(), "{container:?} after {after:?}"),
                ContainerState::Exited(code) => {
                    assert_eq!(status.unwrap().exit_code, code, "{container:?} after {after:?}");
                }
                ContainerState::Created | ContainerState::Running => {
                    assert_eq!(status.unwrap().finished_at, 0, "{container:?} after {after:?}");
                }
            }
        }
    }

    /// Everything can be removed, and then nothing is left: not on the host, and not for the next daemon.
    async fn end(mut self) {
        for pod in &self.world.pods {
            self.node.remove_pod(&pod.id).await.unwrap();
        }
        for _ in 0..2 {
            assert_eq!(self.shown_pods().await, BTreeMap::new());
            assert_eq!(self.shown_containers().await, BTreeMap::new());
            self.node.assert_nothing_is_left();
            self.node.restart_daemon().await;
        }
    }

    async fn shown_pods(&self) -> BTreeMap<String, proto::cri::v1::PodSandboxState> {
        let pods = self.node.pods().await;
        let count = pods.len();
        let shown: BTreeMap<_, _> = pods
            .into_iter()
            .map(|pod| (pod.id.clone(), pod.state()))
            .collect();
        assert_eq!(shown.len(), count, "an id is listed twice");
        shown
    }

    async fn shown_containers(&self) -> BTreeMap<String, proto::cri::v1::ContainerState> {
        let containers = self.node.containers().await;
        let count = containers.len();
        let shown = containers.into_iter();
        let shown: BTreeMap<_, _> = shown.map(|one| (one.id.clone(), one.state())).collect();
        assert_eq!(shown.len(), count, "an id is listed twice");
        shown
    }

    fn pod(&self, index: &Index) -> (Number, String) {
        let number = among(index, self.world.pods.len());
        let id = self.world.pods.get(number).map(|pod| pod.id.clone());
        (number, id.unwrap_or_else(|| UNKNOWN.to_owned()))
    }

    fn container(&self, index: &Index) -> (Number, String) {
        let number = among(index, self.world.containers.len());
        let id = self.world.containers.get(number).map(|one| one.id.clone());
        (number, id.unwrap_or_else(|| UNKNOWN.to_owned()))
    }
}

fn answered<T>(step: &Step, answer: &Result<T, tonic::Status>, expected: Answer) {
    let code = answer.as_ref().map(|_| ()).map_err(tonic::Status::code);
    assert_eq!(code, expected, "{step:?}: {:?}", answer.as_ref().err());
}
