//! What all containers of the pod share: host name, DNS files, network, sysctls, clock, entropy, shared memory, scratch.
//!
//! Set up once per Machine by ConfigureSandbox; `files` writes the DNS files, `sysctl` the kernel's parameters. `go_on` comes
//! before it in a guest that goes on from a template, `resize` is the guest's part of a Machine that becomes larger.

pub(crate) mod files;
pub(crate) mod go_on;
pub(crate) mod resize;
pub(crate) mod sysctl;

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use proto::agent::v1::{ConfigureSandboxRequest, ErrorCode};
use rustix::mount::{MountFlags, mount};

use crate::clock;
use crate::disk::Lease;
use crate::error::{Context as _, Failure};
use crate::network;
use crate::pod::Pod;
use crate::sys;
use crate::user_namespace;

/// linux/utsname.h: __NEW_UTS_LEN.
const MAX_HOSTNAME: usize = 64;
/// As the protocol says.
const ENTROPY: std::ops::RangeInclusive<usize> = 32..=sys::random::MAX_SEED;
/// machine-id(5): hexadecimal digits.
const MACHINE_ID: usize = 32;

/// Whether ConfigureSandbox has come.
#[derive(Debug)]
pub(crate) enum Sandbox {
    New,
    Configured {
        /// Without what differs in a repeated call: clock and entropy.
        request: Box<ConfigureSandboxRequest>,
        /// Where the containers' writable layers are.
        scratch: PathBuf,
        /// Held until the Machine's end.
        _disk: Option<Lease>,
    },
}

impl Sandbox {
    pub(crate) fn is_configured(&self) -> bool {
        matches!(self, Self::Configured { .. })
    }

    /// # Errors
    /// `WrongState` before ConfigureSandbox.
    pub(crate) fn scratch(&self) -> Result<PathBuf, Failure> {
        match self {
            Self::Configured { scratch, .. } => Ok(scratch.clone()),
            Self::New => Err(Failure::new(
                ErrorCode::WrongState,
                "the sandbox is not configured yet",
            )),
        }
    }
}

/// Sets up the sandbox. The same request again does nothing; a failed one can be repeated.
///
/// # Errors
/// `InvalidArgument` naming the field, `AlreadyExists` for other content, and what each part answers.
pub(crate) async fn configure(pod: &Pod, mut request: ConfigureSandboxRequest) -> Result<(), Failure> {
    check(&request)?;
    // Every call brings fresh ones.
    let entropy = std::mem::take(&mut request.entropy);
    let realtime_ns = std::mem::take(&mut request.realtime_ns);
    set_clock_and_entropy(pod, realtime_ns, &entropy)?;
    let mut sandbox = pod.sandbox.lock().await;
    if let Sandbox::Configured { request: before, .. } = &*sandbox {
        if **before == request {
            return Ok(());
        }
        return Err(Failure::new(
            ErrorCode::AlreadyExists,
            "the sandbox was configured with other content",
        ));
    }
    enter_user_namespace(pod, &request).await?;
    set_names(&request)?;
    network::configure(pod.disks.bus(), &request, pod.user_namespace()).await?;
    pod.set_sysctls(&request.sysctls)?;
    let run = &pod.settings.run;
    files::write(&run.join("sandbox"), &request)
        .context(ErrorCode::System, || "write DNS files".to_owned())?;
    mount_tmpfs_once(
        &run.join("shm"),
        &shm_options(request.shm_size_bytes),
        MountFlags::NOEXEC,
    )?;
    let (scratch, disk) = match &request.scratch {
        Some(disk) => {
            let lease = pod.disks.acquire("scratch", disk).await?;
            (lease.path.clone(), Some(lease))
        }
        None => {
            let path = run.join("scratch");
            mount_tmpfs_once(&path, "mode=700", MountFlags::empty())?;
            (path, None)
        }
    };
    *sandbox = Sandbox::Configured {
        request: Box::new(request),
        scratch,
        _disk: disk,
    };
    Ok(())
}

/// A configuration that failed later finds the agent in the namespaces that the first try made.
async fn enter_user_namespace(pod: &Pod, request: &ConfigureSandboxRequest) -> Result<(), Failure> {
    let Some(wanted) = &request.user_namespace else {
        return Ok(());
    };
    let map = user_namespace::id_map(wanted)?;
    if let Some(namespace) = pod.user_namespace() {
        return if namespace.map == map {
            Ok(())
        } else {
            let text = "user_namespace: the pod has one with other ids";
            Err(Failure::new(ErrorCode::AlreadyExists, text))
        };
    }
    let fresh = user_namespace::make(map)?;
    let interfaces = network::move_interfaces(pod.disks.bus(), request, &fresh.network).await?;
    pod.set_user_namespace(fresh.enter(interfaces)?);
    network::loopback_up()
}

pub(crate) fn check(request: &ConfigureSandboxRequest) -> Result<(), Failure> {
    let name = &request.hostname;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if name.len() > MAX_HOSTNAME || !name.bytes().all(plain) {
        return Err(Failure::invalid(format!(
            "hostname: {name:?} is no host name of at most {MAX_HOSTNAME} bytes"
        )));
    }
    check_entropy(&request.entropy)?;
    let id = &request.machine_id;
    if !id.is_empty() && (id.len() != MACHINE_ID || !id.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        return Err(Failure::invalid(format!(
            "machine_id: {id:?} is not {MACHINE_ID} hexadecimal digits"
        )));
    }
    Ok(())
}

/// None is fine.
fn check_entropy(entropy: &[u8]) -> Result<(), Failure> {
    let bytes = entropy.len();
    if bytes == 0 || ENTROPY.contains(&bytes) {
        return Ok(());
    }
    Err(Failure::invalid(format!(
        "entropy: {bytes} bytes are not within {ENTROPY:?}"
    )))
}

fn set_clock_and_entropy(pod: &Pod, realtime_ns: u64, entropy: &[u8]) -> Result<(), Failure> {
    if realtime_ns != 0 {
        clock::set_realtime(realtime_ns)
            .context(ErrorCode::System, || format!("set the clock to {realtime_ns} ns"))?;
    }
    if !entropy.is_empty() {
        fs::File::open(pod.settings.dev.join("urandom"))
            .and_then(|device| sys::random::reseed(device, entropy))
            .context(ErrorCode::System, || {
                "seed the random number generator".to_owned()
            })?;
    }
    Ok(())
}

pub(crate) fn set_names(request: &ConfigureSandboxRequest) -> Result<(), Failure> {
    if request.hostname.is_empty() {
        return Ok(());
    }
    rustix::system::sethostname(request.hostname.as_bytes()).context(ErrorCode::System, || {
        format!("set host name {:?}", request.hostname)
    })
}

/// shm_overview(7); Kubernetes' default is 64 MiB.
pub(crate) fn shm_options(size_bytes: u64) -> String {
    let size = if size_bytes == 0 { 64 << 20 } else { size_bytes };
    format!("mode=1777,size={size}")
}

/// A failed configuration may be repeated, and must not stack mounts.
pub(crate) fn mount_tmpfs_once(path: &Path, options: &str, flags: MountFlags) -> Result<(), Failure> {
    let mount_it = || -> io::Result<()> {
        fs::create_dir_all(path)?;
        let parent = path.parent().unwrap_or(path);
        let device = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev);
        if device(path)? != device(parent)? {
            return Ok(());
        }
        let options = CString::new(options)?;
        // Set-user-id programs and devices on a scratch file system work all the same: overlays have flags of their own.
        let flags = flags | MountFlags::NOSUID | MountFlags::NODEV;
        Ok(mount("tmpfs", path, "tmpfs", flags, options.as_c_str())?)
    };
    mount_it().context(ErrorCode::Mount, || format!("mount tmpfs on {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_entropy_are_checked() {
        let with = |hostname: &str, entropy: usize| {
            check(&ConfigureSandboxRequest {
                hostname: hostname.to_owned(),
                entropy: vec![0; entropy],
                ..ConfigureSandboxRequest::default()
            })
        };
        with("web-0.example", 32).unwrap();
        with("", 0).unwrap();
        assert!(with("a b", 0).is_err());
        assert!(with(&"x".repeat(65), 0).is_err());
        assert!(with("web", 31).is_err());
        assert!(with("web", 513).is_err());
        let machine_id = |id: &str| {
            check(&ConfigureSandboxRequest {
                machine_id: id.to_owned(),
                ..ConfigureSandboxRequest::default()
            })
        };
        machine_id(&"0f".repeat(16)).unwrap();
        assert!(machine_id("0f").is_err());
        assert!(machine_id(&"xy".repeat(16)).is_err());
    }
}
