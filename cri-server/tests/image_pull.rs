//! Pulling from a registry on loopback that behaves, and from one that does not.
//!
//! Needs neither root nor KVM: blobs are read back by the tests' own reader.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use cri_server::image::{
    Image, ImageConfig, ImageStore, ImageUser, PullError, RegistryAuth, RegistryConfig, RegistryFault,
    testing::{BlobReader, Compression, Fault, FoundKind, Login, TarBuilder, TestImage, TestRegistry},
};
use serde_json::json;

struct Node {
    folder: tempfile::TempDir,
    config: ImageConfig,
    registry: TestRegistry,
}

impl Node {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let config = ImageConfig {
            root: folder.path().join("images"),
            idle_timeout_seconds: 1,
            max_attempts: 4,
            ..ImageConfig::default()
        };
        Self {
            folder,
            config,
            registry: TestRegistry::start().await,
        }
    }

    fn open(&self) -> ImageStore {
        ImageStore::open(self.config.clone()).expect("store")
    }

    fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.registry.host())
    }

    /// Names under `layers/`.
    fn files(&self) -> Vec<String> {
        let folder = self.config.root.join("layers");
        let mut names: Vec<String> = fs_err::read_dir(folder)
            .expect("layers")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Waits until the threads of cancelled pulls have cleaned up.
    async fn settle(&self) {
        for _ in 0..100 {
            if !self.files().iter().any(|name| name.contains("tmp")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("temporary files stay: {:?}", self.files());
    }
}

/// Bytes that do not compress away, so that faults can hit the middle of a transfer.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

fn layer(seed: &str) -> Vec<u8> {
    TarBuilder::new()
        .file("name", 0o644, seed)
        .file("noise", 0o644, noise(300_000))
        .finish()
}

fn contents(path: &Path) -> BTreeMap<Vec<u8>, FoundKind> {
    BlobReader::open(path)
        .tree()
        .into_iter()
        .map(|(path, found)| (path, found.kind))
        .collect()
}

async fn pull(store: &ImageStore, reference: &str) -> Result<Arc<Image>, Arc<PullError>> {
    let id = store.pull(reference, None).await?;
    Ok(store.resolve(&id).expect("a pulled image is there"))
}

async fn refusal(store: &ImageStore, reference: &str) -> Arc<PullError> {
    pull(store, reference).await.expect_err("pulled")
}

#[tokio::test]
async fn an_image_arrives_whole() {
    let node = Node::new().await;
    let base = layer("base");
    let middle = TarBuilder::new().file("etc/.wh.gone", 0o644, "").finish();
    let top = TarBuilder::new().file("name", 0o755, "top").finish();
    let layers = [
        (&base[..], Compression::Gzip),
        (&middle, Compression::Zstd),
        (&top, Compression::None),
    ];
    let run = json!({"User": "1002:7", "Cmd": ["sh"], "Env": ["A=b"], "StopSignal": "SIGINT"});
    let image = TestImage::new(&layers, &run);
    node.registry.push("demo/app", "v1", &image);
    let store = node.open();

    let pulled = pull(&store, &node.reference("demo/app:v1")).await.expect("pull");

    assert_eq!(pulled.id, image.config_digest);
    assert_eq!(pulled.repo_tags, [node.reference("demo/app:v1")]);
    assert_eq!(
        pulled.repo_digests,
        [node.reference(&format!("demo/app@{}", image.manifest_digest()))]
    );
    assert_eq!(pulled.user, ImageUser::Uid(1002));
    assert_eq!(
        (pulled.config.cmd.clone(), pulled.config.stop_signal.as_str()),
        (vec!["sh".to_owned()], "SIGINT")
    );
    assert_eq!(pulled.layers.len(), 3);
    assert_eq!(
        contents(&pulled.layers[0].path)[&b"noise"[..]],
        FoundKind::File(noise(300_000))
    );
    assert_eq!(
        contents(&pulled.layers[1].path)[&b"etc/gone"[..]],
        FoundKind::Character(0, 0)
    );
    assert_eq!(
        contents(&pulled.layers[2].path)[&b"name"[..]],
        FoundKind::File(b"top".into())
    );
    assert_eq!(
        pulled.size,
        pulled.layers.iter().map(|layer| layer.size).sum::<u64>()
    );
    assert!(pulled.layers.iter().all(|layer| layer.size % 4096 == 0));
    assert_eq!(node.files().len(), 3);
}

#[tokio::test]
async fn an_index_leads_to_our_platform_and_keeps_its_digest() {
    let node = Node::new().await;
    let (arm, amd) = (layer("arm"), layer("amd"));
    let arm = TestImage::for_platform(&[(&arm, Compression::Gzip)], &json!({}), "arm64");
    let amd = TestImage::of_layer(&amd);
    let index = node
        .registry
        .push_index("multi", "latest", &[("arm64", &arm), ("amd64", &amd)]);
    let only_arm = node.registry.push_index("arm", "latest", &[("arm64", &arm)]);
    let store = node.open();

    let pulled = pull(&store, &node.reference("multi")).await.expect("pull");
    assert_eq!(pulled.id, amd.config_digest);
    assert_eq!(pulled.repo_digests, [node.reference(&format!("multi@{index}"))]);

    for reference in [format!("arm@{only_arm}"), "multi:latest-arm64".to_owned()] {
        let error = refusal(&store, &node.reference(&reference)).await;
        assert!(
            matches!(&*error, PullError::NoPlatform { available, .. } if available == "linux/arm64"),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_pull_by_digest_has_no_tag() {
    let node = Node::new().await;
    let image = TestImage::of_layer(&layer("x"));
    node.registry.push("a", "any", &image);
    let store = node.open();
    let reference = node.reference(&format!("a@{}", image.manifest_digest()));
    let pulled = pull(&store, &reference).await.expect("pull");
    assert!(pulled.repo_tags.is_empty());
    assert_eq!(pulled.repo_digests, [reference]);
}

#[tokio::test]
async fn a_mirror_serves_under_the_original_name() {
    let mut node = Node::new().await;
    let image = TestImage::of_layer(&layer("x"));
    node.registry.push("tools/busybox", "1", &image);
    let dead = "http://127.0.0.1:9";
    let endpoints = [dead.to_owned(), format!("http://{}", node.registry.host())]
        .into_iter()
        .map(|url| serde_json::from_value(json!({"url": url})).expect("endpoint"))
        .collect();
    let registry = RegistryConfig {
        endpoints,
        endpoints_only: true,
    };
    node.config
        .registries
        .insert("registry.k8s.io".to_owned(), registry);
    let store = node.open();
    let pulled = pull(&store, "registry.k8s.io/tools/busybox:1")
        .await
        .expect("pull");
    assert_eq!(pulled.repo_tags, ["registry.k8s.io/tools/busybox:1"]);
    assert!(pulled.repo_digests[0].starts_with("registry.k8s.io/tools/busybox@sha256:"));
}

#[tokio::test]
async fn basic_and_bearer_logins_are_answered() {
    for bearer in [false, true] {
        let node = Node::new().await;
        node.registry
            .push("private", "1", &TestImage::of_layer(&layer("x")));
        let (username, password) = ("joe".to_owned(), "s3cret".to_owned());
        node.registry.require_login(match bearer {
            true => Login::Bearer {
                username: username.clone(),
                password: password.clone(),
            },
            false => Login::Basic {
                username: username.clone(),
                password: password.clone(),
            },
        });
        let store = node.open();
        let reference = node.reference("private:1");
        let wrong = RegistryAuth {
            username: username.clone(),
            password: "wrong".into(),
            ..RegistryAuth::default()
        };
        for auth in [None, Some(&wrong)] {
            let error = store.pull(&reference, auth).await.expect_err("no access");
            assert!(matches!(&*error, PullError::Unauthorized { .. }), "{error:?}");
            assert!(!format!("{error:?}").contains("wrong"), "a secret in {error:?}");
        }
        let right = RegistryAuth {
            username,
            password,
            ..RegistryAuth::default()
        };
        store.pull(&reference, Some(&right)).await.expect("pull");
        let foreign = RegistryAuth {
            server_address: "https://gcr.io/v1/".into(),
            ..right
        };
        let error = store
            .pull(&reference, Some(&foreign))
            .await
            .expect_err("not for this registry");
        assert!(
            matches!(&*error, PullError::ForeignCredentials { .. }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn what_is_missing_is_not_found() {
    let node = Node::new().await;
    let store = node.open();
    let error = refusal(&store, &node.reference("no/such:image")).await;
    assert!(matches!(&*error, PullError::NotFound { .. }), "{error:?}");
    let error = refusal(&store, "Not A Reference").await;
    assert!(matches!(&*error, PullError::Reference(_)), "{error:?}");
    assert!(store.list(None).is_empty());
    assert!(store.resolve("no/such:image").is_none());
    store.remove("no/such:image").expect("idempotent");
}

#[tokio::test]
async fn wrong_bytes_are_found_out_and_leave_nothing() {
    let node = Node::new().await;
    let tar = layer("x");
    let mut image = TestImage::of_layer(&tar);
    node.registry.push("corrupt", "1", &image);
    let store = node.open();

    let blob = image.blobs[0].0.clone();
    node.registry.fail(&blob, Fault::Corrupt);
    let error = refusal(&store, &node.reference("corrupt:1")).await;
    assert!(
        matches!(&*error, PullError::DigestMismatch { what, .. } if what.contains("digest")),
        "{error:?}"
    );
    node.registry.clear_faults();

    node.registry.fail("/manifests/sha256", Fault::Corrupt);
    let by_digest = node.reference(&format!("corrupt@{}", image.manifest_digest()));
    let error = refusal(&store, &by_digest).await;
    assert!(matches!(&*error, PullError::DigestMismatch { .. }), "{error:?}");
    node.registry.clear_faults();

    node.registry.fail(&image.config_digest, Fault::Corrupt);
    let error = refusal(&store, &node.reference("corrupt:1")).await;
    assert!(matches!(&*error, PullError::DigestMismatch { .. }), "{error:?}");
    node.registry.clear_faults();

    // The right bytes, but the configuration promises another tar.
    let other = TestImage::of_layer(&layer("other"));
    let last = image.blobs.len() - 1;
    let manifest = String::from_utf8(image.manifest.clone()).expect("JSON");
    let manifest = manifest.replace(&image.config_digest, &other.config_digest);
    let size = format!("\"size\":{}", image.blobs[last].1.len());
    assert_eq!(other.blobs[last].1.len(), image.blobs[last].1.len(), "{size}");
    image.manifest = manifest.into_bytes();
    image.blobs[last] = other.blobs[last].clone();
    node.registry.push("diff", "1", &image);
    let error = refusal(&store, &node.reference("diff:1")).await;
    assert!(
        matches!(&*error, PullError::DigestMismatch { what, .. } if what.contains("diff_id")),
        "{error:?}"
    );

    assert!(node.files().is_empty(), "{:?}", node.files());
    assert!(store.list(None).is_empty());
}

#[tokio::test]
async fn a_cut_transfer_goes_on_where_it_was_cut() {
    for ranges in [true, false] {
        let node = Node::new().await;
        if !ranges {
            node.registry.without_ranges();
        }
        let image = TestImage::of_layer(&layer("x"));
        node.registry.push("cut", "1", &image);
        let blob = &image.blobs[0].0;
        node.registry.fail(blob, Fault::CutAfter(100_000));
        node.registry.fail(blob, Fault::Status(503));
        node.registry.fail(blob, Fault::CutAfter(50_000));
        let store = node.open();
        let pulled = pull(&store, &node.reference("cut:1")).await.expect("pull");
        assert_eq!(
            contents(&pulled.layers[0].path)[&b"noise"[..]],
            FoundKind::File(noise(300_000))
        );
        let requests = node.registry.requests(blob);
        assert_eq!(requests.len(), 4, "{requests:?}");
        assert!(requests[1].ends_with("bytes=100000-"), "{requests:?}");
    }
}

#[tokio::test]
async fn a_registry_that_keeps_cutting_is_given_up() {
    let node = Node::new().await;
    let image = TestImage::of_layer(&layer("x"));
    node.registry.push("cut", "1", &image);
    for _ in 0..10 {
        node.registry.fail(&image.blobs[0].0, Fault::CutAfter(10));
    }
    let store = node.open();
    let error = refusal(&store, &node.reference("cut:1")).await;
    let PullError::Registry {
        source: RegistryFault::ConnectionCut { .. },
        ..
    } = &*error
    else {
        panic!("{error:?}");
    };
    assert!(node.files().is_empty());
    node.registry.clear_faults();
    pull(&store, &node.reference("cut:1")).await.expect("works again");
}

#[tokio::test]
async fn silence_is_a_timeout_and_a_pause_is_not() {
    let node = Node::new().await;
    let image = TestImage::of_layer(&layer("x"));
    node.registry.push("slow", "1", &image);
    let store = node.open();
    node.registry
        .fail("/manifests/", Fault::Stall(Duration::from_millis(300)));
    node.registry
        .fail(&image.blobs[0].0, Fault::Slow(Duration::from_millis(10)));
    pull(&store, &node.reference("slow:1"))
        .await
        .expect("slow is no fault");
    for _ in 0..4 {
        node.registry
            .fail("/manifests/", Fault::Stall(Duration::from_secs(30)));
    }
    let error = refusal(&store, &node.reference("slow:1")).await;
    assert!(
        matches!(
            &*error,
            PullError::Registry {
                source: RegistryFault::TimedOut { .. },
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn short_and_long_bodies_are_refused() {
    let node = Node::new().await;
    let image = TestImage::of_layer(&layer("x"));
    node.registry.push("short", "1", &image);
    node.registry.fail(&image.blobs[0].0, Fault::ShortBody(1000));
    let store = node.open();
    let error = refusal(&store, &node.reference("short:1")).await;
    assert!(matches!(&*error, PullError::Registry { .. }), "{error:?}");

    let mut long = TestImage::of_layer(&layer("y"));
    long.blobs[0].1.extend([0; 10]);
    node.registry.push("long", "1", &long);
    let error = refusal(&store, &node.reference("long:1")).await;
    assert!(
        matches!(
            &*error,
            PullError::Registry {
                source: RegistryFault::TooLong { .. },
                ..
            }
        ),
        "{error:?}"
    );
    assert!(node.files().is_empty());
}

#[tokio::test]
async fn blobs_behind_a_redirect_are_followed_without_credentials() {
    let node = Node::new().await;
    let storage = TestRegistry::start().await;
    let image = TestImage::of_layer(&layer("x"));
    node.registry.push("redirected", "1", &image);
    storage.push("elsewhere", "1", &image);
    let (digest, _) = &image.blobs[0];
    let to = format!("http://{}/v2/elsewhere/blobs/{digest}", storage.host());
    node.registry.fail(digest, Fault::Redirect(to));
    let login = Login::Basic {
        username: "joe".into(),
        password: "pw".into(),
    };
    node.registry.require_login(login);
    let auth = RegistryAuth {
        username: "joe".into(),
        password: "pw".into(),
        ..RegistryAuth::default()
    };
    let store = node.open();
    store
        .pull(&node.reference("redirected:1"), Some(&auth))
        .await
        .expect("pull");
    assert_eq!(storage.requests(digest).len(), 1);
    assert!(storage.requests("with-credentials").is_empty());
}

#[tokio::test]
async fn too_large_and_malformed_images_are_refused() {
    let mut node = Node::new().await;
    let tar = layer("x");
    let image = TestImage::of_layer(&tar);
    node.registry.push("large", "1", &image);
    node.config.limits.layer_bytes = 1000;
    let store = node.open();
    let error = refusal(&store, &node.reference("large:1")).await;
    assert!(matches!(&*error, PullError::Layer { .. }), "{error:?}");

    let evil = TarBuilder::new()
        .file("../../../etc/cron.d/x", 0o644, "* * * * * root id")
        .finish();
    node.registry.push("evil", "1", &TestImage::of_layer(&evil));
    let error = refusal(&store, &node.reference("evil:1")).await;
    assert!(matches!(&*error, PullError::Layer { .. }), "{error:?}");

    let mut garbage = TestImage::of_layer(&tar);
    garbage.manifest = b"<html>login</html>".to_vec();
    node.registry.push("garbage", "1", &garbage);
    let error = refusal(&store, &node.reference("garbage:1")).await;
    assert!(matches!(&*error, PullError::Malformed { .. }), "{error:?}");

    let mut giant = TestImage::of_layer(&tar);
    giant.manifest = vec![b' '; 5 << 20];
    node.registry.push("giant", "1", &giant);
    let error = refusal(&store, &node.reference("giant:1")).await;
    assert!(matches!(&*error, PullError::TooLarge { .. }), "{error:?}");
    assert!(node.files().is_empty());
}

#[tokio::test]
async fn pulls_at_the_same_time_are_one_pull() {
    let node = Node::new().await;
    let image = TestImage::of_layer(&layer("shared"));
    node.registry.push("same", "1", &image);
    let tar = layer("shared");
    let cousin = TestImage::new(&[(&tar, Compression::Gzip)], &json!({"Cmd": ["other"]}));
    node.registry.push("cousin", "1", &cousin);
    node.registry
        .fail(&image.blobs[0].0, Fault::Slow(Duration::from_millis(1)));
    let store = Arc::new(node.open());
    let (same, cousin) = (node.reference("same:1"), node.reference("cousin:1"));
    let pulls = (0..20).map(|number| {
        let store = Arc::clone(&store);
        let reference = if number % 4 == 0 {
            cousin.clone()
        } else {
            same.clone()
        };
        async move { store.pull(&reference, None).await }
    });
    for id in futures_util::future::join_all(pulls).await {
        id.expect("pull");
    }
    assert_eq!(node.registry.requests("/same/manifests/").len(), 1);
    assert_eq!(
        node.registry
            .requests("/blobs/")
            .iter()
            .filter(|it| it.contains(&image.blobs[0].0))
            .count(),
        1
    );
    assert_eq!(store.list(None).len(), 2);
    assert_eq!(node.files().len(), 1);
}

#[tokio::test]
async fn a_cancelled_pull_leaves_nothing_and_one_waiter_is_enough() {
    let node = Node::new().await;
    let image = TestImage::of_layer(&layer("x"));
    node.registry.push("slow", "1", &image);
    node.registry
        .fail(&image.blobs[0].0, Fault::Slow(Duration::from_millis(20)));
    let store = node.open();
    let reference = node.reference("slow:1");

    let cancelled = tokio::time::timeout(Duration::from_millis(300), store.pull(&reference, None)).await;
    assert!(cancelled.is_err(), "the pull was too fast to be cancelled");
    node.settle().await;
    assert!(node.files().is_empty(), "{:?}", node.files());

    let impatient = tokio::time::timeout(Duration::from_millis(100), store.pull(&reference, None));
    let (impatient, patient) = tokio::join!(impatient, store.pull(&reference, None));
    assert!(impatient.is_err());
    patient.expect("the other caller still waits");
    assert_eq!(node.registry.requests(&image.blobs[0].0).len(), 2);
}

#[tokio::test]
async fn leftovers_of_a_killed_daemon_are_removed_and_complete_layers_used() {
    let node = Node::new().await;
    let (one, two) = (layer("one"), layer("two"));
    let image = TestImage::new(
        &[(&one, Compression::Gzip), (&two, Compression::Gzip)],
        &json!({}),
    );
    node.registry.push("a", "1", &image);
    let store = node.open();
    for _ in 0..10 {
        node.registry.fail(&image.blobs[1].0, Fault::Status(500));
    }
    refusal(&store, &node.reference("a:1")).await;
    drop(store);
    let folder = node.config.root.join("layers");
    fs_err::write(folder.join("0123.7.tmp"), "half a layer").expect("write");
    fs_err::write(
        folder.join(format!("{}.erofs", "0".repeat(64))),
        "renamed, not recorded",
    )
    .expect("write");
    node.registry.clear_faults();

    let store = node.open();
    assert!(
        node.files()
            .iter()
            .all(|name| name.ends_with(".erofs") && !name.starts_with("0000"))
    );
    pull(&store, &node.reference("a:1")).await.expect("pull");
    assert_eq!(node.files().len(), 2);
    assert_eq!(
        node.registry.requests(&image.blobs[0].0).len(),
        1,
        "the first layer was there"
    );
}

#[tokio::test]
async fn images_survive_a_restart_but_not_the_loss_of_a_layer() {
    let node = Node::new().await;
    node.registry.push("a", "1", &TestImage::of_layer(&layer("a")));
    let reference = node.reference("a:1");
    let before = {
        let store = node.open();
        pull(&store, &reference).await.expect("pull")
    };
    let store = node.open();
    assert_eq!(store.resolve(&reference), Some(Arc::clone(&before)));
    drop(store);
    fs_err::write(&before.layers[0].path, "cut short").expect("write");
    let store = node.open();
    assert_eq!(
        store.resolve(&reference),
        None,
        "a container must not start from half an image"
    );
    let again = pull(&store, &reference).await.expect("pull");
    assert_eq!(again, before);
    drop(node.folder);
}
