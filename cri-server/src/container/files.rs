//! Host files that a container mounts, read to be sent into the guest: configMap, secret, projected volumes, /etc/hosts and
//! the termination log. Directories of the host that must be shared live are refused by their field.
//!
//! Sizes are checked before reading, and a symbolic link may not lead out of its directory: kubelet makes projected volumes
//! of links below `..data`.

use std::{
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use proto::agent::v1::{File, FilesSource};

use crate::{config::ContainerDefaults, sandbox::RequestError};

/// Most entries of one mounted directory.
const MAX_FILES: usize = 4096;
const MAX_DEPTH: usize = 16;

/// What is left of a container's budget.
#[derive(Debug)]
pub(super) struct Budget {
    total: u64,
    file: u64,
}

impl Budget {
    pub(super) fn new(limits: &ContainerDefaults) -> Self {
        Self {
            total: limits.files_total_kib * 1024,
            file: limits.file_kib * 1024,
        }
    }

    fn take(&mut self, field: &str, path: &Path, bytes: u64) -> Result<(), RequestError> {
        if bytes > self.file {
            return Err(too_large(field, path, "one file", self.file));
        }
        match self.total.checked_sub(bytes) {
            Some(left) => {
                self.total = left;
                Ok(())
            }
            None => Err(too_large(field, path, "the files of one container", 0)),
        }
    }
}

fn too_large(field: &str, path: &Path, what: &str, limit: u64) -> RequestError {
    let limit = if limit == 0 {
        "the limit".to_owned()
    } else {
        format!("{limit} bytes")
    };
    RequestError::unsupported(
        field,
        format!(
            "{} is more than {limit} for {what}; larger volumes need virtio-fs",
            path.display()
        ),
    )
}

/// Reads a file, or every file of a directory. Blocks.
pub(super) fn read(field: &str, path: &Path, budget: &mut Budget) -> Result<FilesSource, RequestError> {
    let failed = |error: io::Error| RequestError::invalid(field, error.to_string());
    let root = fs_err::canonicalize(path).map_err(failed)?;
    let metadata = fs_err::metadata(&root).map_err(failed)?;
    let mut files = Vec::new();
    let single_file = metadata.is_file();
    if single_file {
        files.push(file(field, &root, PathBuf::from("file"), budget)?);
    } else if metadata.is_dir() {
        let mut walk = Walk {
            field,
            root: &root,
            budget,
            files: &mut files,
        };
        walk.directory(&root, Path::new(""), 0)?;
    } else {
        return Err(RequestError::unsupported(
            field,
            format!("{} is neither a file nor a directory", path.display()),
        ));
    }
    Ok(FilesSource {
        name: String::new(),
        files,
        single_file,
    })
}

struct Walk<'a> {
    field: &'a str,
    root: &'a Path,
    budget: &'a mut Budget,
    files: &'a mut Vec<File>,
}

impl Walk<'_> {
    fn directory(&mut self, directory: &Path, below: &Path, depth: usize) -> Result<(), RequestError> {
        let field = self.field;
        let refuse = |reason: String| Err(RequestError::unsupported(field, reason));
        if depth > MAX_DEPTH {
            return refuse(format!("{} is nested too deep", directory.display()));
        }
        let failed = |error: io::Error| RequestError::invalid(field, error.to_string());
        let mut entries = fs_err::read_dir(directory)
            .map_err(failed)?
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        entries.sort_by_key(fs_err::DirEntry::file_name);
        for entry in entries {
            // `..data` and the dated directories behind it are how kubelet swaps contents; the visible names are links to them.
            if entry.file_name().as_encoded_bytes().starts_with(b"..") {
                continue;
            }
            let real = fs_err::canonicalize(entry.path()).map_err(failed)?;
            if !real.starts_with(self.root) {
                return refuse(format!("{} leads out of the directory", entry.path().display()));
            }
            if self.files.len() >= MAX_FILES {
                return refuse(format!("{} has more than {MAX_FILES} files", self.root.display()));
            }
            let name = below.join(entry.file_name());
            let metadata = fs_err::metadata(&real).map_err(failed)?;
            if metadata.is_dir() {
                self.directory(&real, &name, depth + 1)?;
            } else if metadata.is_file() {
                let file = file(self.field, &real, name, self.budget)?;
                self.files.push(file);
            } else {
                return refuse(format!("{} is no regular file", real.display()));
            }
        }
        Ok(())
    }
}

fn file(field: &str, path: &Path, name: PathBuf, budget: &mut Budget) -> Result<File, RequestError> {
    let failed = |error: io::Error| RequestError::invalid(field, error.to_string());
    let metadata = fs_err::metadata(path).map_err(failed)?;
    budget.take(field, path, metadata.len())?;
    let content = fs_err::read(path).map_err(failed)?;
    // It may have grown between the two calls.
    if content.len() as u64 > metadata.len() {
        budget.take(field, path, content.len() as u64 - metadata.len())?;
    }
    let name = name.into_os_string().into_string();
    Ok(File {
        path: name.map_err(|_| {
            RequestError::unsupported(field, format!("the name of {} is not UTF-8", path.display()))
        })?,
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

    #[test]
    fn a_projected_volume_shows_its_visible_names_only() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("..2026_01_01");
        fs_err::create_dir_all(data.join("sub")).unwrap();
        fs_err::write(data.join("token"), "secret").unwrap();
        fs_err::write(data.join("sub/ca.crt"), "ca").unwrap();
        symlink("..2026_01_01", directory.path().join("..data")).unwrap();
        symlink("..data/token", directory.path().join("token")).unwrap();
        symlink("..data/sub", directory.path().join("sub")).unwrap();
        let source = read("mounts[0].host_path", directory.path(), &mut budget()).unwrap();
        let names: Vec<&str> = source.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(names, ["sub/ca.crt", "token"]);
        assert_eq!(source.files[1].content, b"secret");
        assert!(!source.single_file);
    }

    #[test]
    fn a_link_out_of_the_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        symlink("/etc/passwd", directory.path().join("evil")).unwrap();
        let error = read("mounts[2].host_path", directory.path(), &mut budget()).unwrap_err();
        assert!(error.to_string().starts_with("mounts[2].host_path"), "{error}");
    }

    #[test]
    fn sizes_are_limited_per_file_and_in_total() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        fs_err::write(&path, [b'x'; 61]).unwrap();
        assert!(read("f", &path, &mut budget()).is_err());
        fs_err::write(&path, [b'x'; 60]).unwrap();
        let mut budget = budget();
        assert!(read("f", &path, &mut budget).unwrap().single_file);
        assert!(read("f", &path, &mut budget).is_err());
    }
}
