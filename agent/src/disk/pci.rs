//! From a PCI address to the devices behind it, by what sysfs shows; asks the kernel to look again for new ones.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::agent::v1::ErrorCode;
use tokio::time::Instant;

use crate::error::{Context as _, Failure};

/// From the request to the device node: a rescan probes virtio at once, a pmem region appears a little later. A guest that gets a
/// part of a processor takes many times as long, and kubelet's patience ends after a minute.
const APPEARS_WITHIN: Duration = Duration::from_secs(20);
/// First pause between looks at sysfs; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Where sysfs is mounted.
#[derive(Debug, Clone)]
pub(crate) struct PciBus {
    sysfs: PathBuf,
}

/// A checked PCI address, "0000:00:03.0".
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PciAddress(String);

impl PciAddress {
    /// # Errors
    /// `InvalidArgument`, naming `field`.
    pub(crate) fn parse(field: &str, address: &str) -> Result<Self, Failure> {
        let pattern = b"xxxx:xx:xx.7";
        let matches = |(pattern, byte): (&u8, u8)| match pattern {
            b'x' => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
            b'7' => (b'0'..=b'7').contains(&byte),
            other => byte == *other,
        };
        if address.len() == pattern.len() && pattern.iter().zip(address.bytes()).all(matches) {
            Ok(Self(address.to_owned()))
        } else {
            Err(Failure::invalid(format!(
                "{field}: {address:?} is no PCI address like 0000:00:03.0"
            )))
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl PciBus {
    pub(crate) fn new(sysfs: impl Into<PathBuf>) -> Self {
        Self { sysfs: sysfs.into() }
    }

    /// Kernel name of the block device at `address` ("vda", "pmem0"); waits for it.
    ///
    /// # Errors
    /// [`ErrorCode::DeviceMissing`] when it does not appear.
    pub(crate) async fn block_device(&self, address: &PciAddress) -> Result<String, Failure> {
        self.wait_for("block device", address, block_below).await
    }

    /// Kernel name of the network interface at `address` ("eth0"); waits for it.
    ///
    /// # Errors
    /// [`ErrorCode::DeviceMissing`] when it does not appear.
    pub(crate) async fn interface(&self, address: &PciAddress) -> Result<String, Failure> {
        self.wait_for("network interface", address, |device| {
            let virtio = child(device, "virtio")?;
            child(&virtio.join("net"), "")
        })
        .await
    }

    /// Waits for the virtio device at `address` to have a driver.
    ///
    /// # Errors
    /// [`ErrorCode::DeviceMissing`] when it does not get one.
    pub(crate) async fn driven(&self, address: &PciAddress) -> Result<(), Failure> {
        let driver =
            |device: &Path| Some(child(device, "virtio")?.join("driver")).filter(|link| link.exists());
        self.wait_for("device with a driver", address, driver)
            .await
            .map(drop)
    }

    async fn wait_for(
        &self,
        what: &str,
        address: &PciAddress,
        find: impl Fn(&Path) -> Option<PathBuf>,
    ) -> Result<String, Failure> {
        let device = self.sysfs.join("bus/pci/devices").join(address.as_str());
        let deadline = Instant::now() + APPEARS_WITHIN;
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(name) = find(&device).as_deref().and_then(Path::file_name) {
                return Ok(name.to_string_lossy().into_owned());
            }
            if Instant::now() >= deadline {
                let text = format!(
                    "no {what} at PCI address {} within {APPEARS_WITHIN:?}",
                    address.as_str()
                );
                return Err(Failure::new(ErrorCode::DeviceMissing, text));
            }
            if !device.exists() {
                self.rescan().await?;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Makes the kernel look for new functions. Probing is part of the write, so it is done off the runtime's thread.
    async fn rescan(&self) -> Result<(), Failure> {
        let file = self.sysfs.join("bus/pci/rescan");
        let text = format!("write {}", file.display());
        tokio::task::spawn_blocking(move || fs::write(file, "1"))
            .await
            .map_err(io::Error::other)
            .and_then(|written| written)
            .context(ErrorCode::DeviceMissing, || text)
    }
}

/// virtio-blk: virtio*/block/*. virtio-pmem: virtio*/ndbus*/region*/namespace*/block/*.
fn block_below(device: &Path) -> Option<PathBuf> {
    let virtio = child(device, "virtio")?;
    if let Some(block) = child(&virtio.join("block"), "") {
        return Some(block);
    }
    let region = child(&child(&virtio, "ndbus")?, "region")?;
    let namespaces = children(&region, "namespace");
    namespaces
        .iter()
        .find_map(|namespace| child(&namespace.join("block"), ""))
}

fn child(directory: &Path, prefix: &str) -> Option<PathBuf> {
    children(directory, prefix).into_iter().next()
}

fn children(directory: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let named = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(named)
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(paths: &[&str]) -> (tempfile::TempDir, PciBus) {
        let sysfs = tempfile::tempdir().unwrap();
        for path in paths {
            fs::create_dir_all(sysfs.path().join("bus/pci/devices").join(path)).unwrap();
        }
        let bus = PciBus::new(sysfs.path());
        (sysfs, bus)
    }

    fn address(text: &str) -> PciAddress {
        PciAddress::parse("disk", text).unwrap()
    }

    #[tokio::test]
    async fn devices_are_found_by_address() {
        let (_sysfs, bus) = tree(&[
            "0000:00:03.0/virtio1/block/vda",
            "0000:00:04.0/virtio2/ndbus0/region0/namespace0.0/block/pmem0",
            "0000:00:05.0/virtio3/net/eth0",
            "0000:00:06.0/virtio4/driver",
        ]);
        assert_eq!(bus.block_device(&address("0000:00:03.0")).await.unwrap(), "vda");
        assert_eq!(bus.block_device(&address("0000:00:04.0")).await.unwrap(), "pmem0");
        assert_eq!(bus.interface(&address("0000:00:05.0")).await.unwrap(), "eth0");
        bus.driven(&address("0000:00:06.0")).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_device_is_looked_for_again_and_then_reported() {
        let (sysfs, bus) = tree(&["0000:00:03.0"]);
        let failure = bus.block_device(&address("0000:00:1f.7")).await.unwrap_err();
        assert_eq!(failure.code(), ErrorCode::DeviceMissing);
        assert!(failure.to_string().contains("0000:00:1f.7"), "{failure}");
        assert_eq!(fs::read(sysfs.path().join("bus/pci/rescan")).unwrap(), b"1");
    }

    #[test]
    fn addresses_are_checked_before_they_become_paths() {
        for wrong in [
            "",
            "00:03.0",
            "0000:00:03.8",
            "0000:00:0G.0",
            "../../../etc",
            "0000:00:03.0/..",
            "0000:00:0A.0",
        ] {
            assert!(PciAddress::parse("disk", wrong).is_err(), "{wrong}");
        }
    }
}
