//! What a template was made of, and by which name it is known: whatever a guest keeps for good from its boot is in it.

use std::{
    fs::Metadata,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::{
    config::MachineDefaults,
    image::digest::{Digest, Hasher},
};

/// Goes into every [`Origin`]: templates of a daemon that made them otherwise are of no use.
const FORMAT: u32 = 1;
/// Read and hashed in one go.
const CHUNK: usize = 1 << 18;

/// The sizes of a Machine that cannot change while its guest lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) memory_mib: u64,
    pub(crate) memory_hotplug_mib: u64,
    pub(crate) vcpus: u8,
    pub(crate) vcpus_possible: u8,
}

/// The files that guests are made of, as they were when they were looked at. Equal ones have equal content, whoever wrote
/// them: no write leaves a file's times alone, ctime(5) least of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parts([Fingerprint; 3]);

/// One file at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What is in these files, and what else all shapes have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contents {
    digests: [Digest; 3],
    command_line: String,
}

/// Names a template: 64 hexadecimal digits. The VMM refuses a snapshot of another origin.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Origin(String);

/// Kernel, initramfs, and the program whose devices the guest knows.
fn paths(machine: &MachineDefaults) -> [&Path; 3] {
    [&machine.kernel, &machine.initramfs, &machine.vmm]
}

impl Parts {
    /// Three calls of stat(2).
    pub(crate) fn look(machine: &MachineDefaults) -> io::Result<Self> {
        let [kernel, initramfs, vmm] = paths(machine);
        Ok(Self([
            Fingerprint::of(kernel)?,
            Fingerprint::of(initramfs)?,
            Fingerprint::of(vmm)?,
        ]))
    }
}

impl Fingerprint {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::new(&fs_err::metadata(path)?))
    }

    pub(super) fn new(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Contents {
    /// Reads all of the files, which takes a while.
    pub(crate) fn read(machine: &MachineDefaults) -> io::Result<Self> {
        let [kernel, initramfs, vmm] = paths(machine);
        Ok(Self {
            digests: [digest(kernel)?, digest(initramfs)?, digest(vmm)?],
            command_line: machine.command_line.clone(),
        })
    }

    /// The name of their template of that shape.
    pub(crate) fn origin(&self, shape: Shape) -> Origin {
        let Shape {
            memory_mib,
            memory_hotplug_mib,
            vcpus,
            vcpus_possible,
        } = shape;
        let [kernel, initramfs, vmm] = &self.digests;
        // The command line comes last: what it contains cannot be taken for anything else.
        let text = format!(
            "{FORMAT}\n{kernel}\n{initramfs}\n{vmm}\n{memory_mib} {memory_hotplug_mib} {vcpus} {vcpus_possible}\n{}",
            self.command_line
        );
        Origin(Digest::of(text.as_bytes()).hex().to_owned())
    }
}

fn digest(path: &Path) -> io::Result<Digest> {
    // A device like /dev/null, in tests, ends at once; whatever else is no file is not read for ever.
    let mut file = fs_err::File::open(path)?.take(u64::from(u32::MAX));
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

impl Origin {
    /// `None`: nothing that we would name a template.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Digest::parse(&format!("sha256:{text}")).map(|digest| Self(digest.hex().to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    pub(super) const SHAPE: Shape = Shape {
        memory_mib: 512,
        memory_hotplug_mib: 1024,
        vcpus: 1,
        vcpus_possible: 4,
    };

    /// Three files, each with its name in it.
    fn machine(directory: &Path) -> MachineDefaults {
        let file = |name: &str| {
            let path = directory.join(name);
            fs::write(&path, name).unwrap();
            path
        };
        MachineDefaults {
            kernel: file("kernel"),
            initramfs: file("initramfs"),
            vmm: file("vmm"),
            ..MachineDefaults::default()
        }
    }

    #[test]
    fn whatever_a_guest_keeps_from_its_boot_changes_the_name() {
        let directory = tempfile::tempdir().unwrap();
        let machine = machine(directory.path());
        let name = |machine: &MachineDefaults, shape| Contents::read(machine).unwrap().origin(shape);
        let first = name(&machine, SHAPE);
        assert_eq!(first, name(&machine, SHAPE), "the same for the same");
        assert_eq!(Origin::parse(first.as_str()), Some(first.clone()));
        let mut names = vec![first];
        for path in paths(&machine) {
            let before = fs::read(path).unwrap();
            fs::write(path, "other").unwrap();
            names.push(name(&machine, SHAPE));
            fs::write(path, before).unwrap();
        }
        let mut other = machine.clone();
        other.command_line.push_str(" more");
        names.push(name(&other, SHAPE));
        let changes: [fn(&mut Shape); 4] = [
            |shape| shape.memory_mib += 1,
            |shape| shape.memory_hotplug_mib += 1,
            |shape| shape.vcpus += 1,
            |shape| shape.vcpus_possible += 1,
        ];
        for change in changes {
            let mut shape = SHAPE;
            change(&mut shape);
            names.push(name(&machine, shape));
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!((names.len(), count), (9, 9));
    }

    #[test]
    fn a_file_that_was_written_or_replaced_is_seen_without_reading_it() {
        let directory = tempfile::tempdir().unwrap();
        let machine = machine(directory.path());
        let look = || Parts::look(&machine).unwrap();
        let first = look();
        assert_eq!(first, look());
        let modified = fs::metadata(&machine.kernel).unwrap().modified().unwrap();
        // As long as before, and by its modification time as old.
        fs::write(&machine.kernel, "KERNEL").unwrap();
        let file = fs::File::options().write(true).open(&machine.kernel).unwrap();
        file.set_modified(modified).unwrap();
        let rewritten = look();
        assert_ne!(rewritten, first);
        let other = directory.path().join("other");
        fs::write(&other, "vmm").unwrap();
        fs::rename(other, &machine.vmm).unwrap();
        assert_ne!(look(), rewritten);
        fs::remove_file(&machine.initramfs).unwrap();
        assert!(Parts::look(&machine).is_err());
    }

    #[test]
    fn no_other_name_is_taken_for_one() {
        let digits = "a".repeat(64);
        for name in [
            "",
            "..",
            "A",
            &digits[1..],
            &format!("{digits}a"),
            &"A".repeat(64),
        ] {
            assert_eq!(Origin::parse(name), None, "{name}");
        }
        assert!(Origin::parse(&digits).is_some());
    }
}
