//! Two things at a time, where a boot would only wait for one of them.

use std::panic;
use std::thread;

use kvm_ioctls::{Kvm, VmFd};

use super::BootError;
use crate::kvm;

/// What `aside` makes in a thread of its own called `name`, and what `work` makes meanwhile here. Both have ended afterwards.
pub(super) fn beside<A: Send, W>(
    name: &'static str,
    aside: impl FnOnce() -> A + Send,
    work: impl FnOnce() -> W,
) -> Result<(A, W), BootError> {
    thread::scope(|scope| {
        let aside = thread::Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, aside)
            .map_err(BootError::host("start a thread"))?;
        let worked = work();
        let made = aside
            .join()
            .unwrap_or_else(|problem| panic::resume_unwind(problem));
        Ok((made, worked))
    })
}

/// A new virtual machine, and what `prepare` makes meanwhile. KVM waits for its host's processors to come by before it has made one
/// (its kernel thread goes to our cgroup by `cgroup_attach_task_all`, and that waits for a grace period of RCU): tens of
/// milliseconds in which its caller is asleep. That is this thread: in debugfs KVM names a machine by it, and kvm_stat looks for
/// the process's number.
pub(super) fn create_vm_beside<T: Send>(
    kvm: &Kvm,
    prepare: impl FnOnce() -> Result<T, BootError> + Send,
) -> Result<(VmFd, T), BootError> {
    let (prepared, vm) = beside("prepare", prepare, || kvm::create_vm(kvm))?;
    Ok((vm?, prepared?))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_can_wait_for_the_other() {
        let (to_work, from_aside) = mpsc::channel();
        let (to_aside, from_work) = mpsc::channel();
        let patience = Duration::from_secs(30);
        let aside = move || {
            to_work.send(thread::current().name().map(str::to_owned)).unwrap();
            from_work.recv_timeout(patience)
        };
        let work = || {
            to_aside.send(7).unwrap();
            from_aside.recv_timeout(patience)
        };
        let (made, worked) = beside("aside", aside, work).unwrap();
        assert_eq!((made, worked), (Ok(7), Ok(Some("aside".to_owned()))));
    }
}
