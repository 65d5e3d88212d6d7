//! Where templates are: a directory of each, named by its origin, complete or absent.
//!
//! ```text
//! <directory>/<origin>/memory         as the VMM wrote them
//!                     /state
//!                     /template.json  About
//! <directory>/<origin>.new/           being made; renamed when whole
//! ```
//!
//! Nothing but what has such a name is ever touched, since the operator chose the directory. All of it blocks.

use std::{
    collections::BTreeSet,
    fs::{DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    content::digest,
    key::{Fingerprint, Origin, Shape},
};

const MEMORY: &str = "memory";
const STATE: &str = "state";
const ABOUT: &str = "template.json";
const UNFINISHED: &str = ".new";

/// What `template.json` tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) shape: Shape,
    /// Nanoseconds since the epoch.
    pub(crate) made_at: i64,
    /// From the start of its VMM until it was on the shelf.
    pub(crate) took_ms: u64,
    /// Of its memory, by [`digest`].
    pub(crate) memory: String,
}

/// A template that can be gone on from. Its files stay as they are for as long as this lives, whatever becomes of their names.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) about: About,
    pub(crate) memory: File,
    pub(crate) state: File,
    /// What the file system has given to its files, bytes.
    pub(crate) allocated: u64,
    /// As long as they are, holes included.
    pub(crate) length: u64,
    /// Both files when they were opened.
    opened: [Fingerprint; 2],
}

/// One that is being made: two empty files.
#[derive(Debug)]
pub(crate) struct Unfinished {
    directory: PathBuf,
    pub(crate) memory: File,
    pub(crate) state: File,
}

/// Takes a place for a template, instead of what an earlier try left there.
pub(super) fn begin(root: &Path, origin: &Origin) -> io::Result<Unfinished> {
    let directory = root.join(format!("{}{UNFINISHED}", origin.as_str()));
    remove(&directory)?;
    DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    let make = |name| {
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        options.open(directory.join(name))
    };
    Ok(Unfinished {
        memory: make(MEMORY)?,
        state: make(STATE)?,
        directory,
    })
}

impl Unfinished {
    /// Bytes that the file system can still take.
    pub(crate) fn room(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.memory)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Names what its memory file has in it now.
    pub(super) fn memory_digest(&self) -> io::Result<String> {
        Ok(digest(&self.memory)?.to_string())
    }

    /// Puts it on the shelf. Only what is on disk gets there: after a crash of the host the name stands for all of it.
    pub(super) fn publish(self, root: &Path, origin: &Origin, about: &About) -> io::Result<Stored> {
        let text = serde_json::to_vec_pretty(about)?;
        fs_err::write(self.directory.join(ABOUT), text)?;
        for name in [MEMORY, STATE, ABOUT] {
            fs_err::File::open(self.directory.join(name))?.sync_all()?;
        }
        fs_err::File::open(&self.directory)?.sync_all()?;
        let place = root.join(origin.as_str());
        remove(&place)?;
        fs_err::rename(&self.directory, &place)?;
        fs_err::File::open(root)?.sync_all()?;
        load(root, origin)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

impl Stored {
    /// Whether its memory is what was written.
    pub(super) fn is_whole(&self) -> io::Result<bool> {
        Ok(digest(&self.memory)?.to_string() == self.about.memory)
    }

    /// Whether nobody has written to its files, cut them, or exchanged or removed their names since they were opened.
    pub(super) fn is_untouched(&self) -> bool {
        let now = [&self.memory, &self.state].map(|file| file.metadata().ok().as_ref().map(Fingerprint::new));
        now == self.opened.each_ref().map(|opened| Some(opened.clone()))
    }
}

/// The template of that name, its memory not looked at; `None`: there is none.
pub(super) fn load(root: &Path, origin: &Origin) -> io::Result<Option<Stored>> {
    let place = root.join(origin.as_str());
    let about = match fs_err::read(place.join(ABOUT)) {
        Ok(text) => serde_json::from_slice(&text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let open = |name| fs_err::File::open(place.join(name)).map(|file| file.into_parts().0);
    let (memory, state) = (open(MEMORY)?, open(STATE)?);
    let sizes = [memory.metadata()?, state.metadata()?];
    Ok(Some(Stored {
        about,
        memory,
        state,
        // stat(2): blocks of 512 bytes, whatever the file system's are.
        allocated: sizes.iter().map(|file| file.blocks() * 512).sum(),
        length: sizes.iter().map(|file| file.size()).sum(),
        opened: sizes.each_ref().map(Fingerprint::new),
    }))
}

/// The names of all templates. None when there is no directory.
pub(super) fn list(root: &Path) -> io::Result<Vec<Origin>> {
    let names = names(root)?.into_iter();
    Ok(names.filter_map(|name| Origin::parse(&name)).collect())
}

/// Removes every template but those that are to be kept, and what was left half-made. What goes on from them is not hurt.
pub(super) fn sweep(root: &Path, keep: &BTreeSet<Origin>) -> io::Result<()> {
    for name in names(root)? {
        let whole = name.strip_suffix(UNFINISHED).unwrap_or(&name);
        let Some(origin) = Origin::parse(whole) else {
            continue;
        };
        if whole != name || !keep.contains(&origin) {
            remove(&root.join(name))?;
        }
    }
    Ok(())
}

fn names(root: &Path) -> io::Result<Vec<String>> {
    let entries = match fs_err::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string().ok());
    }
    Ok(names)
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs_err::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    fn origin(digit: char) -> Origin {
        Origin::parse(&digit.to_string().repeat(64)).unwrap()
    }

    fn about() -> About {
        About {
            shape: Shape {
                memory_mib: 128,
                memory_hotplug_mib: 0,
                vcpus: 1,
                vcpus_possible: 1,
            },
            made_at: 5,
            took_ms: 7,
            memory: String::new(),
        }
    }

    fn put(root: &Path, digit: char, content: &[u8]) -> Stored {
        let mut unfinished = begin(root, &origin(digit)).unwrap();
        unfinished.memory.write_all(content).unwrap();
        unfinished.state.write_all(b"state").unwrap();
        let about = About {
            memory: unfinished.memory_digest().unwrap(),
            ..about()
        };
        unfinished.publish(root, &origin(digit), &about).unwrap()
    }

    #[test]
    fn one_is_there_when_it_is_whole_and_its_files_outlive_their_names() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("templates");
        assert!(list(&root).unwrap().is_empty());
        assert!(load(&root, &origin('a')).unwrap().is_none());
        let unfinished = begin(&root, &origin('a')).unwrap();
        assert!(unfinished.room().unwrap() > 0);
        assert!(list(&root).unwrap().is_empty());
        assert!(load(&root, &origin('a')).unwrap().is_none());
        let mut first = put(&root, 'a', b"memory");
        assert_eq!(list(&root).unwrap(), [origin('a')]);
        assert_eq!(first.length, 11);
        let again = load(&root, &origin('a')).unwrap().unwrap();
        assert_eq!(again.about.made_at, about().made_at);
        assert!(again.is_whole().unwrap());
        put(&root, 'a', b"another");
        sweep(&root, &BTreeSet::new()).unwrap();
        assert!(list(&root).unwrap().is_empty());
        let mut content = String::new();
        first.memory.rewind().unwrap();
        first.memory.read_to_string(&mut content).unwrap();
        assert_eq!(content, "memory");
    }

    #[test]
    fn a_sweep_keeps_what_it_is_told_to_and_what_is_not_ours() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        put(root, 'a', b"kept");
        put(root, 'b', b"old");
        begin(root, &origin('a')).unwrap();
        begin(root, &origin('c')).unwrap();
        fs_err::create_dir(root.join("photographs")).unwrap();
        sweep(root, &BTreeSet::from([origin('a')])).unwrap();
        let mut left = names(root).unwrap();
        left.sort();
        assert_eq!(left, [origin('a').as_str(), "photographs"]);
    }

    #[test]
    fn whatever_is_done_to_its_files_is_seen() {
        type Damage = fn(&Path);
        let damages: [Damage; 5] = [
            |place| fs_err::write(place.join(MEMORY), b"nemory").unwrap(),
            |place| {
                let file = File::options().write(true).open(place.join(STATE)).unwrap();
                file.set_len(3).unwrap();
            },
            |place| fs_err::rename(place.join(STATE), place.join(MEMORY)).unwrap(),
            |place| fs_err::remove_file(place.join(STATE)).unwrap(),
            |place| fs_err::remove_dir_all(place).unwrap(),
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            let directory = tempfile::tempdir().unwrap();
            let root = directory.path();
            let stored = put(root, 'a', b"memory");
            assert!(stored.is_untouched());
            put(root, 'b', b"another");
            sweep(root, &BTreeSet::from([origin('a')])).unwrap();
            assert!(stored.is_untouched(), "others come and go");
            damage(&root.join(origin('a').as_str()));
            assert!(!stored.is_untouched(), "damage {number}");
        }
    }

    #[test]
    fn memory_that_changed_while_nobody_looked_is_not_whole() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        put(root, 'a', b"memory");
        fs_err::write(root.join(origin('a').as_str()).join(MEMORY), b"memorx").unwrap();
        let found = load(root, &origin('a')).unwrap().unwrap();
        assert!(found.is_untouched() && !found.is_whole().unwrap());
    }

    #[test]
    fn one_that_is_damaged_is_an_error_and_not_a_template() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        put(root, 'a', b"memory");
        let place = root.join(origin('a').as_str());
        fs_err::remove_file(place.join(STATE)).unwrap();
        assert!(load(root, &origin('a')).is_err());
        put(root, 'a', b"memory");
        fs_err::write(place.join(ABOUT), "{").unwrap();
        assert!(load(root, &origin('a')).is_err());
    }
}
