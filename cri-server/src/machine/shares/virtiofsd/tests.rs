//! Binds and the real virtiofsd, in a mount namespace of their own. Each needs root, one of them virtiofsd
//! (`CLEARPOD_VIRTIOFSD`, or `virtiofsd` on the PATH).

use std::os::{fd::OwnedFd, unix::fs::MetadataExt as _};

use nix::mount::{MsFlags, mount, umount};
use proto::machine::ExitReason;
use rustix::fs::{Mode, OFlags};

use super::{
    super::{
        Propagation,
        testing::{in_own_namespace, tmpfs},
    },
    *,
};
use crate::{id_map::tests::map, machine::MachineExit};

/// In a namespace and a runtime of its own.
fn alone(name: &str, test: impl AsyncFnOnce(&Path) + Send) {
    in_own_namespace(name, |root| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(test(root));
    });
}

fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn plain(propagation: Propagation) -> View {
    View {
        propagation,
        id_map: None,
    }
}

fn make_shared(at: &Path, flags: MsFlags) {
    mount(
        None::<&str>,
        at,
        None::<&str>,
        MsFlags::MS_SHARED | flags,
        None::<&str>,
    )
    .unwrap();
}

fn machine(root: &Path) -> Layout {
    let layout = Layout::new(&root.join("machines"), "m1").unwrap();
    layout.create().unwrap();
    layout
}

#[test]
fn a_volume_is_bound_as_it_is_and_given_back_whole() {
    alone("binds", async |root| {
        let layout = machine(root);
        let source = root.join("source");
        tmpfs(&source);
        make_shared(&source, MsFlags::empty());
        fs_err::write(source.join("file"), "kept").unwrap();
        tmpfs(&source.join("early"));
        let shares = Virtiofsd::new("/no/virtiofsd".into());
        let bind = async |name: &str, path: &Path, propagation| {
            shares
                .bind(&layout, name, open(path), plain(propagation))
                .await
                .unwrap();
        };
        bind("0", &source, Propagation::Private).await;
        bind("0", &source, Propagation::Private).await;
        bind("1", &source, Propagation::FromHost).await;
        bind("2", &source.join("file"), Propagation::Private).await;
        tmpfs(&source.join("late"));
        for below in ["early", "late"] {
            fs_err::write(source.join(below).join("x"), "").unwrap();
        }
        let has = |path: &str| layout.shared().join(path).exists();
        assert!(has("0/early/x") && has("1/early/x") && has("1/late/x"));
        assert!(!has("0/late/x"), "private is private");
        assert_eq!(fs_err::read_to_string(layout.shared().join("2")).unwrap(), "kept");
        umount(&layout.shared().join("1/late")).unwrap();
        assert!(source.join("late/x").exists(), "nothing goes back to the host");
        let text = layout.remove().unwrap_err().to_string();
        assert!(text.contains("mounted"), "{text}");
        shares.unbind(&layout, "1").await.unwrap();
        shares.unbind(&layout, "1").await.unwrap();
        let mut names = shares.names(&layout).await.unwrap();
        names.sort();
        assert_eq!(names, ["0", "2"]);
        shares.end(&layout).await.unwrap();
        shares.end(&layout).await.unwrap();
        layout.remove().unwrap();
        assert_eq!(fs_err::read_to_string(source.join("file")).unwrap(), "kept");
        assert!(source.join("early/x").exists());
    });
}

#[test]
fn a_volume_is_seen_with_the_ids_of_a_user_namespace() {
    alone("mapped", async |root| {
        let layout = machine(root);
        let source = root.join("source");
        tmpfs(&source);
        fs_err::create_dir(source.join("directory")).unwrap();
        let shares = Virtiofsd::new("/no/virtiofsd".into());
        let mapped = View {
            propagation: Propagation::Private,
            id_map: Some(map(100_000, 65_536)),
        };
        shares.bind(&layout, "0", open(&source), mapped).await.unwrap();
        let inside = layout.shared().join("0");
        let owner = |path: &Path| fs_err::metadata(path).unwrap().uid();
        assert_eq!(owner(&inside.join("directory")), 100_000);
        // As virtiofsd makes files for the namespace's root.
        std::os::unix::fs::chown(inside.join("directory"), Some(100_007), None).unwrap();
        assert_eq!(owner(&source.join("directory")), 7);
        let proc = shares.bind(&layout, "1", open(Path::new("/proc")), mapped).await;
        assert!(matches!(proc, Err(ShareError::IdMap { .. })), "{proc:?}");
        shares.end(&layout).await.unwrap();
        layout.remove().unwrap();
    });
}

#[test]
fn the_whole_host_can_be_bound_with_what_appears_in_it() {
    alone("whole host", async |root| {
        make_shared(Path::new("/"), MsFlags::MS_REC);
        let layout = machine(root);
        let shares = Virtiofsd::new("/no/virtiofsd".into());
        let count = || crate::machine::mountinfo::all().unwrap().len();
        let before = count();
        for name in ["0", "1"] {
            let bound = shares.bind(&layout, name, open(Path::new("/")), plain(Propagation::FromHost));
            bound.await.unwrap();
        }
        tmpfs(&root.join("late"));
        fs_err::write(root.join("late/x"), "").unwrap();
        let inside = root.strip_prefix("/").unwrap().join("late/x");
        assert!(layout.shared().join("1").join(inside).exists());
        umount(&root.join("late")).unwrap();
        assert!(count() < 16 * before + 64, "{} of {before}", count());
        shares.end(&layout).await.unwrap();
        assert_eq!(count(), before);
        layout.remove().unwrap();
    });
}

/// The real program; `None`, said aloud, where there is none.
fn program() -> Option<PathBuf> {
    if let Some(program) = std::env::var_os("CLEARPOD_VIRTIOFSD") {
        return Some(program.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|directory| directory.join("virtiofsd"))
        .find(|file| file.is_file());
    let required = std::env::var("CLEARPOD_REQUIRE").unwrap_or_default();
    assert!(
        found.is_some() || !required.split(',').any(|need| need == "virtiofsd"),
        "CLEARPOD_REQUIRE asks for virtiofsd"
    );
    if found.is_none() {
        eprintln!("SKIPPED: needs virtiofsd (CLEARPOD_VIRTIOFSD)");
    }
    found
}

/// virtiofsd's sandboxed half.
fn sandboxed(process: &Process) -> PathBuf {
    let pid = process.pid();
    let children = fs_err::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    PathBuf::from(format!("/proc/{}/root", children.trim()))
}

#[test]
fn the_server_sees_what_is_bound_later_and_nothing_else() {
    let Some(program) = program() else {
        return;
    };
    alone("virtiofsd", async |root| {
        let layout = machine(root);
        let source = root.join("source");
        tmpfs(&source);
        make_shared(&source, MsFlags::empty());
        let shares = Virtiofsd::new(program);
        let (process, socket) = shares.serve(&layout, None).await.unwrap();
        // It listens before it has built its sandbox.
        let inode = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
        let seen = loop {
            let seen = sandboxed(&process);
            let log = || fs_err::read_to_string(layout.shares_log()).unwrap();
            assert_eq!(process.try_exited(), None, "{}", log());
            if inode(&seen) == inode(&layout.shared()) {
                break seen;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let bound = shares.bind(&layout, "0", open(&source), plain(Propagation::FromHost));
        bound.await.unwrap();
        fs_err::write(source.join("file"), "").unwrap();
        tmpfs(&source.join("late"));
        fs_err::write(source.join("late/x"), "").unwrap();
        assert!(seen.join("0/file").exists() && seen.join("0/late/x").exists());
        assert_eq!(fs_err::read_dir(&seen).unwrap().count(), 1, "nothing of the host");
        shares.unbind(&layout, "0").await.unwrap();
        assert!(!seen.join("0").exists());
        // The next daemon finds it; it ends with its connection.
        let next = Virtiofsd::new("/no/virtiofsd".into());
        let adopted = next.adopt(&layout).await.unwrap().unwrap();
        assert_eq!(adopted.pid(), process.pid());
        drop(socket);
        // Only one of two who wait for a process is told how it ended.
        let ends = [process.exited().await, adopted.exited().await];
        assert!(ends.contains(&MachineExit::Exited(ExitReason::Ended)), "{ends:?}");
        assert!(next.adopt(&layout).await.unwrap().is_none());
        next.end(&layout).await.unwrap();
        layout.remove().unwrap();
    });
}

#[tokio::test]
async fn a_missing_program_is_named_with_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let layout = machine(root.path());
    let error = Virtiofsd::new("/no/virtiofsd".into())
        .serve(&layout, None)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("machine.virtiofsd: /no/virtiofsd") && error.contains("install"),
        "{error}"
    );
}
