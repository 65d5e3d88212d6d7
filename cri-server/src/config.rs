//! The daemon's configuration: one TOML file, validated once, plain data afterwards.
//!
//! Every path and every default can be overridden; an unknown field is refused by name. Without a file the defaults hold.
//! Nothing is opened or made here (see `app`).

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use crate::{host::HostPodsConfig, image::ImageConfig, network::NetworkConfig, template::TemplatesConfig};

/// Where the file is when no other is named; it need not exist.
pub const DEFAULT_PATH: &str = "/etc/clearpod/config.toml";

/// unix(7): a socket's path has 108 bytes including its final zero.
const MAX_SOCKET_PATH: usize = 107;
/// The longest thing below `run`: `/machines/<32 hex digits>/vsock.sock_<port>`.
const LONGEST_BELOW_RUN: usize = "/machines/".len() + 32 + "/vsock.sock_65535".len();

/// What the VMM can plug, at most, MiB.
pub(crate) const MAX_MEMORY_MIB: u64 = 1024 * 1024;

/// Everything that an operator can choose.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What survives a reboot of the host: records, images, scratch disks.
    pub state: PathBuf,
    /// What does not: sockets, Machine directories, the lock of this daemon.
    pub run: PathBuf,
    /// The CRI socket; `<run>/clearpod.sock` when unset.
    pub socket: Option<PathBuf>,
    /// Who drives cgroups beside us; kubelet asks for it.
    pub cgroup_driver: CgroupDriver,
    /// The VMM's and the guest's parts.
    pub machine: MachineDefaults,
    /// Containers' limits and default settings.
    pub container: ContainerDefaults,
    /// How long the daemon waits for others.
    pub deadlines: Deadlines,
    /// Pod network.
    pub network: NetworkConfig,
    /// Registries and the image store.
    pub image: ImageConfig,
    /// Exec, attach and port-forward.
    pub streaming: StreamingConfig,
    /// Pods in the host's namespaces.
    pub host_pods: HostPodsConfig,
}

/// As kubelet's `cgroupDriver`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// `cgroup_parent` is a path below the cgroup root.
    Cgroupfs,
    /// `cgroup_parent` is the name of a slice.
    Systemd,
}

/// What every Machine is made of unless its pod says otherwise.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MachineDefaults {
    /// The VMM program.
    pub vmm: PathBuf,
    /// The program that serves files of the host to guests; only pods that share some need it.
    pub virtiofsd: PathBuf,
    /// Guest kernel, an uncompressed ELF with a PVH note.
    pub kernel: PathBuf,
    /// cpio archive with the agent as /init.
    pub initramfs: PathBuf,
    /// Appended to the kernel's command line.
    pub command_line: String,
    /// Guest memory of a pod without a memory limit, MiB.
    pub memory_mib: u64,
    /// Guest memory is never less, MiB: a smaller limit would not boot.
    pub memory_min_mib: u64,
    /// Added to a pod's memory limit for the guest's kernel and agent, MiB, when the pod names no overhead.
    pub memory_overhead_mib: u64,
    /// A pod's guest can grow to this much while it runs, MiB; one that is as large from the start cannot grow, and with 0
    /// none can. Unset: as much as the host has, where cgroups below `cgroup_root`
    /// can limit memory. Costs nothing until it is used. A hostile guest
    /// can use it unasked, so the Machine's cgroup never allows more than the pod was granted.
    pub memory_max_mib: Option<u64>,
    /// No Machine starts when less memory than this would be available on the host (`MemAvailable`, proc_meminfo(5)), MiB. Kubelet
    /// evicts earlier: its `memory.available` is 100 MiB by default.
    pub memory_reserve_mib: u64,
    /// Processors of a pod without a CPU limit.
    pub vcpus: u8,
    /// Processors of a pod are never more.
    pub vcpus_max: u8,
    /// Processors that a running pod can be given beyond those that it started with, as far as the host has them. Each costs
    /// its guest a little memory from the start.
    pub vcpus_spare: u8,
    /// Size of the writable layer of a pod's containers, MiB; sparse.
    pub scratch_mib: u64,
    /// How image layers reach the guest.
    pub layer_transport: LayerTransport,
    /// With `layer_transport = "auto"`: layers up to this size are pmem, larger ones block devices, MiB. A DAX mapping
    /// costs the guest 1.6 % of the layer's size in page structures, and what it reads is the host's page cache, shared by all pods of
    /// the image; a block device costs each guest a copy of what it reads.
    pub pmem_max_mib: u64,
    /// Size of the console's ring, KiB.
    pub console_kib: u32,
    /// Mount point of the cgroup v2 hierarchy; unset: VMMs stay in the daemon's cgroup and CPU limits are the guest's.
    pub cgroup_root: Option<PathBuf>,
    /// Parent cgroup of VMMs whose pod names none.
    pub cgroup_parent: String,
    /// Machines that start side by side; those that are asked for beyond that wait for their turn, in order. A start is mostly work
    /// for a processor, so more at once would only make each of them miss its deadlines. Unset: two for each processor.
    pub starts_at_once: Option<usize>,
    /// Guests that have booted already, for pods to go on from.
    pub templates: TemplatesConfig,
}

/// How image layers reach the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerTransport {
    /// By size.
    Auto,
    /// virtio-pmem with DAX.
    Pmem,
    /// virtio-blk.
    Block,
}

/// Settings of containers that no CRI field sets.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContainerDefaults {
    /// Most bytes of files that are sent into the guest for one container's mounts, KiB. Volumes beyond that are shared.
    pub files_total_kib: u64,
    /// Most bytes of one file of them, KiB.
    pub file_kib: u64,
    /// RLIMIT_NOFILE, soft and hard.
    pub nofile: (u64, u64),
    /// Where the host's kernel shows AppArmor.
    pub apparmor: PathBuf,
}

/// Seconds; none may be 0.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Deadlines {
    /// From the start of a VMM until its agent is ready.
    pub boot_s: u64,
    /// Likewise for one that goes on from a template; what takes longer boots in its place.
    pub fork_s: u64,
    /// For a Machine that was told to end by itself.
    pub shutdown_s: u64,
    /// For containers' output to arrive after their end.
    pub drain_s: u64,
    /// For requests under way when the daemon stops.
    pub stop_s: u64,
    /// For a guest to tell what it uses; one that takes longer is left out.
    pub stats_s: u64,
}

/// Where clients of Exec, Attach and PortForward connect to, and how long they may take.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamingConfig {
    /// A loopback address: whoever can connect and has an URL may use it.
    pub address: IpAddr,
    /// 0: any that is free.
    pub port: u16,
    /// A connection on which nothing passes is ended after this many seconds.
    pub idle_s: u64,
    /// A connection is ended after this many seconds whatever passes; unset: never.
    pub longest_s: Option<u64>,
    /// For a client to create the streams that its command needs, seconds.
    pub creation_s: u64,
    /// An URL that was given out is good for this many seconds.
    pub token_s: u64,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The file is no TOML of our shape.
    #[error("parse the configuration {}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A value cannot be.
    #[error("{field}: {reason}")]
    Value {
        /// Dotted name.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state: "/var/lib/clearpod".into(),
            run: "/run/clearpod".into(),
            socket: None,
            cgroup_driver: CgroupDriver::Cgroupfs,
            machine: MachineDefaults::default(),
            container: ContainerDefaults::default(),
            deadlines: Deadlines::default(),
            network: NetworkConfig::default(),
            image: ImageConfig::default(),
            streaming: StreamingConfig::default(),
            host_pods: HostPodsConfig::default(),
        }
    }
}

impl Default for MachineDefaults {
    fn default() -> Self {
        Self {
            vmm: "/usr/libexec/clearpod/clearpod-vmm".into(),
            virtiofsd: "/usr/libexec/clearpod/virtiofsd".into(),
            kernel: "/usr/share/clearpod/vmlinux".into(),
            initramfs: "/usr/share/clearpod/initramfs.cpio".into(),
            command_line: "quiet".to_owned(),
            memory_mib: 512,
            memory_min_mib: 128,
            memory_overhead_mib: 64,
            memory_max_mib: None,
            memory_reserve_mib: 64,
            vcpus: 1,
            vcpus_max: 32,
            vcpus_spare: 3,
            scratch_mib: 10 * 1024,
            layer_transport: LayerTransport::Auto,
            pmem_max_mib: 512,
            console_kib: 64,
            cgroup_root: Some("/sys/fs/cgroup".into()),
            cgroup_parent: "/clearpod".to_owned(),
            starts_at_once: None,
            templates: TemplatesConfig::default(),
        }
    }
}

impl Default for ContainerDefaults {
    fn default() -> Self {
        Self {
            files_total_kib: 4 * 1024,
            file_kib: 1024,
            nofile: (1024, 1024 * 1024),
            apparmor: "/sys/kernel/security/apparmor".into(),
        }
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            boot_s: 60,
            fork_s: 10,
            shutdown_s: 3,
            drain_s: 5,
            stop_s: 10,
            stats_s: 3,
        }
    }
}

/// kubelet's own times.
impl Default for StreamingConfig {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST.into(),
            port: 0,
            idle_s: 4 * 60 * 60,
            longest_s: None,
            creation_s: 30,
            token_s: 60,
        }
    }
}

impl StreamingConfig {
    pub(crate) fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_s)
    }
    pub(crate) fn longest(&self) -> Option<Duration> {
        self.longest_s.map(Duration::from_secs)
    }
    pub(crate) fn creation(&self) -> Duration {
        Duration::from_secs(self.creation_s)
    }
    pub(crate) fn token(&self) -> Duration {
        Duration::from_secs(self.token_s)
    }
    /// The field that cannot be what it is, and why.
    fn refusal(&self) -> Option<(&'static str, &'static str)> {
        if !self.address.is_loopback() {
            return Some((
                "streaming.address",
                "must be a loopback address: an URL is all that a client needs",
            ));
        }
        let times = [self.idle_s, self.creation_s, self.token_s];
        if times.contains(&0) || self.longest_s == Some(0) {
            return Some(("streaming", "none of its times may be 0"));
        }
        None
    }
}

impl Deadlines {
    pub(crate) fn boot(&self) -> Duration {
        Duration::from_secs(self.boot_s)
    }
    pub(crate) fn fork(&self) -> Duration {
        Duration::from_secs(self.fork_s)
    }
    pub(crate) fn shutdown(&self) -> Duration {
        Duration::from_secs(self.shutdown_s)
    }
    pub(crate) fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_s)
    }
    pub(crate) fn stop(&self) -> Duration {
        Duration::from_secs(self.stop_s)
    }
    pub(crate) fn stats(&self) -> Duration {
        Duration::from_secs(self.stats_s)
    }
    fn has_zero(&self) -> bool {
        let waits = [self.boot_s, self.fork_s, self.shutdown_s, self.drain_s];
        waits.contains(&0) || [self.stop_s, self.stats_s].contains(&0)
    }
}

impl Config {
    /// Reads and validates a file. With `None` the default file is read if it exists.
    ///
    /// # Errors
    /// [`ConfigError`], with the field's name.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (file, required) = match path {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_PATH), false),
        };
        match fs_err::read_to_string(file) {
            Ok(text) => Self::parse(&text, file),
            Err(error) if !required && error.kind() == std::io::ErrorKind::NotFound => {
                Self::default().validated()
            }
            Err(source) => Err(ConfigError::Read {
                path: file.to_owned(),
                source,
            }),
        }
    }

    /// Parses and validates a text; `path` is for messages.
    ///
    /// # Errors
    /// [`ConfigError`], with the field's name.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str::<Self>(text)
            .map_err(|source| ConfigError::Parse {
                path: path.to_owned(),
                source: Box::new(source),
            })?
            .validated()
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`ConfigError::Value`], with the field's name.
    pub fn validated(mut self) -> Result<Self, ConfigError> {
        self.follow_state();
        let refuse = |field, reason: &str| {
            Err(ConfigError::Value {
                field,
                reason: reason.to_owned(),
            })
        };
        let run_len = self.run.as_os_str().len();
        let machine = &self.machine;
        for (field, path) in [
            ("state", &self.state),
            ("run", &self.run),
            ("machine.vmm", &machine.vmm),
            ("machine.virtiofsd", &machine.virtiofsd),
            ("machine.kernel", &machine.kernel),
            ("machine.initramfs", &machine.initramfs),
        ] {
            if !path.is_absolute() {
                return refuse(field, "must be an absolute path");
            }
        }
        if run_len + LONGEST_BELOW_RUN > MAX_SOCKET_PATH {
            return refuse(
                "run",
                "is so long that socket names below it would exceed the 107 bytes of unix(7)",
            );
        }
        if self.socket().as_os_str().len() > MAX_SOCKET_PATH {
            return refuse("socket", "is longer than the 107 bytes of unix(7)");
        }
        if machine.memory_min_mib < 64 || machine.memory_mib < machine.memory_min_mib {
            return refuse(
                "machine.memory_mib",
                "must be at least memory_min_mib, and that at least 64",
            );
        }
        if machine.memory_max_mib.is_some_and(|mib| mib > MAX_MEMORY_MIB) {
            return refuse("machine.memory_max_mib", "must be at most 1048576");
        }
        if machine.memory_reserve_mib > MAX_MEMORY_MIB {
            return refuse("machine.memory_reserve_mib", "must be at most 1048576");
        }
        if machine.vcpus == 0 || machine.vcpus > machine.vcpus_max {
            return refuse("machine.vcpus", "must be between 1 and vcpus_max");
        }
        if machine.scratch_mib < 16 {
            return refuse("machine.scratch_mib", "must be at least 16");
        }
        if !(4..=16 * 1024).contains(&machine.console_kib) {
            return refuse("machine.console_kib", "must be between 4 and 16384");
        }
        if self.container.nofile.0 > self.container.nofile.1 {
            return refuse("container.nofile", "the soft limit is above the hard one");
        }
        if self.deadlines.has_zero() {
            return refuse("deadlines", "none may be 0");
        }
        if let Some((field, reason)) = self.streaming.refusal() {
            return refuse(field, reason);
        }
        if self.machine.starts_at_once == Some(0) {
            return refuse("machine.starts_at_once", "must be at least 1");
        }
        if let Err((field, reason)) = self.machine.templates.check().and(self.host_pods.check()) {
            return refuse(field, reason);
        }
        Ok(self)
    }

    /// Parts whose directories were not named lie below `state`.
    fn follow_state(&mut self) {
        let below = |path: &mut PathBuf, default: &Path, name: &str| {
            if path == default {
                *path = self.state.join(name);
            }
        };
        below(&mut self.image.root, &ImageConfig::default().root, "images");
        below(
            &mut self.network.cache_dir,
            &NetworkConfig::default().cache_dir,
            "cni",
        );
    }

    /// The CRI socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.socket
            .clone()
            .unwrap_or_else(|| self.run.join("clearpod.sock"))
    }

    /// Parent of the Machines' directories.
    #[must_use]
    pub fn machines(&self) -> PathBuf {
        self.run.join("machines")
    }

    /// How many Machines may start side by side.
    #[must_use]
    pub fn starts_at_once(&self) -> usize {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        self.machine.starts_at_once.unwrap_or(2 * processors)
    }

    /// Parent of the templates.
    #[must_use]
    pub fn templates(&self) -> PathBuf {
        let directory = &self.machine.templates.directory;
        directory.clone().unwrap_or_else(|| self.run.join("templates"))
    }

    /// Parent of the pods' scratch disks: on disk, because `/run` is memory.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.state.join("scratch")
    }
}

/// Name servers of the host for pods without a DNS configuration: `nameserver`, `search` and `options` of resolv.conf(5).
/// A loopback server would point at the pod itself, so it is left out.
pub(crate) fn host_resolver(text: &str) -> (Vec<String>, Vec<String>, Vec<String>) {
    let (mut servers, mut searches, mut options) = (Vec::new(), Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => servers.extend(
                words
                    .take(1)
                    .filter(|word| word.parse::<IpAddr>().is_ok_and(|address| !address.is_loopback())),
            ),
            Some("search") => searches = words.collect(),
            Some("options") => options.extend(words),
            _ => {}
        }
    }
    (servers, searches, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let error = Config::parse(text, Path::new("test.toml")).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", source.unwrap_or_default())
    }

    #[test]
    fn the_defaults_are_valid_and_an_empty_file_is_the_defaults() {
        let config = Config::parse("", Path::new("test.toml")).unwrap();
        assert_eq!(config.socket(), Path::new("/run/clearpod/clearpod.sock"));
    }

    #[test]
    fn parts_lie_below_the_state_directory_unless_they_are_named() {
        let config = Config::parse("state = \"/s\"", Path::new("test.toml")).unwrap();
        assert_eq!(config.image.root, Path::new("/s/images"));
        assert_eq!(config.network.cache_dir, Path::new("/s/cni"));
        let named = Config::parse("state = \"/s\"\n[image]\nroot = \"/i\"", Path::new("test.toml")).unwrap();
        assert_eq!(named.image.root, Path::new("/i"));
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        assert!(refused("colour = 1").contains("colour"));
        assert!(refused("[machine]\nmemory = 1").contains("memory"));
    }

    #[test]
    fn impossible_values_are_refused_by_field() {
        let long = format!("run = \"/{}\"", "x".repeat(80));
        for (text, field) in [
            ("state = \"here\"", "state"),
            (long.as_str(), "run"),
            ("[machine]\nvcpus = 0", "machine.vcpus"),
            ("[machine]\nmemory_mib = 1", "machine.memory_mib"),
            ("[machine]\nmemory_max_mib = 1048577", "machine.memory_max_mib"),
            (
                "[machine]\nmemory_reserve_mib = 1048577",
                "machine.memory_reserve_mib",
            ),
            ("[machine]\nconsole_kib = 1", "machine.console_kib"),
            ("[container]\nnofile = [2, 1]", "container.nofile"),
            ("[deadlines]\nboot_s = 0", "deadlines"),
            ("[deadlines]\nfork_s = 0", "deadlines"),
            (
                "[machine.templates]\ndirectory = \"t\"",
                "machine.templates.directory",
            ),
            ("[machine.templates]\nmost = 0", "machine.templates.most"),
            ("[machine]\nstarts_at_once = 0", "machine.starts_at_once"),
            ("[streaming]\naddress = \"0.0.0.0\"", "streaming.address"),
            ("[streaming]\ntoken_s = 0", "streaming"),
            ("[streaming]\nlongest_s = 0", "streaming"),
            ("[host_pods]\nprivileged = true", "host_pods.privileged"),
            ("[host_pods]\nruntime = \"bin/crun\"", "host_pods.runtime"),
            ("[host_pods]\nshim = \"shim\"", "host_pods.shim"),
        ] {
            assert!(refused(text).starts_with(field), "{text}: {}", refused(text));
        }
    }

    #[test]
    fn a_loopback_resolver_of_the_host_is_not_given_to_pods() {
        let text = "# x\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nsearch a b\noptions ndots:5 rotate\n";
        let (servers, searches, options) = host_resolver(text);
        assert_eq!(servers, ["10.0.0.2"]);
        assert_eq!(searches, ["a", "b"]);
        assert_eq!(options, ["ndots:5", "rotate"]);
    }
}
