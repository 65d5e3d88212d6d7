//! Host files that are sent into the guest: single files such as /etc/hosts, and the volumes that kubelet writes with its
//! atomic writer. What is too large for that is left to be shared.
//!
//! Sizes are checked before reading, and a symbolic link may not lead out of its directory.

use std::{
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use proto::agent::v1::{File, FilesSource};

use crate::config::ContainerDefaults;

/// Most entries of one volume.
const MAX_FILES: usize = 4096;
const MAX_DEPTH: usize = 16;
/// A volume that kubelet replaces while it is read is read again, so often at most.
const TRIES: usize = 5;

/// How much may be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    total: u64,
    file: u64,
}

/// Why files are not sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Nothing is wrong with it, but it is not made for being copied.
    #[error("{} {what}", path.display())]
    Unfit { path: PathBuf, what: &'static str },
}

impl Budget {
    pub(crate) fn new(limits: &ContainerDefaults) -> Self {
        Self {
            total: limits.files_total_kib * 1024,
            file: limits.file_kib * 1024,
        }
    }

    fn take(&mut self, path: &Path, bytes: u64) -> Result<(), ReadError> {
        match self.total.checked_sub(bytes) {
            Some(left) if bytes <= self.file => {
                self.total = left;
                Ok(())
            }
            _ => Err(unfit(
                path,
                "is larger than container.file_kib or files_total_kib",
            )),
        }
    }
}

fn unfit(path: &Path, what: &'static str) -> ReadError {
    ReadError::Unfit {
        path: path.to_owned(),
        what,
    }
}

/// Reads one file. Blocks.
pub(super) fn single(path: &Path, budget: &mut Budget) -> Result<FilesSource, ReadError> {
    Ok(FilesSource {
        files: vec![file(path, "file".to_owned(), budget)?],
        single_file: true,
        ..FilesSource::default()
    })
}

/// Reads the generation that `..data` of a volume leads to; the volume's name is its path. Blocks.
pub(crate) fn generation(volume: &Path, budget: &mut Budget) -> Result<FilesSource, ReadError> {
    let mut tries = 0;
    loop {
        let mut left = *budget;
        let read = generation_once(volume, &mut left);
        tries += 1;
        match read {
            Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => {}
            Ok(source) => {
                *budget = left;
                return Ok(source);
            }
            Err(error) => return Err(error),
        }
    }
}

fn generation_once(volume: &Path, budget: &mut Budget) -> Result<FilesSource, ReadError> {
    let target = fs_err::read_link(volume.join("..data"))?;
    let generation = target.to_str().filter(|name| {
        name.starts_with("..") && name.len() > 2 && !name.contains('/') && !name.starts_with("..data")
    });
    let generation = generation.ok_or_else(|| unfit(volume, "is not written as kubelet does"))?;
    let name = volume.to_str().ok_or_else(|| unfit(volume, "is not UTF-8"))?;
    let root = fs_err::canonicalize(volume.join(generation))?;
    let mut walk = Walk {
        root: &root,
        budget,
        files: Vec::new(),
    };
    walk.directory(&root, Path::new(""), 0)?;
    Ok(FilesSource {
        name: name.to_owned(),
        files: walk.files,
        single_file: false,
        generation: generation.to_owned(),
    })
}

struct Walk<'a> {
    root: &'a Path,
    budget: &'a mut Budget,
    files: Vec<File>,
}

impl Walk<'_> {
    fn directory(&mut self, directory: &Path, below: &Path, depth: usize) -> Result<(), ReadError> {
        if depth > MAX_DEPTH {
            return Err(unfit(directory, "is nested too deep"));
        }
        let mut entries = fs_err::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs_err::DirEntry::file_name);
        for entry in entries {
            let real = fs_err::canonicalize(entry.path())?;
            if !real.starts_with(self.root) {
                return Err(unfit(&entry.path(), "leads out of its volume"));
            }
            if self.files.len() >= MAX_FILES {
                return Err(unfit(self.root, "has too many files"));
            }
            let name = below.join(entry.file_name());
            let metadata = fs_err::metadata(&real)?;
            if metadata.is_dir() {
                self.directory(&real, &name, depth + 1)?;
            } else if metadata.is_file() {
                let text = name.to_str().ok_or_else(|| unfit(&real, "is not UTF-8"))?;
                if text.starts_with("..") {
                    return Err(unfit(&real, "has a name that kubelet keeps for itself"));
                }
                self.files.push(file(&real, text.to_owned(), self.budget)?);
            } else {
                return Err(unfit(&real, "is no regular file"));
            }
        }
        Ok(())
    }
}

fn file(path: &Path, name: String, budget: &mut Budget) -> Result<File, ReadError> {
    let metadata = fs_err::metadata(path)?;
    budget.take(path, metadata.len())?;
    let content = fs_err::read(path)?;
    // It may have grown between the two calls.
    budget.take(path, (content.len() as u64).saturating_sub(metadata.len()))?;
    Ok(File {
        path: name,
        content,
        mode: metadata.permissions().mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn budget() -> Budget {
        Budget { total: 100, file: 60 }
    }

    fn volume() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("..2026_01_01");
        fs_err::create_dir_all(data.join("sub")).unwrap();
        fs_err::write(data.join("token"), "secret").unwrap();
        fs_err::write(data.join("sub/ca.crt"), "ca").unwrap();
        symlink("..2026_01_01", directory.path().join("..data")).unwrap();
        symlink("..data/token", directory.path().join("token")).unwrap();
        directory
    }

    #[test]
    fn a_volume_is_read_by_its_generation() {
        let directory = volume();
        let source = generation(directory.path(), &mut budget()).unwrap();
        let names: Vec<&str> = source.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(names, ["sub/ca.crt", "token"]);
        assert_eq!(source.files[1].content, b"secret");
        assert_eq!(
            (source.generation.as_str(), source.single_file),
            ("..2026_01_01", false)
        );
        assert_eq!(source.name, directory.path().to_str().unwrap());
    }

    #[test]
    fn what_is_not_written_as_kubelet_does_is_not_copied() {
        let directory = volume();
        let data = directory.path().join("..data");
        symlink("/etc/passwd", directory.path().join("..2026_01_01/evil")).unwrap();
        let unfit =
            |result: Result<FilesSource, ReadError>| matches!(result.unwrap_err(), ReadError::Unfit { .. });
        assert!(unfit(generation(directory.path(), &mut budget())));
        fs_err::remove_file(&data).unwrap();
        symlink("/etc", &data).unwrap();
        assert!(unfit(generation(directory.path(), &mut budget())));
        fs_err::remove_file(&data).unwrap();
        let error = generation(directory.path(), &mut budget()).unwrap_err();
        assert!(matches!(error, ReadError::Io(_)), "{error}");
    }

    #[test]
    fn sizes_are_limited_per_file_and_in_total() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        fs_err::write(&path, [b'x'; 61]).unwrap();
        assert!(single(&path, &mut budget()).is_err());
        fs_err::write(&path, [b'x'; 60]).unwrap();
        let mut budget = budget();
        assert!(single(&path, &mut budget).unwrap().single_file);
        assert!(single(&path, &mut budget).is_err());
        assert_eq!(budget.total, 40, "what is not sent costs nothing");
    }
}
