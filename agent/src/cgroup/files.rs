//! Small text files of the kernel, read as far as they are worth it.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// The longest of them (io.stat of a guest with many disks) is far from it.
const MAX: u64 = 64 * 1024;

/// Content of `path`; empty when there is no such file or it cannot be read.
pub(crate) fn text(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // What came before an error is as good as a shorter file: every reader takes missing values as absent.
        drop(file.take(MAX).read_to_end(&mut bytes));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_is_cut_and_a_missing_one_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("long");
        std::fs::write(&path, vec![b'x'; 100_000]).unwrap();
        assert_eq!(text(&path).len(), 64 * 1024);
        assert_eq!(text(&directory.path().join("none")), "");
    }
}
