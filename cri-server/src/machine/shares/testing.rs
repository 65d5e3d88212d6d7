//! A place where tests may mount what they like.

use std::path::Path;

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Runs `test` in a thread with a mount namespace of its own, which threads and processes that it starts have too. Says so
/// where that takes more rights than there are.
pub(crate) fn in_own_namespace(name: &str, test: impl FnOnce(&Path) + Send) {
    if !rustix::process::getuid().is_root() {
        eprintln!("SKIPPED {name}: needs root");
        return;
    }
    std::thread::scope(|scope| {
        let body = || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            let directory = tempfile::tempdir().unwrap();
            test(directory.path());
        };
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn_scoped(scope, body).unwrap();
    });
}

/// Mounts a new tmpfs.
pub(crate) fn tmpfs(at: &Path) {
    fs_err::create_dir_all(at).unwrap();
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}
