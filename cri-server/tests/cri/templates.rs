//! Pods that go on from a template, and those that cannot: over CRI, as kubelet sees it. What is behind the fake VMM's files is
//! nothing; that guests really go on is tested with the VMM.

use std::{collections::HashMap, fs, path::Path};

use cri_server::{
    guest::fake::{COPIED, Fault, FaultPoint},
    machine::MachineExit,
};
use proto::{cri::v1 as cri, machine::ExitReason};
use tonic::{Code, Status};

use crate::{
    forks::{ready, start, start_of, templates},
    support::{TestNode, eventually, refused},
};

/// Runs a pod, tells how its guest came to run, and removes it.
async fn start_and_remove(node: &TestNode, config: cri::PodSandboxConfig) -> String {
    let pod = node.run_pod_with(config).await.unwrap();
    let start = start_of(node, &pod).await;
    node.remove_pod(&pod).await.unwrap();
    start
}

fn with_memory(node: &TestNode, mib: i64) -> cri::PodSandboxConfig {
    let mut config = node.pod_config("web");
    let resources = cri::LinuxContainerResources {
        memory_limit_in_bytes: mib << 20,
        ..cri::LinuxContainerResources::default()
    };
    config.linux = Some(cri::LinuxPodSandboxConfig {
        resources: Some(resources),
        ..cri::LinuxPodSandboxConfig::default()
    });
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_goes_on_from_the_template_and_works_as_any_other() {
    let node = start().await;
    let template = ready(&node, 1).await.remove(0);
    assert_eq!(template["memory_mib"], 512);
    assert_eq!(template["files"]["forks"], 0);
    node.assert_nothing_is_left();
    let pod = node.run_pod("web").await.unwrap();
    assert_eq!(start_of(&node, &pod).await, "fork");
    let machine = node.host.machine(&pod).unwrap();
    assert_eq!(machine.devices(), ["balloon", "net0", "scratch"]);
    let config = machine.config().unwrap();
    let origin = config.snapshot.as_ref().unwrap().origin.clone();
    assert_eq!(template["origin"], origin);
    assert_eq!((config.kernel.clone(), config.command_line.as_str()), (None, ""));
    let id = node.run_container(&pod, "main", &["echo", "hello"]).await;
    assert_eq!(node.ended(&id).await.exit_code, 0);
    let first = machine.agent().went_on().unwrap();
    assert!(first.entropy.len() >= 32 && first.realtime_ns > 0, "{first:?}");
    let new: Vec<_> = machine.places().into_iter().skip(1).take(2).collect();
    assert_eq!(first.pci_addresses, new);
    let told = machine.agent().configured().unwrap();
    assert_eq!(told.hostname, "web");
    assert!(
        told.entropy.len() >= 32 && told.entropy != first.entropy,
        "{told:?}"
    );
    assert_eq!(templates(&node).await[0]["files"]["forks"], 1);
    node.remove_pod(&pod).await.unwrap();
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_first_fork_of_a_template_writes_the_others_get_beforehand() {
    let node = start().await;
    ready(&node, 1).await;
    let given = async |name: &str| {
        let pod = node.run_pod(name).await.unwrap();
        let config = node.host.machine(&pod).unwrap().config().cloned();
        node.remove_pod(&pod).await.unwrap();
        config.unwrap().snapshot.unwrap().written_soon
    };
    assert_eq!(given("first").await, []);
    assert_eq!(given("second").await, [COPIED]);
    assert_eq!(given("third").await, [COPIED]);
    // Another kernel writes other pages.
    fs::write(node.path("parts/kernel"), "another kernel").unwrap();
    assert_eq!(start_and_remove(&node, node.pod_config("boots")).await, "boot");
    eventually("the next template is ready", async || {
        templates(&node).await[0]["state"] == "ready"
    })
    .await;
    assert_eq!(given("first again").await, []);
    assert_eq!(given("second again").await, [COPIED]);
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_for_a_boot_gets_one() {
    let node = start().await;
    ready(&node, 1).await;
    let with = |value: &str| {
        let mut config = node.pod_config("web");
        config.annotations = HashMap::from([("clearpod.dev/boot".to_owned(), value.to_owned())]);
        config
    };
    assert_eq!(start_and_remove(&node, with("cold")).await, "boot");
    refused(
        node.run_pod_with(with("warm")).await,
        Code::InvalidArgument,
        "config.annotations[clearpod.dev/boot]",
    );
    let request = |handler: &str| cri::RunPodSandboxRequest {
        config: Some(node.pod_config("web")),
        runtime_handler: handler.to_owned(),
    };
    for (handler, start) in [("clearpod", "fork"), ("clearpod-cold", "boot")] {
        let answer = node.runtime.clone().run_pod_sandbox(request(handler)).await;
        let pod = answer.unwrap().into_inner().pod_sandbox_id;
        assert_eq!(start_of(&node, &pod).await, start, "{handler}");
        node.remove_pod(&pod).await.unwrap();
    }
    let status = node.runtime.clone().status(cri::StatusRequest::default()).await;
    let handlers = status.unwrap().into_inner().runtime_handlers;
    assert!(handlers.iter().any(|handler| handler.name == "clearpod-cold"));
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shape_that_comes_again_gets_a_template_while_there_is_room() {
    let node = start().await;
    ready(&node, 1).await;
    for _ in 0..2 {
        assert_eq!(start_and_remove(&node, with_memory(&node, 256)).await, "boot");
    }
    let shapes: Vec<_> = ready(&node, 2)
        .await
        .iter()
        .map(|template| template["memory_mib"].as_u64().unwrap())
        .collect();
    assert_eq!(shapes, [256 + 64, 512]);
    assert_eq!(start_and_remove(&node, with_memory(&node, 256)).await, "fork");
    for _ in 0..3 {
        assert_eq!(start_and_remove(&node, with_memory(&node, 300)).await, "boot");
    }
    assert_eq!(templates(&node).await.len(), 2);
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_changes_under_the_daemon_makes_its_templates_old() {
    let node = start().await;
    let before = ready(&node, 1).await.remove(0);
    let forked = node.run_pod("first").await.unwrap();
    fs::write(node.path("parts/kernel"), "another kernel").unwrap();
    assert_eq!(start_and_remove(&node, node.pod_config("second")).await, "boot");
    eventually("the next template is ready", async || {
        let now = templates(&node).await.remove(0);
        now["origin"] != before["origin"] && now["state"] == "ready"
    })
    .await;
    assert_eq!(start_and_remove(&node, node.pod_config("third")).await, "fork");
    let kept: Vec<_> = fs::read_dir(node.path("run/templates")).unwrap().collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(node.pod_state(&forked).await, cri::PodSandboxState::SandboxReady);
    node.remove_pod(&forked).await.unwrap();
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_go_on_boots_in_the_same_call() {
    let node = start().await;
    let made_at = ready(&node, 1).await[0]["files"]["made_at"].clone();
    node.host.inject(FaultPoint::Restore, Fault::Stall, 1);
    assert_eq!(start_and_remove(&node, node.pod_config("web")).await, "boot");
    assert_eq!(start_and_remove(&node, node.pod_config("web")).await, "fork");
    node.host.inject(FaultPoint::Call("GoOn"), Fault::Fail, 1);
    assert_eq!(start_and_remove(&node, node.pod_config("web")).await, "boot");
    node.host.inject(FaultPoint::Call("GoOn"), Fault::Stall, 1);
    assert_eq!(start_and_remove(&node, node.pod_config("web")).await, "boot");
    assert_eq!(start_and_remove(&node, node.pod_config("web")).await, "fork");
    node.host
        .inject(FaultPoint::Call("ConfigureSandbox"), Fault::Fail, 1);
    refused(node.run_pod("web").await, Code::Internal, "configure sandbox");
    node.host.inject(FaultPoint::Restore, Fault::Stall, 3);
    for _ in 0..3 {
        assert_eq!(start_and_remove(&node, node.pod_config("web")).await, "boot");
    }
    let broken = ready(&node, 1).await.remove(0);
    assert_ne!(broken["files"]["made_at"], made_at, "three in a row: {broken}");
    assert_eq!(start_and_remove(&node, node.pod_config("web")).await, "fork");
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_is_killed_before_its_guest_is_configured_costs_no_pod() {
    let node = start().await;
    let made_at = ready(&node, 1).await[0]["files"]["made_at"].clone();
    for point in [
        FaultPoint::Restore,
        FaultPoint::Dial,
        FaultPoint::Call("GoOn"),
        FaultPoint::Call("ConfigureSandbox"),
    ] {
        node.host.inject(point, Fault::Stall, 1);
        let (pod, ()) = tokio::join!(node.run_pod("web"), async {
            eventually("it stalls", async || !node.host.is_to_fail(point)).await;
            let running = node.host.running();
            let machine = node.host.machine(&running[0]).unwrap();
            machine.kill(MachineExit::Signalled(9));
        });
        let pod = pod.unwrap();
        assert_eq!(start_of(&node, &pod).await, "boot", "{point:?}");
        node.remove_pod(&pod).await.unwrap();
        node.assert_nothing_is_left();
    }
    let after = ready(&node, 1).await.remove(0);
    assert_eq!(
        after["files"]["made_at"], made_at,
        "its template is as good as it was"
    );
}

/// Asks for a pod, whose guest is awake and does not answer any more when its Machine ends so.
async fn ends_before_it_is_ready(
    node: &TestNode,
    config: cri::PodSandboxConfig,
    exit: MachineExit,
) -> Result<String, Status> {
    let point = FaultPoint::Call("ConfigureSandbox");
    node.host.inject(point, Fault::Stall, 1);
    let end = async {
        eventually("it stalls", async || !node.host.is_to_fail(point)).await;
        let id = node.host.running().remove(0);
        node.host.machine(&id).unwrap().kill(exit);
    };
    let (pod, ()) = tokio::join!(node.run_pod_with(config), end);
    let pod = pod?;
    let start = start_of(node, &pod).await;
    node.remove_pod(&pod).await?;
    Ok(start)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_ends_before_its_pod_is_ready_is_told_as_that() {
    let node = start().await;
    ready(&node, 1).await;
    let unrunnable = MachineExit::Exited(ExitReason::GuestUnrunnable);
    let panic = MachineExit::Exited(ExitReason::GuestPanic);
    let mut cold = node.pod_config("cold");
    cold.annotations = HashMap::from([("clearpod.dev/boot".to_owned(), "cold".to_owned())]);
    for (config, exit) in [
        (node.pod_config("web"), panic),
        (node.pod_config("web"), unrunnable),
        (cold.clone(), unrunnable),
    ] {
        let start = ends_before_it_is_ready(&node, config, exit).await;
        assert_eq!(start.unwrap(), "boot", "{exit}");
    }
    refused(
        ends_before_it_is_ready(&node, cold, panic).await,
        Code::Internal,
        "panic",
    );
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_whose_guest_kvm_gives_up_on_is_made_once_more() {
    let mut node = start().await;
    let before = ready(&node, 1).await.remove(0);
    node.host.inject(FaultPoint::Kvm, Fault::Fail, 1);
    fs::write(node.path("parts/kernel"), "another kernel").unwrap();
    node.kill_daemon().await;
    eventually("the next template is ready", async || {
        let now = templates(&node).await.remove(0);
        // Once it had failed it would be so for half a minute.
        assert_ne!(now["state"], "failed", "{now}");
        now["origin"] != before["origin"] && now["state"] == "ready"
    })
    .await;
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_the_vmm_refuses_is_made_anew_once() {
    let node = start().await;
    let before = ready(&node, 1).await.remove(0);
    node.host.inject(FaultPoint::Restore, Fault::Fail, 1);
    assert_eq!(start_and_remove(&node, node.pod_config("web")).await, "boot");
    let next = ready(&node, 1).await.remove(0);
    assert_ne!(next["files"]["made_at"], before["files"]["made_at"]);
    assert_eq!(start_and_remove(&node, node.pod_config("web")).await, "fork");
    node.host.inject(FaultPoint::Restore, Fault::Fail, 1);
    assert_eq!(start_and_remove(&node, node.pod_config("web")).await, "boot");
    let refused_again = templates(&node).await.remove(0);
    assert_eq!(refused_again["state"], "failed");
    assert!(
        refused_again["why"].as_str().unwrap().contains("Refused"),
        "{refused_again}"
    );
    // Neither the fork nor the boot in its place.
    node.host.inject(FaultPoint::Kvm, Fault::Fail, 2);
    refused(
        node.run_pod("web").await,
        Code::Internal,
        "KVM could not run the guest",
    );
    node.assert_nothing_is_left();
}

/// What somebody can do to the files of the template at this path.
type Damage = fn(&Path);

#[tokio::test(flavor = "multi_thread")]
async fn nobody_goes_on_from_files_that_were_touched() {
    let damages: [(&str, Damage); 4] = [
        ("written", |place| fs::write(place.join("memory"), "x").unwrap()),
        ("cut", |place| {
            let state = fs::File::options().write(true).open(place.join("state"));
            state.unwrap().set_len(1).unwrap();
        }),
        ("exchanged", |place| {
            let other = place.with_extension("other");
            fs::write(&other, "").unwrap();
            fs::rename(other, place.join("state")).unwrap();
        }),
        ("removed", |place| fs::remove_dir_all(place).unwrap()),
    ];
    let mut node = start().await;
    for (name, damage) in damages {
        // The next daemon is not angry about what happened under the one before.
        node.kill_daemon().await;
        let before = ready(&node, 1).await.remove(0);
        let forked = node.run_pod("first").await.unwrap();
        let origin = before["origin"].as_str().unwrap();
        damage(&node.path("run/templates").join(origin));
        assert_eq!(
            start_and_remove(&node, node.pod_config("web")).await,
            "boot",
            "{name}"
        );
        let after = ready(&node, 1).await.remove(0);
        assert_ne!(after["files"]["made_at"], before["files"]["made_at"], "{name}");
        assert_eq!(after["origin"], before["origin"]);
        assert_eq!(start_and_remove(&node, node.pod_config("web")).await, "fork");
        assert_eq!(node.pod_state(&forked).await, cri::PodSandboxState::SandboxReady);
        node.remove_pod(&forked).await.unwrap();
        node.assert_nothing_is_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_changed_while_no_daemon_looked_is_made_anew() {
    let mut node = start().await;
    let before = ready(&node, 1).await.remove(0);
    node.stop_daemon().await;
    let origin = before["origin"].as_str().unwrap();
    fs::write(node.path("run/templates").join(origin).join("memory"), "x").unwrap();
    node.start_daemon().await;
    let after = ready(&node, 1).await.remove(0);
    assert_ne!(after["files"]["made_at"], before["files"]["made_at"]);
    assert_eq!(start_and_remove(&node, node.pod_config("web")).await, "fork");
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_costs_the_template_and_no_pod() {
    let node = start().await;
    ready(&node, 1).await;
    node.host.inject(FaultPoint::Snapshot, Fault::Fail, 1);
    fs::write(node.path("parts/initramfs"), "another agent").unwrap();
    assert_eq!(start_and_remove(&node, node.pod_config("web")).await, "boot");
    eventually("the template has failed", async || {
        templates(&node).await[0]["state"] == "failed"
    })
    .await;
    let why = templates(&node).await[0]["why"].to_string();
    assert!(why.contains("No space left on device"), "{why}");
    assert_eq!(fs::read_dir(node.path("run/templates")).unwrap().count(), 0);
    assert_eq!(start_and_remove(&node, node.pod_config("web")).await, "boot");
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_daemon_finds_them_and_makes_those_that_are_not_whole() {
    let mut node = start().await;
    let before = ready(&node, 1).await;
    let pod = node.run_pod("web").await.unwrap();
    node.kill_daemon().await;
    let after = ready(&node, 1).await;
    assert_eq!(after[0]["origin"], before[0]["origin"]);
    assert_eq!(after[0]["files"]["made_at"], before[0]["files"]["made_at"]);
    assert_eq!(start_of(&node, &pod).await, "fork");
    node.remove_pod(&pod).await.unwrap();
    node.stop_daemon().await;
    // Killed while one was made, and one lost half of its files.
    let place = node
        .path("run/templates")
        .join(before[0]["origin"].as_str().unwrap());
    fs::create_dir(place.with_extension("new")).unwrap();
    fs::remove_file(place.join("state")).unwrap();
    node.start_daemon().await;
    let remade = ready(&node, 1).await;
    assert_ne!(remade[0]["files"]["made_at"], before[0]["files"]["made_at"]);
    assert_eq!(start_and_remove(&node, node.pod_config("web")).await, "fork");
    assert_eq!(fs::read_dir(node.path("run/templates")).unwrap().count(), 1);
    node.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_while_it_makes_one_leaves_nothing_for_long() {
    let node = {
        let mut node = start().await;
        ready(&node, 1).await;
        node.host.inject(FaultPoint::Boot, Fault::Stall, 1);
        fs::write(node.path("parts/vmm"), "another VMM").unwrap();
        node.kill_daemon().await;
        eventually("the template's guest boots", async || {
            node.host.running().len() == 1
        })
        .await;
        node.kill_daemon().await;
        node
    };
    ready(&node, 1).await;
    assert_eq!(start_and_remove(&node, node.pod_config("web")).await, "fork");
    node.assert_nothing_is_left();
}
