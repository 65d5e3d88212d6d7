//! Names, removal, leases and accounting of the image store, with images from a registry on loopback.

use std::sync::Arc;

use cri_server::image::{
    ImageConfig, ImageStore, ImageUser,
    testing::{Compression, TarBuilder, TestImage, TestRegistry},
};
use serde_json::json;

struct Node {
    _folder: tempfile::TempDir,
    config: ImageConfig,
    registry: TestRegistry,
}

impl Node {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let config = ImageConfig {
            root: folder.path().join("images"),
            ..ImageConfig::default()
        };
        Self {
            _folder: folder,
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

    fn layer_files(&self) -> usize {
        fs_err::read_dir(self.config.root.join("layers"))
            .expect("layers")
            .count()
    }

    /// The store as a daemon finds it that follows one killed at this moment.
    fn open_after_kill(&self) -> ImageStore {
        let copy = self.config.root.with_extension("copy");
        fs_err::create_dir_all(copy.join("layers")).expect("copy");
        copy_store(&self.config.root, &copy);
        ImageStore::open(ImageConfig {
            root: copy,
            ..ImageConfig::default()
        })
        .expect("store")
    }

    async fn pull(&self, store: &ImageStore, rest: &str) -> String {
        store.pull(&self.reference(rest), None).await.expect("pull")
    }
}

fn layer(text: &str) -> Vec<u8> {
    TarBuilder::new().file("f", 0o644, text).finish()
}

#[tokio::test]
async fn one_image_under_three_tags_is_one_image() {
    let node = Node::new().await;
    let image = TestImage::of_layer(&layer("x"));
    for tag in ["1", "2", "3"] {
        node.registry.push("tags", tag, &image);
    }
    node.registry.push("other/name", "latest", &image);
    let store = node.open();
    for rest in ["tags:1", "tags:2", "tags:3", "other/name"] {
        node.pull(&store, rest).await;
    }
    let images = store.list(None);
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].repo_tags.len(), 4);
    assert_eq!(images[0].repo_digests.len(), 2);
    store.remove(&node.reference("tags:2")).expect("remove");
    assert!(store.list(None).is_empty(), "removing one tag removes all");
    assert_eq!(node.layer_files(), 0);
    store.remove(&node.reference("tags:2")).expect("idempotent");
}

#[tokio::test]
async fn images_are_found_by_every_name() {
    let node = Node::new().await;
    let image = TestImage::of_layer(&layer("x"));
    node.registry.push("a/b", "latest", &image);
    let store = node.open();
    let id = node.pull(&store, "a/b").await;
    let hex = id.strip_prefix("sha256:").expect("sha256");
    let by_digest = node.reference(&format!("a/b@{}", image.manifest_digest()));
    let by_both = node.reference(&format!("a/b:ignored@{}", image.manifest_digest()));
    for name in [
        id.as_str(),
        hex,
        &hex[..12],
        &node.reference("a/b"),
        &node.reference("a/b:latest"),
        &by_digest,
        &by_both,
    ] {
        assert_eq!(
            store.resolve(name).map(|image| image.id.clone()),
            Some(id.clone()),
            "{name}"
        );
        assert_eq!(store.list(Some(name)).len(), 1, "{name}");
    }
    for name in ["", "sha256:", "zz", "a/b", "a/b:other", &image.manifest_digest()] {
        assert!(store.resolve(name).is_none(), "{name}");
    }
}

#[tokio::test]
async fn a_tag_that_moves_leaves_the_old_image_without_it() {
    let node = Node::new().await;
    let store = node.open();
    node.registry.push("a", "1", &TestImage::of_layer(&layer("old")));
    let old = node.pull(&store, "a:1").await;
    node.registry.push("a", "1", &TestImage::of_layer(&layer("new")));
    let new = node.pull(&store, "a:1").await;
    assert_ne!(old, new);
    for store in [&store, &node.open_after_kill()] {
        let old = store.resolve(&old).expect("kept until it is removed");
        assert!(old.repo_tags.is_empty());
        assert_eq!(old.repo_digests.len(), 1);
        assert_eq!(store.resolve(&node.reference("a:1")).expect("moved").id, new);
    }
}

/// What is on disk at this moment, as a kill would leave it.
fn copy_store(from: &std::path::Path, to: &std::path::Path) {
    fs_err::copy(from.join("images.redb"), to.join("images.redb")).expect("catalog");
    for file in fs_err::read_dir(from.join("layers")).expect("layers") {
        let file = file.expect("file");
        fs_err::copy(file.path(), to.join("layers").join(file.file_name())).expect("layer");
    }
}

#[tokio::test]
async fn shared_layers_stay_with_the_image_that_is_left() {
    let node = Node::new().await;
    let (base, top) = (layer("base"), layer("top"));
    node.registry.push("small", "1", &TestImage::of_layer(&base));
    let big = TestImage::new(
        &[(&base, Compression::Gzip), (&top, Compression::Gzip)],
        &json!({"User": "www-data"}),
    );
    node.registry.push("big", "1", &big);
    let store = node.open();
    let (small, big) = (
        node.pull(&store, "small:1").await,
        node.pull(&store, "big:1").await,
    );
    assert_eq!(node.layer_files(), 2);
    assert_eq!(
        store.resolve(&big).expect("big").user,
        ImageUser::Name("www-data".into())
    );
    store.remove(&big).expect("remove");
    assert_eq!(node.layer_files(), 1);
    assert!(store.resolve(&small).expect("small").layers[0].path.exists());
    store.remove(&small).expect("remove");
    assert_eq!(node.layer_files(), 0);
}

#[tokio::test]
async fn leased_layers_outlive_their_image_and_a_restart() {
    let node = Node::new().await;
    node.registry.push("a", "1", &TestImage::of_layer(&layer("a")));
    let store = node.open();
    let id = node.pull(&store, "a:1").await;
    let image = store.resolve(&id).expect("image");
    let (first, second) = (store.lease(&image), store.lease(&image));
    store.remove(&id).expect("remove");
    assert!(store.resolve(&id).is_none() && store.list(None).is_empty());
    drop(first);
    assert!(image.layers[0].path.exists(), "a container still runs from it");

    let after = node.open_after_kill();
    let (again, lease) = after.lease_id(&id).expect("still there for its container");
    assert_eq!(again.layers[0].diff_id, image.layers[0].diff_id);
    after.collect_garbage().expect("sweep");
    assert!(again.layers[0].path.exists());
    assert!(after.resolve(&id).is_none(), "removed is removed");
    drop(lease);
    assert!(!again.layers[0].path.exists());
    assert!(after.lease_id(&id).is_none());

    drop(second);
    assert!(!image.layers[0].path.exists());
}

#[tokio::test]
async fn a_removed_but_leased_image_comes_back_with_its_next_pull() {
    let node = Node::new().await;
    node.registry.push("a", "1", &TestImage::of_layer(&layer("a")));
    let store = node.open();
    let id = node.pull(&store, "a:1").await;
    let lease = store.lease(&store.resolve(&id).expect("image"));
    store.remove(&id).expect("remove");
    node.pull(&store, "a:1").await;
    drop(lease);
    let image = store.resolve(&id).expect("pulled again");
    assert_eq!(image.repo_tags, [node.reference("a:1")]);
    assert!(image.layers[0].path.exists());
}

#[tokio::test]
async fn without_leases_garbage_collection_forgets_removed_images() {
    let node = Node::new().await;
    node.registry.push("a", "1", &TestImage::of_layer(&layer("a")));
    let store = node.open();
    let id = node.pull(&store, "a:1").await;
    let lease = store.lease(&store.resolve(&id).expect("image"));
    store.remove(&id).expect("remove");
    let after = node.open_after_kill();
    after.collect_garbage().expect("sweep");
    assert!(after.lease_id(&id).is_none());
    assert_eq!(
        after.usage().expect("usage").inodes,
        3,
        "two folders and the catalog"
    );
    drop(lease);
}

#[tokio::test]
async fn pinned_images_say_so() {
    let mut node = Node::new().await;
    node.registry.push("a", "1", &TestImage::of_layer(&layer("a")));
    node.registry.push("b", "1", &TestImage::of_layer(&layer("b")));
    node.config.pinned = vec![node.reference("a:1")];
    let store = node.open();
    let (a, b) = (node.pull(&store, "a:1").await, node.pull(&store, "b:1").await);
    assert!(store.resolve(&a).expect("a").pinned);
    assert!(!store.resolve(&b).expect("b").pinned);
}

#[tokio::test]
async fn usage_counts_what_is_on_disk() {
    let node = Node::new().await;
    let tar = TarBuilder::new().file("f", 0o644, vec![1; 1 << 20]).finish();
    node.registry.push("a", "1", &TestImage::of_layer(&tar));
    let store = node.open();
    let before = store.usage().expect("usage");
    let id = node.pull(&store, "a:1").await;
    let after = store.usage().expect("usage");
    assert!(after.bytes >= before.bytes + (1 << 20), "{before:?} {after:?}");
    assert_eq!(after.inodes, before.inodes + 1);
    assert_eq!(after.mountpoint, node.config.root);
    assert!(after.timestamp > before.timestamp);
    store.remove(&id).expect("remove");
    assert_eq!(store.usage().expect("usage").inodes, before.inodes);
}

#[test]
fn a_configuration_that_cannot_work_is_refused_by_field() {
    let folder = tempfile::tempdir().expect("folder");
    let with = |change: &dyn Fn(&mut ImageConfig)| {
        let mut config = ImageConfig {
            root: folder.path().into(),
            ..ImageConfig::default()
        };
        change(&mut config);
        ImageStore::open(config).expect_err("accepted").to_string()
    };
    assert!(with(&|config| config.max_concurrent_downloads = 0).contains("image.max_concurrent_downloads"));
    assert!(with(&|config| config.idle_timeout_seconds = 0).contains("image.idle_timeout_seconds"));
    assert!(with(&|config| config.platform = "amd64".into()).contains("image.platform"));
    assert!(with(&|config| config.pinned = vec!["Bad Name".into()]).contains("image.pinned"));
}

#[tokio::test]
async fn the_catalog_is_readable_while_its_store_is_shared() {
    let node = Node::new().await;
    node.registry.push("a", "1", &TestImage::of_layer(&layer("a")));
    let store = Arc::new(node.open());
    node.pull(&store, "a:1").await;
    assert!(
        ImageStore::open(node.config.clone()).is_err(),
        "one process, one store"
    );
}
