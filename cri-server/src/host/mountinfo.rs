//! What is mounted below a directory, proc_pid_mountinfo(5).

use std::path::{Path, PathBuf};

/// Mount points at `directory` and below, the newest first: what lies over another one comes down before it.
pub(super) fn below(mountinfo: &str, directory: &Path) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let mut points: Vec<PathBuf> = points
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| point.starts_with(directory))
        .collect();
    points.reverse();
    points
}

/// Blank, tab, line end and backslash are octal.
fn unescape(point: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes
        .iter()
        .fold(point.to_owned(), |text, (escape, character)| {
            text.replace(escape, character)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_below_comes_newest_first() {
        let text = "20 1 0:1 / / rw - ext4 a rw\n21 20 0:2 / /run/pods/a/layers/0 ro - erofs b ro\n\
            22 20 0:3 / /run/pods/ab rw - tmpfs c rw\n23 20 0:4 / /run/pods/a/root\\040fs rw shared:1 - overlay d rw\n";
        let points = below(text, Path::new("/run/pods/a"));
        assert_eq!(
            points,
            [
                Path::new("/run/pods/a/root fs"),
                Path::new("/run/pods/a/layers/0")
            ]
        );
    }
}
