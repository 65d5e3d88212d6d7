//! Loop devices, loop(4): a block device over a file, gone with its last user.
#![expect(unsafe_code, reason = "the ioctls of loop devices have no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use super::checked;

/// `struct loop_config` of linux/loop.h, with `struct loop_info64` spelled out.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    /// lo_device, lo_inode, lo_rdevice, lo_offset, lo_sizelimit
    places: [u64; 5],
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    /// lo_file_name, lo_crypt_name, lo_encrypt_key
    names: [u8; 64 + 64 + 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Somebody else may take the free device that the kernel named.
const TRIES: u32 = 64;

/// A device that lives until this and every mount of it are gone.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    pub(crate) path: PathBuf,
    _device: File,
}

/// Makes a read-only block device of `file`.
///
/// # Errors
/// What open(2) and the ioctls answer.
pub(crate) fn attach_read_only(file: &File) -> io::Result<LoopDevice> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..TRIES {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument; the descriptor is open.
        let free = checked(i64::from(unsafe {
            libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE)
        }))?;
        let path = PathBuf::from(format!("/dev/loop{free}"));
        let device = File::open(&path)?;
        let config = LoopConfig {
            fd: u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?,
            block_size: 0,
            places: [0; 5],
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
            names: [0; 160],
            init: [0; 2],
            reserved: [0; 8],
        };
        // SAFETY: `config` is a whole loop_config that outlives the call, which only reads it; both descriptors are open, and
        // the kernel takes a reference of its own to the file.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        match checked(i64::from(result)) {
            Ok(_) => {
                return Ok(LoopDevice {
                    path,
                    _device: device,
                });
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_the_size_of_the_kernels() {
        assert_eq!(size_of::<LoopConfig>(), 304);
    }

    #[test]
    fn a_file_is_read_through_its_device_and_the_device_goes_with_its_user() {
        if !rustix::process::getuid().is_root() || !std::path::Path::new("/dev/loop-control").exists() {
            eprintln!("SKIPPED: a loop device needs root and /dev/loop-control");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, vec![7; 8192]).unwrap();
        let device = attach_read_only(&File::open(&path).unwrap()).unwrap();
        assert_eq!(std::fs::read(&device.path).unwrap(), vec![7; 8192]);
        let name = device.path.file_name().unwrap().to_owned();
        drop(device);
        let backing = std::path::Path::new("/sys/block")
            .join(name)
            .join("loop/backing_file");
        // The kernel clears it a moment after the last close.
        let gone = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            !backing.exists()
        });
        assert!(gone, "{}", backing.display());
    }
}
