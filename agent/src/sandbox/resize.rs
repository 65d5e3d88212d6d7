//! A Machine that becomes larger: processors that the host has ready are brought online, and a memory device gets its driver,
//! which then plugs what the host wants (virtio-mem; the kernel brings it online by itself).

use std::fs;
use std::path::Path;

use proto::agent::v1::{ErrorCode, ResizeRequest, ResizeResponse};

use crate::disk::pci::PciAddress;
use crate::error::{Context as _, Failure};
use crate::pod::Pod;
use crate::service::info;

/// # Errors
/// `InvalidArgument`, `DeviceMissing`; `System` when a processor stays offline.
pub(crate) async fn resize(pod: &Pod, request: &ResizeRequest) -> Result<ResizeResponse, Failure> {
    if !request.memory_pci_address.is_empty() {
        let address = PciAddress::parse("memory_pci_address", &request.memory_pci_address)?;
        pod.disks.bus().driven(&address).await?;
    }
    Ok(ResizeResponse {
        cpus_online: bring_online(&pod.settings.sysfs, request.processors)?,
    })
}

/// Until `wanted` processors run, lowest number first; those that are there already stay. Returns how many run.
fn bring_online(sysfs: &Path, wanted: u32) -> Result<u32, Failure> {
    let processors = sysfs.join("devices/system/cpu");
    for number in 1..wanted {
        // cpu0 has no such file, and neither has one that the Machine does not have.
        let switch = processors.join(format!("cpu{number}/online"));
        let is_offline = fs::read_to_string(&switch).is_ok_and(|state| state.trim() == "0");
        if is_offline {
            fs::write(&switch, "1")
                .context(ErrorCode::System, || format!("bring processor {number} online"))?;
        }
    }
    let online = info::online(&fs::read_to_string(processors.join("online")).unwrap_or_default());
    if online < wanted {
        let text = format!("processors: {wanted} are wanted, and {online} are online");
        return Err(Failure::new(ErrorCode::System, text));
    }
    Ok(online)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_that_are_offline_are_brought_online_in_order() {
        let sysfs = tempfile::tempdir().unwrap();
        let processors = sysfs.path().join("devices/system/cpu");
        for (number, state) in [(1, "1\n"), (2, "0\n"), (3, "0\n")] {
            let directory = processors.join(format!("cpu{number}"));
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("online"), state).unwrap();
        }
        // The kernel would change it; here it says how many there are after all.
        fs::write(processors.join("online"), "0-2\n").unwrap();
        let state = |number: u32| fs::read_to_string(processors.join(format!("cpu{number}/online"))).unwrap();
        assert_eq!(bring_online(sysfs.path(), 0).unwrap(), 3);
        assert_eq!(bring_online(sysfs.path(), 3).unwrap(), 3);
        assert_eq!(
            (state(1), state(2), state(3)),
            ("1\n".into(), "1".into(), "0\n".into())
        );
        let refusal = bring_online(sysfs.path(), 5).unwrap_err();
        assert!(refusal.to_string().contains("5 are wanted, and 3"), "{refusal}");
    }
}
