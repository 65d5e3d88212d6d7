//! Volumes of files that come with a request: written plainly, or as kubelet writes them, one generation after the other.
//!
//! ```text
//!  ..2026_01_01/key          the files
//!  ..data -> ..2026_01_01    replaced by one rename
//!  key -> ..data/key         what containers open
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;

use proto::agent::v1::{File, FilesSource};

use crate::error::Failure;

/// Most files in one volume that comes with a request, and most bytes of a path in it.
const MAX_FILES: usize = 4096;
const MAX_FILE_PATH: usize = 4096;
/// The link to the generation that is seen, and the one that takes its place.
const DATA: &str = "..data";
const NEXT_DATA: &str = "..data_tmp";

/// # Errors
/// `InvalidArgument` naming `field`.
pub(super) fn check(field: &str, source: &FilesSource) -> Result<(), Failure> {
    let files = &source.files;
    if files.len() > MAX_FILES {
        let text = format!("{field}.files: {} files, more than {MAX_FILES}", files.len());
        return Err(Failure::invalid(text));
    }
    if source.single_file && files.len() != 1 {
        let text = format!(
            "{field}.files: a single file is asked for, and there are {}",
            files.len()
        );
        return Err(Failure::invalid(text));
    }
    let generation = source.generation.as_str();
    let named = generation.is_empty()
        || (generation.len() > 2
            && generation.len() < 255
            && generation.starts_with("..")
            && !generation.contains(['/', '\0'])
            && ![DATA, NEXT_DATA].contains(&generation));
    if !named || (source.single_file && !generation.is_empty()) {
        let text = format!("{field}.generation: {generation:?} is no name of a generation");
        return Err(Failure::invalid(text));
    }
    let hidden = |path: &str| !generation.is_empty() && path.starts_with("..");
    match files
        .iter()
        .find(|file| !is_inside(&file.path) || hidden(&file.path))
    {
        Some(file) => Err(Failure::invalid(format!(
            "{field}.files: {:?} is no path in the volume",
            file.path
        ))),
        None => Ok(()),
    }
}

/// Whether a path names something below a directory, by names alone.
pub(super) fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= MAX_FILE_PATH
        && !path.contains('\0')
        && path.split('/').all(|name| !matches!(name, "" | "." | ".."))
}

/// Brings the volume at `base` to what `source` says.
pub(super) fn write(base: &Path, source: &FilesSource) -> io::Result<()> {
    if source.generation.is_empty() {
        return source.files.iter().try_for_each(|file| write_file(base, file));
    }
    if is_current(base, &source.generation) {
        return Ok(());
    }
    write_generation(base, source)?;
    replace_link(base, &source.generation)?;
    tidy(base, source)
}

/// Whether the volume has a generation already.
pub(super) fn is_populated(base: &Path) -> bool {
    fs::read_link(base.join(DATA)).is_ok()
}

fn is_current(base: &Path, generation: &str) -> bool {
    fs::read_link(base.join(DATA)).is_ok_and(|target| target == Path::new(generation))
}

fn write_generation(base: &Path, source: &FilesSource) -> io::Result<()> {
    let directory = base.join(&source.generation);
    // Of a write that failed.
    absent(fs::remove_dir_all(&directory))?;
    fs::create_dir(&directory)?;
    source
        .files
        .iter()
        .try_for_each(|file| write_file(&directory, file))
}

fn replace_link(base: &Path, generation: &str) -> io::Result<()> {
    let next = base.join(NEXT_DATA);
    absent(fs::remove_file(&next))?;
    symlink(generation, &next)?;
    fs::rename(next, base.join(DATA))
}

/// Links for what is new, none for what is gone, and no older generation.
fn tidy(base: &Path, source: &FilesSource) -> io::Result<()> {
    let visible: BTreeSet<&str> = source
        .files
        .iter()
        .filter_map(|file| file.path.split('/').next())
        .collect();
    for name in &visible {
        match symlink(Path::new(DATA).join(name), base.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
    }
    for entry in fs::read_dir(base)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !visible.contains(name.as_ref()) {
            fs::remove_file(entry.path())?;
        } else if name != source.generation && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Replaces the file in one step, since another container may be reading it.
fn write_file(base: &Path, file: &File) -> io::Result<()> {
    let path = base.join(&file.path);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut temporary = path.clone().into_os_string();
    temporary.push(".clearpod-new");
    fs::write(&temporary, &file.content)?;
    let mode = if file.mode == 0 { 0o644 } else { file.mode & 0o777 };
    chown(&temporary, Some(file.uid), Some(file.gid))?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(mode))?;
    fs::rename(&temporary, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(generation: &str, files: &[(&str, &str)], single_file: bool) -> FilesSource {
        let file = |(path, content): &(&str, &str)| File {
            path: (*path).to_owned(),
            content: content.as_bytes().to_vec(),
            mode: 0o400,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        };
        FilesSource {
            name: "config".to_owned(),
            files: files.iter().map(file).collect(),
            single_file,
            generation: generation.to_owned(),
        }
    }

    fn names(base: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(base)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn paths_that_leave_the_volume_are_refused() {
        for wrong in ["", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "./a"] {
            assert!(
                check("mounts[0]", &source("", &[(wrong, "")], false)).is_err(),
                "{wrong:?}"
            );
        }
        assert!(check("mounts[0]", &source("", &[("a", ""), ("b", "")], true)).is_err());
        check(
            "mounts[0]",
            &source("", &[("..data/key", ""), ("key", "")], false),
        )
        .unwrap();
    }

    #[test]
    fn generations_have_names_of_their_own() {
        for wrong in ["x", "..", "..data", "..data_tmp", "../x", "..a/b"] {
            assert!(
                check("mounts[0]", &source(wrong, &[("key", "")], false)).is_err(),
                "{wrong:?}"
            );
        }
        assert!(check("mounts[0]", &source("..1", &[("..data", "")], false)).is_err());
        check("mounts[0]", &source("..1", &[("dir/key", "")], false)).unwrap();
    }

    #[test]
    fn a_generation_takes_the_place_of_the_one_before_in_one_step() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path();
        write(
            base,
            &source("..1", &[("key", "old"), ("gone", ""), ("dir/a", "a")], false),
        )
        .unwrap();
        assert!(is_populated(base));
        // A reader that has the file open keeps it.
        let mut open = fs::File::open(base.join("key")).unwrap();
        write(base, &source("..2", &[("key", "new"), ("added", "")], false)).unwrap();
        assert_eq!(io::read_to_string(&mut open).unwrap(), "old");
        assert_eq!(fs::read_to_string(base.join("key")).unwrap(), "new");
        assert_eq!(fs::read_link(base.join("key")).unwrap(), Path::new("..data/key"));
        assert_eq!(fs::read_link(base.join("..data")).unwrap(), Path::new("..2"));
        assert_eq!(names(base), ["..2", "..data", "added", "key"]);
        write(base, &source("..2", &[("key", "other")], false)).unwrap();
        assert_eq!(
            fs::read_to_string(base.join("key")).unwrap(),
            "new",
            "the same generation changes nothing"
        );
    }

    #[test]
    fn what_a_failed_write_left_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("..1")).unwrap();
        fs::write(directory.path().join("..1/half"), "x").unwrap();
        symlink("..0", directory.path().join("..data_tmp")).unwrap();
        write(directory.path(), &source("..1", &[("key", "k")], false)).unwrap();
        assert_eq!(names(directory.path()), ["..1", "..data", "key"]);
        assert_eq!(names(&directory.path().join("..1")), ["key"]);
    }
}
