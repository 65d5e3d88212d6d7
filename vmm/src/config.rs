//! The configuration file: read, checked, files opened. Errors name the field.
//!
//! `proto::machine::MachineConfig` is what the daemon wrote; [`Plan`] is what can be built: every number in range, every
//! file open, nothing left to refuse but what the host refuses.

mod device;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use proto::machine::{CONFIG_VERSION, MAX_PAGE_RUNS, MachineConfig, PageRun, Vcpus, Vsock};

use self::device::{check_devices, check_id};
use crate::files::{self, Descriptors, FileError};
use crate::memory::PAGE;
use crate::memory::layout::{COMMAND_LINE_SIZE, RamLayout};
use crate::snapshot::state::Shape;
use crate::x86_64::command_line;

pub(crate) use self::device::{
    DeviceError, DeviceKind, FS_TAG_BYTES, FsShape, PreparedDevice, prepare_device,
};

/// A Machine ready to be built.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) id: String,
    pub(crate) vcpus: Vcpus,
    pub(crate) memory_bytes: u64,
    pub(crate) hotplug_bytes: u64,
    pub(crate) control: PathBuf,
    pub(crate) console_bytes: usize,
    pub(crate) console_dump: Option<PathBuf>,
    pub(crate) vsock: Option<Vsock>,
    pub(crate) devices: Vec<PreparedDevice>,
}

impl Plan {
    /// What a guest sees of it for good.
    pub(crate) fn shape(&self) -> Shape {
        Shape::of(self.vcpus, self.memory_bytes, self.hotplug_bytes)
    }
}

/// How the guest comes to run.
#[derive(Debug)]
pub(crate) enum Beginning {
    Boot(Payload),
    Snapshot(SnapshotFiles),
}

/// What a guest boots from.
#[derive(Debug)]
pub(crate) struct Payload {
    pub(crate) kernel: File,
    pub(crate) initramfs: File,
    /// Complete.
    pub(crate) command_line: String,
}

/// What a guest goes on from.
#[derive(Debug)]
pub(crate) struct SnapshotFiles {
    pub(crate) memory: File,
    pub(crate) state: File,
    pub(crate) origin: String,
    /// Within guest memory.
    pub(crate) written_soon: Vec<PageRun>,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration file {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the configuration file {path} is not valid")]
    Parse {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{field}: {problem}")]
    Field { field: &'static str, problem: String },
    #[error("devices: {0}")]
    Device(#[from] DeviceError),
    #[error("{field}")]
    File {
        field: &'static str,
        #[source]
        source: FileError,
    },
}

const MEMORY_MIB: std::ops::RangeInclusive<u64> = 32..=(1 << 20);
const HOTPLUG_MIB: std::ops::RangeInclusive<u64> = 0..=(1 << 20);
/// Linux's smallest unit of memory hot-plug on x86-64.
const HOTPLUG_UNIT_MIB: u64 = 128;
const CONSOLE_BYTES: std::ops::RangeInclusive<u32> = 4096..=(16 << 20);
/// The MP table's APIC ids have eight bits, and one is the IOAPIC's.
const VCPUS_MAX: u8 = 254;
/// Room for a few digests.
const ORIGIN_BYTES: std::ops::RangeInclusive<usize> = 1..=256;
/// A configuration is a few kilobytes; one per image layer is the most that it grows.
const FILE_LIMIT: u64 = 1 << 20;

/// Reads and checks the file at `path`.
pub(crate) fn load(path: &Path) -> Result<(Plan, Beginning), ConfigError> {
    let read = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let size = std::fs::metadata(path).map_err(read)?.len();
    if size > FILE_LIMIT {
        return Err(read(io::ErrorKind::FileTooLarge.into()));
    }
    let text = std::fs::read(path).map_err(read)?;
    let config = serde_json::from_slice(&text).map_err(|source| ConfigError::Parse {
        path: path.to_owned(),
        source,
    })?;
    check(&config)?;
    prepare(config, &mut Descriptors::inherited())
}

/// Everything that can be said without touching a file.
fn check(config: &MachineConfig) -> Result<(), ConfigError> {
    let field = |field, problem: String| Err(ConfigError::Field { field, problem });
    let Vcpus { boot, max } = config.vcpus;
    if config.version != CONFIG_VERSION {
        return field("version", format!("{} is not {CONFIG_VERSION}", config.version));
    }
    if check_id(&config.id).is_err() {
        return field("id", DeviceError::Id(config.id.clone()).to_string());
    }
    if boot == 0 || boot > max || max > VCPUS_MAX {
        return field(
            "vcpus",
            format!("boot {boot} and max {max} are not 1 <= boot <= max <= {VCPUS_MAX}"),
        );
    }
    if !MEMORY_MIB.contains(&config.memory_mib) {
        return field(
            "memory_mib",
            format!("{} is not within {MEMORY_MIB:?}", config.memory_mib),
        );
    }
    let hotplug = config.memory_hotplug_mib;
    if !HOTPLUG_MIB.contains(&hotplug) || !hotplug.is_multiple_of(HOTPLUG_UNIT_MIB) {
        return field(
            "memory_hotplug_mib",
            format!("{hotplug} is not within {HOTPLUG_MIB:?}, or no multiple of {HOTPLUG_UNIT_MIB}"),
        );
    }
    if !CONSOLE_BYTES.contains(&config.console.ring_bytes) {
        let bytes = config.console.ring_bytes;
        return field(
            "console.ring_bytes",
            format!("{bytes} is not within {CONSOLE_BYTES:?}"),
        );
    }
    // virtio 1.2, 5.10.4: 0, 1 and 2 are reserved, and all ones means any.
    if let Some(vsock) = &config.vsock
        && (vsock.guest_cid < 3 || vsock.guest_cid == u32::MAX)
    {
        return field("vsock.guest_cid", format!("{} is reserved", vsock.guest_cid));
    }
    let line = complete_command_line(config);
    if line.len() >= COMMAND_LINE_SIZE || line.contains(['\0', '\n']) {
        let problem = format!(
            "{} bytes with ours, or a NUL or line end in it; {COMMAND_LINE_SIZE} is too long",
            line.len()
        );
        return field("command_line", problem);
    }
    check_beginning(config)?;
    check_devices(&config.devices).map_err(ConfigError::Device)
}

/// A guest boots from kernel and initramfs, or goes on from a snapshot, which has had all that belongs to a boot.
fn check_beginning(config: &MachineConfig) -> Result<(), ConfigError> {
    let field = |field, problem: &str| {
        let problem = problem.to_owned();
        Err(ConfigError::Field { field, problem })
    };
    let Some(snapshot) = &config.snapshot else {
        return match (&config.kernel, &config.initramfs) {
            (Some(_), Some(_)) => Ok(()),
            (None, _) => field("kernel", "there is neither a kernel nor a snapshot"),
            (_, None) => field("initramfs", "there is neither an initramfs nor a snapshot"),
        };
    };
    let had = "the guest of a snapshot has booted already";
    if config.kernel.is_some() {
        return field("kernel", had);
    }
    if config.initramfs.is_some() {
        return field("initramfs", had);
    }
    if !config.command_line.is_empty() {
        return field("command_line", had);
    }
    if let Some(problem) = origin_problem(&snapshot.origin) {
        return field("snapshot.origin", &problem);
    }
    let layout = RamLayout::new(config.memory_mib << 20, config.memory_hotplug_mib << 20);
    match written_soon_problem(&snapshot.written_soon, layout) {
        Some(problem) => field("snapshot.written_soon", &problem),
        None => Ok(()),
    }
}

fn written_soon_problem(runs: &[PageRun], layout: RamLayout) -> Option<String> {
    if runs.len() > MAX_PAGE_RUNS {
        return Some(format!("{} runs are more than {MAX_PAGE_RUNS}", runs.len()));
    }
    let ranges = layout.ranges();
    let is_memory = |run: &&PageRun| {
        let pages = |range: &Range<u64>| range.start / PAGE..range.end / PAGE;
        let end = run.first.checked_add(run.count);
        let within = |range: Range<u64>| run.first >= range.start && end.is_some_and(|end| end <= range.end);
        ranges.iter().map(pages).any(within)
    };
    let outside = runs.iter().find(|run| !is_memory(run))?;
    Some(format!(
        "{} pages from page {} on are no guest memory",
        outside.count, outside.first
    ))
}

/// What is wrong with the name of a snapshot's origin.
pub(crate) fn origin_problem(origin: &str) -> Option<String> {
    let bytes = origin.len();
    (!ORIGIN_BYTES.contains(&bytes)).then(|| format!("{bytes} bytes are not within {ORIGIN_BYTES:?}"))
}

fn complete_command_line(config: &MachineConfig) -> String {
    let Vcpus { boot, max } = config.vcpus;
    command_line::complete(boot, max, config.memory_hotplug_mib > 0, &config.command_line)
}

/// Opens the files of a checked configuration.
fn prepare(config: MachineConfig, descriptors: &mut Descriptors) -> Result<(Plan, Beginning), ConfigError> {
    let beginning = prepare_beginning(&config, descriptors)?;
    let devices = config
        .devices
        .iter()
        .map(|device| prepare_device(device, descriptors));
    let devices = devices.collect::<Result<_, _>>()?;
    let plan = Plan {
        id: config.id,
        vcpus: config.vcpus,
        memory_bytes: config.memory_mib << 20,
        hotplug_bytes: config.memory_hotplug_mib << 20,
        control: config.control,
        console_bytes: config.console.ring_bytes as usize,
        console_dump: config.console.dump,
        vsock: config.vsock,
        devices,
    };
    Ok((plan, beginning))
}

fn prepare_beginning(
    config: &MachineConfig,
    descriptors: &mut Descriptors,
) -> Result<Beginning, ConfigError> {
    let mut opened = Vec::new();
    for (field, source) in config.files() {
        let file = files::open(source, descriptors, false);
        opened.push(file.map_err(|source| ConfigError::File { field, source })?);
    }
    // Two files either way (`check_beginning`), in the order of `files`.
    let Ok([first, second]) = <[File; 2]>::try_from(opened) else {
        let problem = "kernel and initramfs, or memory and state".to_owned();
        return Err(ConfigError::Field {
            field: "snapshot",
            problem,
        });
    };
    Ok(match &config.snapshot {
        Some(snapshot) => Beginning::Snapshot(SnapshotFiles {
            memory: first,
            state: second,
            origin: snapshot.origin.clone(),
            written_soon: snapshot.written_soon.clone(),
        }),
        None => Beginning::Boot(Payload {
            kernel: first,
            initramfs: second,
            command_line: complete_command_line(config),
        }),
    })
}

#[cfg(test)]
mod tests;
