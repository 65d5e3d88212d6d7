//! From tar entries to a file tree: the rules of OCI layers (image-spec, layer.md).
//!
//! - A later entry of a path replaces an earlier one; a directory over a directory only changes its attributes.
//! - `.wh.name` hides a lower `name`: a whiteout device for overlayfs, or an opaque directory if this layer has its own.
//! - `.wh..wh..opq` makes its directory opaque. Other `.wh..wh.` names are bookkeeping of AUFS and left out.
//! - A path leads through symlinks of this layer, never out of the root; `..` in an entry's name is refused.
//! - A parent that no entry describes is *implied*: made `0755 root:root` here and noted, because overlayfs takes a
//!   directory's attributes from its topmost layer and these belong to the layers below (see `merge`).

use std::io::Read;

use super::{
    config::Limits,
    erofs::{AppendError, Attributes, Blob, Content, DeviceKind, NodeId, Tree, XattrRefusal},
    error::LayerError,
    tar::{Archive, Entry, Kind},
};

const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
pub(crate) const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";
/// Attributes by which overlayfs itself is steered: not a layer author's to set.
const OVERLAY_XATTRS: &[u8] = b"trusted.overlay.";

/// As the kernel: include/linux/namei.h, `MAXSYMLINKS`.
const MAX_SYMLINKS: usize = 40;
/// Linux: `NAME_MAX`, `PATH_MAX` (include/uapi/linux/limits.h).
const MAX_NAME: usize = 255;
const MAX_PATH: usize = 4096;

/// Reads a whole layer: file data goes into `blob`, everything else into the tree.
pub(crate) fn read_layer<R: Read>(
    archive: &mut Archive<R>,
    blob: &mut Blob,
    limits: &Limits,
) -> Result<Tree, LayerError> {
    let mut layer = LayerTree {
        tree: Tree::new(),
        limits,
        entries: 0,
        data: 0,
        metadata: 0,
    };
    while let Some(entry) = archive.next_entry()? {
        layer.account(&entry)?;
        layer.apply(&entry, archive, blob)?;
    }
    Ok(layer.tree)
}

struct LayerTree<'a> {
    tree: Tree,
    limits: &'a Limits,
    entries: u64,
    data: u64,
    metadata: u64,
}

/// Where an entry goes.
struct Place {
    directory: NodeId,
    name: Vec<u8>,
}

impl LayerTree<'_> {
    /// Counts what an entry costs before anything is allocated for it.
    fn account(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let bound = |value: u64, limit: u64, what| {
            if value > limit {
                Err(LayerError::TooMuch { what, limit })
            } else {
                Ok(())
            }
        };
        self.entries += 1;
        let mut metadata = entry.path.len();
        match &entry.kind {
            Kind::File { size } => self.data = self.data.saturating_add(*size),
            Kind::HardLink(target) | Kind::Symlink(target) => metadata += target.len(),
            Kind::Character(..) | Kind::Block(..) | Kind::Directory | Kind::Fifo => {}
        }
        metadata += entry
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum::<usize>();
        self.metadata += metadata as u64;
        bound(self.entries, self.limits.layer_entries, "entries")?;
        bound(
            self.tree.len() as u64,
            self.limits.layer_entries,
            "files and directories",
        )?;
        bound(self.data, self.limits.layer_bytes, "bytes of file data")?;
        bound(
            self.metadata,
            self.limits.layer_metadata_bytes,
            "bytes of names and attributes",
        )
    }

    fn apply<R: Read>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<R>,
        blob: &mut Blob,
    ) -> Result<(), LayerError> {
        let Some(place) = self.place(entry, &entry.path)? else {
            return self.apply_root(entry);
        };
        if place.name.starts_with(WHITEOUT) {
            return self.apply_whiteout(entry, &place);
        }
        let attributes = attributes(entry)?;
        let content = match &entry.kind {
            Kind::File { size } => {
                let start = blob.append(&mut archive.data(), *size).map_err(append_failed)?;
                Content::File { start, size: *size }
            }
            Kind::Symlink(target) => Content::Symlink(symlink_target(entry, target)?),
            Kind::Character(major, minor) => device(entry, DeviceKind::Character, *major, *minor)?,
            Kind::Block(major, minor) => device(entry, DeviceKind::Block, *major, *minor)?,
            Kind::Fifo => Content::Fifo,
            Kind::Directory => return self.apply_directory(entry, &place, attributes),
            Kind::HardLink(target) => return self.apply_hard_link(entry, &place, target),
        };
        self.insert(entry, &place, attributes, content)?;
        Ok(())
    }

    /// An entry for the layer's root itself (`./`).
    fn apply_root(&mut self, entry: &Entry) -> Result<(), LayerError> {
        if entry.kind != Kind::Directory {
            return Err(entry.refuse("the root is not a directory"));
        }
        self.describe(entry, NodeId::ROOT, attributes(entry)?)
    }

    fn apply_directory(
        &mut self,
        entry: &Entry,
        place: &Place,
        attributes: Attributes,
    ) -> Result<(), LayerError> {
        match self.tree.child(place.directory, &place.name) {
            Some(id) if self.tree.node(id).content.is_directory() => self.describe(entry, id, attributes)?,
            before => {
                let id = self.insert(entry, place, attributes, directory())?;
                // The lower directory was removed before this one was made.
                if before.is_some_and(|before| self.tree.node(before).content == Content::WHITEOUT) {
                    self.make_opaque(entry, id)?;
                }
            }
        }
        Ok(())
    }

    /// Gives a directory that exists its attributes. Opaque stays opaque.
    fn describe(&mut self, entry: &Entry, id: NodeId, attributes: Attributes) -> Result<(), LayerError> {
        let node = self.tree.node_mut(id);
        let was_opaque = node.attributes.xattr(OPAQUE_XATTR).is_some();
        node.attributes = attributes;
        node.implied = false;
        if was_opaque {
            self.make_opaque(entry, id)
        } else {
            Ok(())
        }
    }

    fn apply_hard_link(&mut self, entry: &Entry, place: &Place, target: &[u8]) -> Result<(), LayerError> {
        let shown = String::from_utf8_lossy(target);
        let found = match self.place(entry, target)? {
            Some(at) => self.tree.child(at.directory, &at.name),
            None => Some(NodeId::ROOT),
        };
        let Some(id) = found.filter(|id| self.tree.node(*id).content != Content::WHITEOUT) else {
            return Err(entry.refuse(format!(
                "hard link to {shown:?}, which is not in this layer before it"
            )));
        };
        if self.tree.node(id).content.is_directory() {
            return Err(entry.refuse(format!("hard link to {shown:?}, which is a directory")));
        }
        if self.tree.child(place.directory, &place.name) != Some(id) {
            self.tree.link(place.directory, &place.name, id);
        }
        Ok(())
    }

    fn apply_whiteout(&mut self, entry: &Entry, place: &Place) -> Result<(), LayerError> {
        if place.name == OPAQUE {
            return self.make_opaque(entry, place.directory);
        }
        if place.name.starts_with(AUFS) {
            return Ok(());
        }
        let hidden = place.name[WHITEOUT.len()..].to_vec();
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(entry.refuse("whiteout of no name"));
        }
        match self.tree.child(place.directory, &hidden) {
            // A whiteout speaks of lower layers only; what this layer has stays and must not merge with it.
            Some(id) if self.tree.node(id).content.is_directory() => self.make_opaque(entry, id)?,
            Some(_) => {}
            None => {
                let place = Place {
                    directory: place.directory,
                    name: hidden,
                };
                self.insert(
                    entry,
                    &place,
                    Attributes::new(0, 0, 0, entry.mtime),
                    Content::WHITEOUT,
                )?;
            }
        }
        Ok(())
    }

    fn make_opaque(&mut self, entry: &Entry, id: NodeId) -> Result<(), LayerError> {
        let attributes = &mut self.tree.node_mut(id).attributes;
        attributes
            .set_xattr(OPAQUE_XATTR, b"y")
            .map_err(|_| entry.refuse("its directory has too many extended attributes to be made opaque"))
    }

    fn insert(
        &mut self,
        entry: &Entry,
        place: &Place,
        attributes: Attributes,
        content: Content,
    ) -> Result<NodeId, LayerError> {
        self.tree
            .insert(place.directory, &place.name, attributes, content)
            .ok_or_else(|| entry.refuse("too many files"))
    }

    /// The directory and name that a path means, making implied parents. `None` for the root.
    fn place(&mut self, entry: &Entry, path: &[u8]) -> Result<Option<Place>, LayerError> {
        if path.len() > MAX_PATH {
            return Err(entry.refuse("path is longer than 4096 bytes"));
        }
        let mut names: Vec<&[u8]> = components(path).collect();
        if names.contains(&&b".."[..]) {
            return Err(entry.refuse("path contains `..`"));
        }
        if names
            .iter()
            .any(|name| name.len() > MAX_NAME || name.contains(&0))
        {
            return Err(entry.refuse("a name in the path is longer than 255 bytes or contains a NUL"));
        }
        let Some(name) = names.pop() else { return Ok(None) };
        let names: Vec<Vec<u8>> = names.into_iter().map(<[u8]>::to_vec).collect();
        let directory = self.descend(entry, names)?;
        Ok(Some(Place {
            directory,
            name: name.to_vec(),
        }))
    }

    /// Walks to a directory through symlinks as if the layer were the whole file system.
    fn descend(&mut self, entry: &Entry, names: Vec<Vec<u8>>) -> Result<NodeId, LayerError> {
        let mut trail = vec![NodeId::ROOT];
        let mut todo: Vec<Vec<u8>> = names.into_iter().rev().collect();
        let mut followed = 0;
        while let Some(name) = todo.pop() {
            let here = trail.last().copied().unwrap_or(NodeId::ROOT);
            if name == b".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let Some(child) = self.tree.child(here, &name) else {
                trail.push(self.imply(entry, here, name, false)?);
                continue;
            };
            match &self.tree.node(child).content {
                Content::Directory(_) => trail.push(child),
                Content::Symlink(target) => {
                    followed += 1;
                    if followed > MAX_SYMLINKS {
                        return Err(entry.refuse("path leads through too many symlinks"));
                    }
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    let through: Vec<Vec<u8>> = components(target).map(<[u8]>::to_vec).collect();
                    todo.extend(through.into_iter().rev());
                }
                content if *content == Content::WHITEOUT => {
                    trail.push(self.imply(entry, here, name, true)?);
                }
                _ => return Err(entry.refuse("a parent is not a directory")),
            }
        }
        Ok(trail.last().copied().unwrap_or(NodeId::ROOT))
    }

    fn imply(
        &mut self,
        entry: &Entry,
        directory: NodeId,
        name: Vec<u8>,
        opaque: bool,
    ) -> Result<NodeId, LayerError> {
        if name.len() > MAX_NAME {
            return Err(entry.refuse("a symlink on the way has a name longer than 255 bytes"));
        }
        let place = Place { directory, name };
        let id = self.insert(entry, &place, Attributes::implied(), self::directory())?;
        self.tree.node_mut(id).implied = true;
        if opaque {
            self.make_opaque(entry, id)?;
        }
        Ok(id)
    }
}

fn directory() -> Content {
    Content::Directory(std::collections::BTreeMap::new())
}

/// Names between slashes; empty ones and `.` say nothing.
fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
}

fn attributes(entry: &Entry) -> Result<Attributes, LayerError> {
    let mode = if matches!(entry.kind, Kind::Symlink(_)) {
        0o777
    } else {
        entry.mode
    };
    let mut attributes = Attributes::new(mode, entry.uid, entry.gid, entry.mtime);
    for (name, value) in &entry.xattrs {
        let shown = String::from_utf8_lossy(name);
        if name.starts_with(OVERLAY_XATTRS) {
            tracing::debug!(entry = entry.shown(), xattr = %shown, "overlayfs attribute left out");
            continue;
        }
        match attributes.set_xattr(name, value) {
            Ok(()) => {}
            // For instance com.apple.*: no Linux file system holds it, and other runtimes leave it out too.
            Err(XattrRefusal::Unsupported) => {
                tracing::debug!(entry = entry.shown(), xattr = %shown, "foreign attribute left out");
            }
            Err(XattrRefusal::TooLarge) => {
                return Err(entry.refuse(format!("extended attribute {shown:?} is too large")));
            }
        }
    }
    Ok(attributes)
}

fn symlink_target(entry: &Entry, target: &[u8]) -> Result<Vec<u8>, LayerError> {
    if target.is_empty() || target.len() >= MAX_PATH || target.contains(&0) {
        return Err(entry.refuse("symlink target is empty, longer than 4095 bytes or contains a NUL"));
    }
    Ok(target.to_vec())
}

fn device(entry: &Entry, kind: DeviceKind, major: u64, minor: u64) -> Result<Content, LayerError> {
    Content::device(kind, major, minor)
        .ok_or_else(|| entry.refuse(format!("device number {major}:{minor} is out of range")))
}

/// Without a path: the caller knows which file it gave to the blob.
pub(crate) fn append_failed(error: AppendError) -> LayerError {
    match error {
        AppendError::Write(source) => LayerError::Write { source },
        AppendError::Read(source) => LayerError::Stream { source },
        AppendError::Full => LayerError::TooMuch {
            what: "blocks",
            limit: u64::from(u32::MAX),
        },
    }
}
