//! Entry points for the fuzz targets in `cri-server/fuzz`: strangers' bytes in, and what must hold afterwards.

use super::{
    super::{
        config::Limits,
        erofs::{Blob, Reader, finish},
        layer_tree::read_layer,
        manifest,
        reference::Reference,
        tar::Archive,
    },
    blob_reader::BlobReader,
};

/// Any bytes are a layer or are refused; what was accepted reads back.
pub fn layer(tar: &[u8]) {
    let limits = Limits {
        layer_bytes: 16 << 20,
        layer_entries: 10_000,
        layer_metadata_bytes: 4 << 20,
        ..Limits::default()
    };
    let path = std::env::temp_dir().join(format!("clearpod-fuzz-{}.erofs", std::process::id()));
    let mut blob = Blob::new(fs_err::File::create(&path).expect("temporary file"));
    let Ok(tree) = read_layer(&mut Archive::new(tar), &mut blob, &limits) else {
        return;
    };
    finish(blob, &tree, [0; 16]).expect("a tree within limits is written");
    let read_back = BlobReader::open(&path).tree();
    let loaded = Reader::open(&path)
        .and_then(|reader| reader.load())
        .expect("our own blob");
    assert_eq!(loaded.walk().len(), tree.walk().len());
    assert!(read_back.len() >= loaded.walk().len(), "a name per node at least");
}

/// Any bytes are a manifest, an index, a configuration, or are refused.
pub fn manifest(bytes: &[u8]) {
    drop(manifest::parse(
        bytes,
        "application/vnd.oci.image.manifest.v1+json",
        "linux/amd64",
        127,
    ));
    drop(manifest::parse_config(bytes, 1, "linux/amd64"));
}

/// A reference that is accepted is spelled out in a form that means itself.
pub fn reference(text: &str) {
    if let Ok(reference) = Reference::parse(text) {
        assert_eq!(Reference::parse(&reference.to_string()).as_ref(), Ok(&reference));
    }
}
