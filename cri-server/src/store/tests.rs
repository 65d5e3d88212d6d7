//! Records survive, and what cannot be read is told and left alone.

use super::*;
use crate::{
    container::{limits::Limits, state::ContainerState},
    sandbox::{Acquired, SandboxState},
};

fn sandbox(id: &str) -> SandboxRecord {
    SandboxRecord {
        id: id.to_owned(),
        created_at: 7,
        state: SandboxState::Starting {
            held: Acquired::ALL.to_vec(),
        },
        attachment: None,
        timings: Default::default(),
        console: String::new(),
    }
}

fn container(id: &str, sandbox_id: &str) -> ContainerRecord {
    ContainerRecord {
        id: id.to_owned(),
        sandbox_id: sandbox_id.to_owned(),
        created_at: 8,
        state: ContainerState::Creating,
        image_id: "sha256:1".to_owned(),
        image_ref: "sha256:1".to_owned(),
        image: Default::default(),
        user: Some((1, 2, vec![3])),
        log_path: None,
        termination_log: None,
        volumes: Vec::new(),
        stop_signal: 15,
        updated: None,
        shown: Some(Limits {
            cpu_quota: 5,
            ..Limits::default()
        }),
    }
}

#[test]
fn a_record_of_before_limits_were_kept_is_read() {
    let mut value = serde_json::to_value(container("c", "s")).unwrap();
    let fields = value.as_object_mut().unwrap();
    assert!(fields.remove("shown").is_some() && fields.remove("updated").is_some());
    let read: ContainerRecord = serde_json::from_value(value).unwrap();
    assert_eq!((read.shown, read.updated), (None, None));
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("clearpod.redb");
    let request = cri::RunPodSandboxRequest {
        runtime_handler: "h".to_owned(),
        ..Default::default()
    };
    let (mut first, second) = (sandbox("s1"), sandbox("s2"));
    {
        let store = Store::open(&path).unwrap();
        store.add_sandbox(&first, &request).await.unwrap();
        store.add_sandbox(&second, &request).await.unwrap();
        for id in ["c1", "c2"] {
            let record = container(id, "s1");
            store.add_container(&record, &Default::default()).await.unwrap();
        }
        first.state = SandboxState::Ready { held: Vec::new() };
        store.put_sandbox(&first).await.unwrap();
        store.forget_container("c2").await.unwrap();
        store.forget_sandbox("s2", Vec::new()).await.unwrap();
    }
    let loaded = Store::open(&path).unwrap().load().unwrap();
    assert_eq!(loaded.sandboxes, [(first.clone(), request)]);
    assert_eq!(loaded.containers, [(container("c1", "s1"), Default::default())]);
    let store = Store::open(&path);
    let store = store.unwrap();
    store.forget_sandbox("s1", vec!["c1".to_owned()]).await.unwrap();
    let loaded = store.load().unwrap();
    assert!(loaded.sandboxes.is_empty() && loaded.containers.is_empty());
}

#[tokio::test]
async fn a_record_of_another_version_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("clearpod.redb")).unwrap();
    store
        .add_sandbox(&sandbox("s1"), &Default::default())
        .await
        .unwrap();
    store
        .add_sandbox(&sandbox("s2"), &Default::default())
        .await
        .unwrap();
    store
        .transact(|write| {
            let later = br#"{"version":2,"record":{"new":true}}"#;
            write
                .open_table(SANDBOX_RECORDS)?
                .insert("s1", later.as_slice())?;
            Ok(())
        })
        .unwrap();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.unreadable, BTreeSet::from(["s1".to_owned()]));
    assert_eq!(loaded.sandboxes.len(), 1);
}

#[test]
fn a_second_daemon_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("clearpod.redb");
    let _first = Store::open(&path).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Open { .. })));
}
