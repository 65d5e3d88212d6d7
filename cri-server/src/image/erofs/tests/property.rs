//! Random layers against a model of what they mean: a map from path to what is there.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Names that sort around `.` and `..`, and ordinary ones.
const NAMES: [&str; 8] = ["a", "b", "-", "zz", "..x", ".h", "name-that-is-rather-long", "~"];

#[derive(Debug, Clone)]
enum Step {
    File {
        path: Vec<usize>,
        size: usize,
        mode: u16,
    },
    Directory {
        path: Vec<usize>,
        mode: u16,
    },
    Symlink {
        path: Vec<usize>,
        length: usize,
    },
    HardLink {
        path: Vec<usize>,
        target: usize,
    },
    Whiteout {
        path: Vec<usize>,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let path = || prop::collection::vec(0..NAMES.len(), 1..4);
    let mode = || 0_u16..0o10000;
    prop::collection::vec(
        prop_oneof![
            4 => (path(), 0_usize..9000, mode()).prop_map(|(path, size, mode)| Step::File { path, size, mode }),
            2 => (path(), mode()).prop_map(|(path, mode)| Step::Directory { path, mode }),
            1 => (path(), 1_usize..4000).prop_map(|(path, length)| Step::Symlink { path, length }),
            1 => (path(), 0_usize..50).prop_map(|(path, target)| Step::HardLink { path, target }),
            1 => path().prop_map(|path| Step::Whiteout { path }),
        ],
        0..60,
    )
}

fn text(path: &[usize]) -> String {
    path.iter().map(|name| NAMES[*name]).collect::<Vec<_>>().join("/")
}

#[derive(Debug, Clone, PartialEq)]
enum Model {
    File(usize, Vec<u8>, u16),
    Directory(u16),
    Symlink(Vec<u8>),
    Whiteout,
}

#[derive(Default)]
struct Layer {
    tar: TarBuilder,
    model: BTreeMap<String, Model>,
}

impl Layer {
    /// Whether every parent is a directory or can be made one; then they are made.
    fn make_parents(&mut self, path: &[usize]) -> bool {
        let parents: Vec<String> = (1..path.len()).map(|length| text(&path[..length])).collect();
        if parents
            .iter()
            .any(|parent| matches!(self.model.get(parent), Some(Model::File(..) | Model::Symlink(_))))
        {
            return false;
        }
        for parent in parents {
            if !matches!(self.model.get(&parent), Some(Model::Directory(_))) {
                self.model.insert(parent, Model::Directory(0o755));
            }
        }
        true
    }

    fn replace(&mut self, path: &str, with: Model) {
        self.model
            .retain(|other, _| !other.starts_with(&format!("{path}/")));
        self.model.insert(path.to_owned(), with);
    }

    fn apply(&mut self, number: usize, step: &Step) {
        let (Step::File { path, .. }
        | Step::Directory { path, .. }
        | Step::Symlink { path, .. }
        | Step::HardLink { path, .. }
        | Step::Whiteout { path }) = step;
        if let Step::HardLink { target, .. } = step {
            let at = self
                .model
                .iter()
                .filter(|(_, found)| matches!(found, Model::File(..)))
                .nth(*target);
            let Some((target, found)) = at.map(|(path, found)| (path.clone(), found.clone())) else {
                return;
            };
            if target.starts_with(&format!("{}/", text(path))) || !self.make_parents(path) {
                return;
            }
            self.tar = std::mem::take(&mut self.tar).hard_link(&text(path), &target);
            self.replace(&text(path), found);
            return;
        }
        if !self.make_parents(path) {
            return;
        }
        let name = text(path);
        let tar = std::mem::take(&mut self.tar);
        self.tar = match step {
            Step::File { size, mode, .. } => {
                let data: Vec<u8> = (0..*size).map(|at| (at % 251) as u8).collect();
                let tar = tar.file(&name, u32::from(*mode), &data);
                self.replace(&name, Model::File(number, data, *mode));
                tar
            }
            Step::Directory { mode, .. } => {
                if !matches!(self.model.get(&name), Some(Model::Directory(_))) {
                    self.replace(&name, Model::Directory(*mode));
                }
                self.model.insert(name.clone(), Model::Directory(*mode));
                tar.dir(&name, u32::from(*mode))
            }
            Step::Symlink { length, .. } => {
                self.replace(&name, Model::Symlink(vec![b't'; *length]));
                tar.symlink(&name, &"t".repeat(*length))
            }
            Step::Whiteout { .. } => {
                self.model.entry(name.clone()).or_insert(Model::Whiteout);
                let at = name.rfind('/').map_or(0, |slash| slash + 1);
                tar.file(&format!("{}.wh.{}", &name[..at], &name[at..]), 0o644, b"")
            }
            Step::HardLink { .. } => tar,
        };
    }
}

fn check(found: &BTreeMap<Vec<u8>, Found>, model: &BTreeMap<String, Model>) {
    let paths: Vec<&[u8]> = found.keys().map(Vec::as_slice).collect();
    let expected: Vec<&[u8]> = std::iter::once(&b""[..])
        .chain(model.keys().map(|path| path.as_bytes()))
        .collect();
    assert_eq!(paths, expected);
    for (path, expected) in model {
        let found = &found[path.as_bytes()];
        match expected {
            Model::File(number, data, mode) => {
                assert_eq!((&found.kind, found.mode), (&FoundKind::File(data.clone()), *mode));
                let links = model
                    .values()
                    .filter(|other| matches!(other, Model::File(it, ..) if it == number));
                assert_eq!(found.links as usize, links.count(), "links of {path}");
            }
            Model::Directory(mode) => {
                assert_eq!(
                    (&found.kind, found.mode),
                    (&FoundKind::Directory, *mode),
                    "{path}"
                );
            }
            Model::Symlink(target) => assert_eq!(found.kind, FoundKind::Symlink(target.clone())),
            Model::Whiteout => assert_eq!(found.kind, whiteout()),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_layers_are_read_back_as_the_model_says(steps in steps()) {
        let mut layer = Layer::default();
        for (number, step) in steps.iter().enumerate() {
            layer.apply(number, step);
        }
        check(&tree(&layer.tar.finish()), &layer.model);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(
        steps in steps(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut layer = Layer::default();
        for (number, step) in steps.iter().enumerate() {
            layer.apply(number, step);
        }
        let mut tar = layer.tar.finish();
        for (at, value) in flips {
            let at = at.index(tar.len());
            tar[at] = value;
        }
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("blob");
        if write(&tar, &path).is_ok() {
            BlobReader::open(&path).tree();
        }
    }
}
