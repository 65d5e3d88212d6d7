//! Everything but KVM: files, programs, cgroups, network configuration, disk.

use std::{
    env,
    path::{Path, PathBuf},
};

use super::{Finding, Subject};
use crate::{config::Config, machine::MachineCgroup, network::CniNetwork};

/// Less than this is too little for one image and one scratch disk.
const MIN_FREE: u64 = 1 << 30;

pub(super) fn guest(config: &Config) -> Finding {
    let parts = [(&config.machine.kernel, b"\x7fELF".as_slice()), (&config.machine.initramfs, b"070701".as_slice())];
    for (path, magic) in parts {
        let remedy = "build it with deploy/kernel/build and deploy/initramfs/build, or set [machine] kernel and initramfs";
        match read_start(path, magic.len()) {
            Err(error) => return Finding::fails(Subject::Guest, error, remedy),
            Ok(start) if start != magic => {
                let problem = format!("{} is no ELF kernel, or no cpio archive", path.display());
                return Finding::fails(Subject::Guest, problem, remedy);
            }
            Ok(_) => {}
        }
    }
    let names = parts.map(|(path, _)| path.display().to_string());
    Finding::works(Subject::Guest, names.join(", "))
}

fn read_start(path: &Path, len: usize) -> std::io::Result<Vec<u8>> {
    let mut start = vec![0; len];
    std::io::Read::read_exact(&mut fs_err::File::open(path)?, &mut start)?;
    Ok(start)
}

pub(super) fn programs(config: &Config) -> Finding {
    let vmm = super::kvm::vmm(config);
    if !vmm.is_file() {
        let problem = format!("{} is missing", config.machine.vmm.display());
        return Finding::fails(Subject::Programs, problem, "install clearpod-vmm beside clearpod, or set [machine] vmm");
    }
    match which("mkfs.ext4") {
        Some(mkfs) => Finding::works(Subject::Programs, format!("{}, {}", vmm.display(), mkfs.display())),
        None => Finding::fails(Subject::Programs, "mkfs.ext4 is missing (scratch disks)", "apt-get install e2fsprogs"),
    }
}

fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(usual).map(|dir| dir.join(program)).find(|path| path.is_file())
}

pub(super) fn cgroup(config: &Config) -> Finding {
    match &config.machine.cgroup_root {
        None => Finding::works(Subject::Cgroup, "switched off: pods' CPU limits are enforced in the guest alone"),
        Some(root) if MachineCgroup::is_v2(root) => Finding::works(Subject::Cgroup, format!("{} is v2", root.display())),
        Some(root) => Finding::fails(
            Subject::Cgroup,
            format!("{} is no cgroup v2 hierarchy", root.display()),
            "boot with systemd.unified_cgroup_hierarchy=1, or leave [machine] cgroup_root out",
        ),
    }
}

pub(super) fn cni(config: &Config) -> Finding {
    let remedy = "put a .conflist into the directory, and its plugins into one of [network] bin_dirs \
                  (Debian: apt-get install containernetworking-plugins)";
    match CniNetwork::new(config.network.clone()).inspect() {
        Err(error) => Finding::fails(Subject::Cni, error, remedy),
        Ok(report) if report.missing_plugins.is_empty() => {
            Finding::works(Subject::Cni, format!("network {:?} of {}", report.network, report.file.display()))
        }
        Ok(report) => {
            let problem =
                format!("{}: plugin {} is missing", report.file.display(), report.missing_plugins.join(", "));
            Finding::fails(Subject::Cni, problem, remedy)
        }
    }
}

pub(super) fn disk(config: &Config) -> Finding {
    // The directory may not be there yet; the file system it will be on is.
    let there = config.state.ancestors().find(|dir| dir.exists()).unwrap_or_else(|| Path::new("/"));
    match rustix::fs::statvfs(there) {
        Err(errno) => Finding::fails(Subject::Disk, format!("{}: {errno}", there.display()), "set state"),
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let what = format!("{} MiB free for {}", free >> 20, config.state.display());
            if free < MIN_FREE {
                return Finding::fails(Subject::Disk, what, "free some space, or set state to a larger disk");
            }
            Finding::works(Subject::Disk, what)
        }
    }
}
