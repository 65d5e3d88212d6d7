//! Makes layers that were unpacked apart behave as if each had been unpacked over the ones below.
//!
//! A tar may use a directory without describing it (`usr/lib/x` with no entry for `usr/lib`). Unpacked onto the lower
//! layers, as other runtimes do, it would land in whatever is there. Layers are unpacked alone here, so that they can be
//! shared and made in parallel, and two things are put right afterwards for each image:
//!
//! - where a lower layer has a *symlink* (`/lib` of a merged `/usr`), the directory would hide it: the layer gets a
//!   variant of its own with these files moved to where the symlink leads;
//! - where a lower layer has a *directory*, overlayfs would show the implied `0755 root:root`: a tiny layer on top holds
//!   those directories with the attributes they should have.
//!
//! Most images need neither.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::Arc,
};

use super::{
    catalog::LayerRecord,
    digest::{Digest, Hasher},
    erofs::{self, Attributes, Blob, Content, NodeId, Reader, Sight, Stored, Tree},
    error::LayerError,
    layer::{TemporaryFile, UnpackFault, name_lack_of_space, publish, uuid},
    layer_tree::{OPAQUE_XATTR, append_failed},
    shelf::{LayerHold, Shelf},
};

/// Implied directories looked at in one image; each costs a walk through all layers.
const MAX_IMPLIED: usize = 20_000;
/// As the kernel: include/linux/namei.h, `MAXSYMLINKS`.
const MAX_SYMLINKS: usize = 40;

/// A complete layer that cannot be swept.
#[derive(Debug)]
pub(crate) struct HeldLayer {
    pub(crate) id: Digest,
    pub(crate) record: LayerRecord,
    pub(crate) hold: LayerHold,
}

/// A layer in its place in the stack.
struct Placed {
    path: PathBuf,
    reader: Reader,
    implied: BTreeSet<Vec<u8>>,
}

/// The layers as they must be stacked, bottom first. Blocking.
pub(crate) fn settle(shelf: &Arc<Shelf>, layers: Vec<HeldLayer>) -> Result<Vec<HeldLayer>, UnpackFault> {
    let implied: usize = layers
        .iter()
        .skip(1)
        .map(|layer| layer.record.implied_dirs.len())
        .sum();
    if implied > MAX_IMPLIED {
        let limit = MAX_IMPLIED as u64;
        return Err(LayerError::TooMuch {
            what: "directories without an entry of their own",
            limit,
        }
        .into());
    }
    let mut settled: Vec<HeldLayer> = Vec::with_capacity(layers.len());
    let mut stack: Vec<Placed> = Vec::with_capacity(layers.len());
    for layer in layers {
        let moves = find_moves(&stack, &layer.record)?;
        let layer = if moves.is_empty() {
            layer
        } else {
            relocate(shelf, &layer, &moves)?
        };
        stack.push(place(shelf, &layer)?);
        settled.push(layer);
    }
    let wanted = find_attributes(&stack)?;
    if !wanted.is_empty() {
        settled.push(attributes_layer(shelf, &stack, &wanted)?);
    }
    Ok(settled)
}

fn place(shelf: &Shelf, layer: &HeldLayer) -> Result<Placed, LayerError> {
    let path = shelf.layer_path(&layer.id.to_string());
    let reader = Reader::open(&path).map_err(|source| unreadable(&path, source))?;
    Ok(Placed {
        path,
        reader,
        implied: layer.record.implied_dirs.iter().cloned().collect(),
    })
}

fn unreadable(path: &std::path::Path, source: io::Error) -> LayerError {
    LayerError::Io {
        operation: "read",
        path: path.to_owned(),
        source,
    }
}

/// What the layers so far show under a path; symlinks are not followed.
fn look<'a>(stack: &'a [Placed], path: &[u8]) -> Result<Option<(&'a Placed, Stored)>, LayerError> {
    let names = names(path);
    for layer in stack.iter().rev() {
        match layer
            .reader
            .look(&names, OPAQUE_XATTR)
            .map_err(|source| unreadable(&layer.path, source))?
        {
            Sight::Nothing => {}
            Sight::Opaque | Sight::Blocked => return Ok(None),
            Sight::Found(found) => return Ok(Some((layer, found))),
        }
    }
    Ok(None)
}

fn names(path: &[u8]) -> Vec<&[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty())
        .collect()
}

fn is_within(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder)
        .is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// A directory of a layer whose content belongs elsewhere.
struct Move {
    from: Vec<u8>,
    to: Vec<u8>,
}

/// Implied directories of a layer that are symlinks below it, with where these lead.
fn find_moves(stack: &[Placed], record: &LayerRecord) -> Result<Vec<Move>, LayerError> {
    let mut moves: Vec<Move> = Vec::new();
    if stack.is_empty() {
        return Ok(moves);
    }
    for path in &record.implied_dirs {
        if moves.iter().any(|moved| is_within(path, &moved.from)) {
            continue;
        }
        if look(stack, path)?.is_some_and(|(_, found)| found.is_symlink()) {
            moves.push(Move {
                from: path.clone(),
                to: follow(stack, path)?,
            });
        }
    }
    Ok(moves)
}

/// Where a path leads through the symlinks of the layers so far. What does not exist stays as it is written.
fn follow(stack: &[Placed], path: &[u8]) -> Result<Vec<u8>, LayerError> {
    let mut trail: Vec<Vec<u8>> = Vec::new();
    let mut todo: Vec<Vec<u8>> = names(path).into_iter().rev().map(<[u8]>::to_vec).collect();
    let mut followed = 0;
    while let Some(name) = todo.pop() {
        match name.as_slice() {
            b"." => continue,
            b".." => {
                trail.pop();
                continue;
            }
            _ => trail.push(name),
        }
        let Some((layer, found)) = look(stack, &trail.join(&b'/'))?.filter(|(_, found)| found.is_symlink())
        else {
            continue;
        };
        followed += 1;
        if followed > MAX_SYMLINKS {
            return Err(LayerError::Entry {
                entry: String::from_utf8_lossy(path).into_owned(),
                reason: "leads through too many symlinks of lower layers".to_owned(),
            });
        }
        trail.pop();
        let target = layer
            .reader
            .symlink_target(&found)
            .map_err(|source| unreadable(&layer.path, source))?;
        if target.starts_with(b"/") {
            trail.clear();
        }
        todo.extend(names(&target).into_iter().rev().map(<[u8]>::to_vec));
    }
    Ok(trail.join(&b'/'))
}

/// A variant of a layer with some of its directories elsewhere. Its id says what was done, so equal variants are one.
fn relocate(shelf: &Arc<Shelf>, layer: &HeldLayer, moves: &[Move]) -> Result<HeldLayer, UnpackFault> {
    let mut hasher = Hasher::default();
    hasher.update(format!("relocated {}", layer.id).as_bytes());
    for Move { from, to } in moves {
        hasher.update(&[b"\0", from.as_slice(), b"\0", to.as_slice()].concat());
    }
    tracing::debug!(layer = %layer.id, directories = moves.len(), "layer reaches through symlinks below it");
    make(shelf, &hasher.finish(), |file, path| {
        let placed = place(shelf, layer)?;
        let failed = |source| unreadable(&placed.path, source);
        let mut tree = placed.reader.load().map_err(failed)?;
        for path in &placed.implied {
            if let Some(id) = find(&tree, path) {
                tree.node_mut(id).implied = true;
            }
        }
        for one in moves {
            move_directory(&mut tree, &one.from, &one.to)?;
        }
        let blob = Blob::with_data_of(file, &placed.reader).map_err(|source| LayerError::Io {
            operation: "copy into",
            path: path.to_owned(),
            source,
        })?;
        Ok((blob, tree))
    })
}

fn find(tree: &Tree, path: &[u8]) -> Option<NodeId> {
    names(path)
        .into_iter()
        .try_fold(NodeId::ROOT, |at, name| tree.child(at, name))
}

/// The directory of a path, made with what is missing. A name that is no directory gives way.
fn make_directory(tree: &mut Tree, path: &[u8]) -> Option<NodeId> {
    names(path)
        .into_iter()
        .try_fold(NodeId::ROOT, |at, name| match tree.child(at, name) {
            Some(id) if tree.node(id).content.is_directory() => Some(id),
            _ => {
                let id = tree.insert(
                    at,
                    name,
                    Attributes::implied(),
                    Content::Directory(BTreeMap::new()),
                )?;
                tree.node_mut(id).implied = true;
                Some(id)
            }
        })
}

/// Moves what is in one directory into another, directories into directories.
fn move_directory(tree: &mut Tree, from: &[u8], to: &[u8]) -> Result<(), LayerError> {
    let (Some(source), Some(target)) = (find(tree, from), make_directory(tree, to)) else {
        return Ok(());
    };
    let mut pending = vec![(source, target)];
    while let Some((source, target)) = pending.pop() {
        if tree.node(source).attributes.xattr(OPAQUE_XATTR).is_some() {
            let attributes = &mut tree.node_mut(target).attributes;
            if attributes.set_xattr(OPAQUE_XATTR, b"y").is_err() {
                let entry = String::from_utf8_lossy(to).into_owned();
                let reason = "has too many extended attributes to be made opaque".to_owned();
                return Err(LayerError::Entry { entry, reason });
            }
        }
        let children: Vec<Vec<u8>> = tree.names(source).map(|(name, _)| name.to_vec()).collect();
        for name in children {
            let Some(child) = tree.detach(source, &name) else {
                continue;
            };
            match tree.child(target, &name) {
                Some(there) if both_directories(tree, child, there) => {
                    if !tree.node(child).implied {
                        let attributes = tree.node(child).attributes.clone();
                        let node = tree.node_mut(there);
                        (node.attributes, node.implied) = (attributes, false);
                    }
                    pending.push((child, there));
                }
                _ => tree.attach(target, &name, child),
            }
        }
    }
    // The emptied directory would still hide the symlink below.
    let (folder, name) = match from.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&from[..slash], &from[slash + 1..]),
        None => (&b""[..], from),
    };
    if let Some(folder) = find(tree, folder) {
        tree.detach(folder, name);
    }
    Ok(())
}

fn both_directories(tree: &Tree, one: NodeId, other: NodeId) -> bool {
    tree.node(one).content.is_directory() && tree.node(other).content.is_directory()
}

/// Directories that would show implied attributes although a lower layer describes them.
fn find_attributes(stack: &[Placed]) -> Result<BTreeMap<Vec<u8>, Attributes>, LayerError> {
    let mut wanted = BTreeMap::new();
    let implied: BTreeSet<&Vec<u8>> = stack.iter().skip(1).flat_map(|layer| &layer.implied).collect();
    for path in implied {
        if let Some((attributes, true)) = described(stack, path)? {
            wanted.insert(path.clone(), attributes);
        }
    }
    Ok(wanted)
}

/// The attributes that a directory should show, and whether an implied one hides them. `None` when nobody describes it.
fn described(stack: &[Placed], path: &[u8]) -> Result<Option<(Attributes, bool)>, LayerError> {
    let names = names(path);
    let mut hidden = false;
    for layer in stack.iter().rev() {
        let sight = layer
            .reader
            .look(&names, OPAQUE_XATTR)
            .map_err(|source| unreadable(&layer.path, source))?;
        let found = match sight {
            Sight::Nothing => continue,
            Sight::Found(found) if found.is_directory() => found,
            Sight::Opaque | Sight::Blocked | Sight::Found(_) => return Ok(None),
        };
        if !layer.implied.contains(path) {
            let mut attributes = found.attributes;
            attributes.remove_xattr(OPAQUE_XATTR);
            return Ok(Some((attributes, hidden)));
        }
        if found.attributes.xattr(OPAQUE_XATTR).is_some() {
            return Ok(None);
        }
        hidden = true;
    }
    Ok(None)
}

/// A layer of nothing but directories and their attributes, for the top of the stack.
fn attributes_layer(
    shelf: &Arc<Shelf>,
    stack: &[Placed],
    wanted: &BTreeMap<Vec<u8>, Attributes>,
) -> Result<HeldLayer, UnpackFault> {
    let mut tree = Tree::new();
    let mut hasher = Hasher::default();
    hasher.update(b"attributes");
    for path in wanted.keys() {
        // Every directory on the way is on top now too, so it needs its own.
        let names = names(path);
        for depth in 0..=names.len() {
            let path = names[..depth].join(&b'/');
            if find(&tree, &path).is_some_and(|id| id != NodeId::ROOT || !tree.node(id).implied) {
                continue;
            }
            let attributes =
                described(stack, &path)?.map_or_else(Attributes::implied, |(attributes, _)| attributes);
            hasher.update(format!("\0{}\0{attributes:?}", String::from_utf8_lossy(&path)).as_bytes());
            if let Some(id) = make_directory(&mut tree, &path) {
                let node = tree.node_mut(id);
                (node.attributes, node.implied) = (attributes, false);
            }
        }
    }
    tracing::debug!(
        directories = wanted.len(),
        "image needs a layer of directory attributes"
    );
    make(shelf, &hasher.finish(), |file, _| Ok((Blob::new(file), tree)))
}

/// The layer with this id: the one that is there, or a new one.
fn make(
    shelf: &Arc<Shelf>,
    id: &Digest,
    build: impl FnOnce(fs_err::File, &std::path::Path) -> Result<(Blob, Tree), LayerError>,
) -> Result<HeldLayer, UnpackFault> {
    let (hold, known) = shelf.hold_layer(id);
    if let Some(record) = known {
        return Ok(HeldLayer {
            id: id.clone(),
            record,
            hold,
        });
    }
    let path = shelf.temporary_path(id);
    let temporary = TemporaryFile::new(&path);
    let record = (|| {
        let (blob, tree) = build(temporary.create()?, &path)?;
        let implied_dirs = tree.implied_directories();
        let size = erofs::finish(blob, &tree, uuid(id)).map_err(append_failed)?;
        Ok(LayerRecord { size, implied_dirs })
    })()
    .map_err(|error: LayerError| name_lack_of_space(error.into(), &path))?;
    publish(shelf, id, &path, &record)?;
    temporary.published();
    Ok(HeldLayer {
        id: id.clone(),
        record,
        hold,
    })
}

#[cfg(test)]
mod tests;
