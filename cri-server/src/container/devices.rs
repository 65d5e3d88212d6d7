//! Devices that a container asks for: block devices of the host become disks of the Machine, others are refused.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use proto::{agent::v1 as agent, cri::v1 as cri};
use rustix::fs::{FileType, Mode, OFlags};

use crate::sandbox::RequestError;

/// A disk that is to be added to the Machine.
#[derive(Debug)]
pub(crate) struct PlannedDevice {
    /// Its name in the Machine; the same for every container that asks for it in the same way.
    pub(crate) id: String,
    pub(crate) file: OwnedFd,
    pub(crate) read_only: bool,
    /// For the agent, without its place.
    pub(crate) device: agent::Device,
}

/// Opens what is asked for. Blocks.
pub(super) fn plan(devices: &[cri::Device]) -> Result<Vec<PlannedDevice>, RequestError> {
    devices
        .iter()
        .enumerate()
        .map(|(index, device)| one(&format!("devices[{index}]"), device))
        .collect()
}

fn one(field: &str, device: &cri::Device) -> Result<PlannedDevice, RequestError> {
    if !device.container_path.starts_with('/') {
        return Err(RequestError::invalid(
            format!("{field}.container_path"),
            "no absolute path",
        ));
    }
    let read_only = access(field, &device.permissions)?;
    let path = Path::new(&device.host_path);
    let host_field = format!("{field}.host_path");
    let failed =
        |error: rustix::io::Errno| RequestError::invalid(&host_field, format!("{}: {error}", path.display()));
    // To look at a device does not open it; the second open is of the very file that was looked at.
    let seen = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&seen).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
        let reason = format!(
            "{} is no block device; other devices of the host are given to pods on the host only ([host_pods])",
            path.display()
        );
        return Err(RequestError::unsupported(host_field, reason));
    }
    let flags = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&seen));
    let file =
        rustix::fs::open(PathBuf::from(name), flags | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let access = if read_only { "ro" } else { "rw" };
    Ok(PlannedDevice {
        id: format!("disk-{major}-{minor}-{access}"),
        file,
        read_only,
        device: agent::Device {
            path: device.container_path.clone(),
            kind: "b".to_owned(),
            mode: stat.st_mode & 0o777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            ..agent::Device::default()
        },
    })
}

/// Whether it may only be read.
pub(super) fn access(field: &str, permissions: &str) -> Result<bool, RequestError> {
    let known = permissions.bytes().all(|letter| b"rwm".contains(&letter));
    if !known || !permissions.contains('r') {
        let reason = format!("{permissions:?} is not made of \"r\", \"w\" and \"m\", with \"r\"");
        return Err(RequestError::invalid(format!("{field}.permissions"), reason));
    }
    Ok(!permissions.contains('w'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(host_path: &str, permissions: &str) -> String {
        let device = cri::Device {
            container_path: "/dev/x".to_owned(),
            host_path: host_path.to_owned(),
            permissions: permissions.to_owned(),
        };
        plan(&[device]).unwrap_err().to_string()
    }

    #[test]
    fn only_block_devices_are_given_and_the_field_is_named() {
        assert!(refusal("/dev/null", "rwm").starts_with("devices[0].host_path is not supported"));
        assert!(refusal("/no/such/device", "rwm").starts_with("devices[0].host_path: "));
        for wrong in ["", "w", "rx"] {
            assert!(
                refusal("/dev/null", wrong).starts_with("devices[0].permissions"),
                "{wrong}"
            );
        }
        assert!(access("f", "rm").unwrap());
        assert!(!access("f", "rwm").unwrap());
    }
}
