//! The fuzz targets' own inputs, and those that once broke something (`cri-server/fuzz/seeds`), through the same entry points
//! without a fuzzer: what was found stays found.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use cri_server::{fuzzing, image::testing::fuzz as images, streaming::testing as streaming};

type Target = (&'static str, fn(&[u8]));

/// Those whose entry point is this crate's; what `proto` decodes has its own tests there.
const TARGETS: [Target; 10] = [
    ("agent_answers", |bytes| {
        let (first, bytes) = split(bytes);
        fuzzing::agent_answers(first, bytes);
    }),
    ("authority", |bytes| {
        let (first, bytes) = split(bytes);
        fuzzing::authority(bytes, usize::from(first));
    }),
    ("cri_requests", |bytes| {
        let (first, bytes) = split(bytes);
        fuzzing::cri_requests(first, bytes);
    }),
    ("layer", images::layer),
    ("manifest", images::manifest),
    ("output_frames", |bytes| {
        let (first, bytes) = split(bytes);
        fuzzing::output_frames(bytes, usize::from(first / 2), first % 2 == 1);
    }),
    ("reference", |bytes| {
        images::reference(std::str::from_utf8(bytes).unwrap());
    }),
    ("spdy_frames", |bytes| {
        let (first, bytes) = split(bytes);
        streaming::decode_frames(bytes, usize::from(first));
    }),
    ("spdy_session", streaming::converse),
    ("websocket", |bytes| {
        let (first, bytes) = split(bytes);
        streaming::converse_websocket(first, bytes);
    }),
];
const OF_PROTO: [&str; 2] = ["port_forward", "stdio_hello"];

fn split(bytes: &[u8]) -> (u8, &[u8]) {
    let (first, rest) = bytes.split_first().unwrap();
    (*first, rest)
}

fn below(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(path)
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn every_seed_passes_its_target() {
    for (name, target) in TARGETS {
        let seeds = entries(&below("seeds").join(name));
        assert!(!seeds.is_empty(), "{name} has no seed");
        for seed in seeds {
            let bytes = fs::read(&seed).unwrap();
            let passed = std::panic::catch_unwind(|| target(&bytes));
            assert!(passed.is_ok(), "{} does not pass", seed.display());
        }
    }
}

#[test]
fn every_target_is_here() {
    let targets: BTreeSet<String> = entries(&below("fuzz_targets"))
        .iter()
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let known = TARGETS.iter().map(|(name, _)| *name).chain(OF_PROTO);
    assert_eq!(targets, known.map(str::to_owned).collect());
}
