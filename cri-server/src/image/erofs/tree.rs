//! The file tree of one layer while it is being read: nodes with attributes, names in directories, link counts.
//!
//! It knows nothing of tar and nothing of block addresses except where file data already went. Depth comes from
//! untrusted paths, so nothing here recurses.

use std::collections::BTreeMap;

use super::format;

/// Linux refuses larger values: include/uapi/linux/limits.h, `XATTR_SIZE_MAX`. EROFS stores 16 bits.
const MAX_XATTR_VALUE: usize = u16::MAX as usize;
/// `i_xattr_icount` is 16 bits wide, in units of four bytes.
const MAX_XATTRS_SIZE: u64 = 4 * (u16::MAX as u64 - 1);

/// A node's index in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeId(u32);

impl NodeId {
    pub(crate) const ROOT: Self = Self(0);

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// What `stat` and `getxattr` tell of a file, except its kind and size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Permissions, setuid, setgid, sticky: the lower 12 bits of `st_mode`.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) mtime: i64,
    pub(crate) mtime_nanos: u32,
    /// By full name, `security.capability`. Filled through [`Attributes::set_xattr`].
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Why an extended attribute was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum XattrRefusal {
    /// No Linux file system can hold a name of this class.
    Unsupported,
    TooLarge,
}

impl Attributes {
    /// A directory that nobody described: `0755 root:root`, at the epoch.
    pub(crate) fn implied() -> Self {
        Self {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nanos: 0,
            xattrs: BTreeMap::new(),
        }
    }

    pub(crate) fn new(mode: u16, uid: u32, gid: u32, mtime: (i64, u32)) -> Self {
        let (mtime, mtime_nanos) = mtime;
        Self {
            mode,
            uid,
            gid,
            mtime,
            mtime_nanos,
            xattrs: BTreeMap::new(),
        }
    }

    pub(crate) fn set_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), XattrRefusal> {
        let Some((_, suffix)) = format::xattr_index(name) else {
            return Err(XattrRefusal::Unsupported);
        };
        if suffix.len() > usize::from(u8::MAX) || value.len() > MAX_XATTR_VALUE {
            return Err(XattrRefusal::TooLarge);
        }
        let before = self.xattrs.insert(name.to_vec(), value.to_vec());
        if format::xattrs_size(self) > MAX_XATTRS_SIZE {
            match before {
                Some(before) => self.xattrs.insert(name.to_vec(), before),
                None => self.xattrs.remove(name),
            };
            return Err(XattrRefusal::TooLarge);
        }
        Ok(())
    }

    pub(crate) fn remove_xattr(&mut self, name: &[u8]) {
        self.xattrs.remove(name);
    }

    pub(crate) fn xattr(&self, name: &[u8]) -> Option<&[u8]> {
        self.xattrs.get(name).map(Vec::as_slice)
    }
}

/// What a node is. A tar cannot carry sockets, so neither can a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Names in the order in which EROFS wants them: by bytes.
    Directory(BTreeMap<Vec<u8>, NodeId>),
    /// Data that already lies in the blob, from this block on (`None` when empty).
    File {
        start: Option<u32>,
        size: u64,
    },
    Symlink(Vec<u8>),
    /// `number` as [`format::device_number`] packs it.
    Device {
        kind: DeviceKind,
        number: u32,
    },
    Fifo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    Character,
    Block,
}

impl Content {
    /// overlayfs hides a lower name behind a character device 0:0 (Documentation/filesystems/overlayfs.rst).
    pub(crate) const WHITEOUT: Self = Self::Device {
        kind: DeviceKind::Character,
        number: 0,
    };

    pub(crate) fn device(kind: DeviceKind, major: u64, minor: u64) -> Option<Self> {
        Some(Self::Device {
            kind,
            number: format::device_number(major, minor)?,
        })
    }

    pub(crate) fn is_directory(&self) -> bool {
        matches!(self, Self::Directory(_))
    }
}

/// One inode.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) attributes: Attributes,
    pub(crate) content: Content,
    /// A directory that was needed but not described by any entry.
    pub(crate) implied: bool,
    /// Names of it. A node without names is not written.
    links: u32,
}

/// All nodes of a layer; the root is a directory and always there.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    pub(crate) fn new() -> Self {
        let root = Node {
            attributes: Attributes::implied(),
            content: Content::Directory(BTreeMap::new()),
            implied: true,
            links: 1,
        };
        Self { nodes: vec![root] }
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    /// Nodes ever made, also those that lost their names.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn child(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.node(directory).content {
            Content::Directory(names) => names.get(name).copied(),
            _ => None,
        }
    }

    pub(crate) fn names(&self, directory: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        let names = match &self.node(directory).content {
            Content::Directory(names) => Some(names),
            _ => None,
        };
        names
            .into_iter()
            .flatten()
            .map(|(name, id)| (name.as_slice(), *id))
    }

    /// Adds a node under a name, in place of what had that name. `None` when node numbers are used up.
    pub(crate) fn insert(
        &mut self,
        directory: NodeId,
        name: &[u8],
        attributes: Attributes,
        content: Content,
    ) -> Option<NodeId> {
        let id = NodeId(u32::try_from(self.nodes.len()).ok()?);
        self.nodes.push(Node {
            attributes,
            content,
            implied: false,
            links: 0,
        });
        self.link(directory, name, id);
        Some(id)
    }

    /// Gives an existing node that is no directory one more name, in place of what had that name.
    pub(crate) fn link(&mut self, directory: NodeId, name: &[u8], id: NodeId) {
        self.node_mut(id).links += 1;
        let replaced = match &mut self.node_mut(directory).content {
            Content::Directory(names) => names.insert(name.to_vec(), id),
            _ => None,
        };
        if let Some(replaced) = replaced {
            self.unlink(replaced);
        }
    }

    /// Takes a name out of its directory; the node keeps its link for the caller to [`attach`](Self::attach).
    pub(crate) fn detach(&mut self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        match &mut self.node_mut(directory).content {
            Content::Directory(names) => names.remove(name),
            _ => None,
        }
    }

    /// Gives a detached node a name again, in place of what had that name.
    pub(crate) fn attach(&mut self, directory: NodeId, name: &[u8], id: NodeId) {
        self.link(directory, name, id);
        self.node_mut(id).links -= 1;
    }

    pub(crate) fn links(&self, id: NodeId) -> u32 {
        let node = self.node(id);
        if !node.content.is_directory() {
            return node.links;
        }
        // Its own name, its `.`, and the `..` of each directory in it.
        let below = self
            .names(id)
            .filter(|(_, child)| self.node(*child).content.is_directory())
            .count();
        u32::try_from(below).unwrap_or(u32::MAX).saturating_add(2)
    }

    /// Takes one name from a node, and with the last name of a directory all names in it.
    fn unlink(&mut self, id: NodeId) {
        let mut losing = vec![id];
        while let Some(id) = losing.pop() {
            let node = self.node_mut(id);
            node.links = node.links.saturating_sub(1);
            if node.links == 0
                && let Content::Directory(names) = &mut node.content
            {
                losing.extend(std::mem::take(names).into_values());
            }
        }
    }

    /// Every node with a name, parents before children, siblings by name, each once; with its parent directory.
    pub(crate) fn walk(&self) -> Vec<(NodeId, NodeId)> {
        let mut seen = vec![false; self.nodes.len()];
        let mut order = Vec::with_capacity(self.nodes.len());
        let mut pending = vec![(NodeId::ROOT, NodeId::ROOT)];
        while let Some((id, parent)) = pending.pop() {
            if std::mem::replace(&mut seen[id.index()], true) {
                continue;
            }
            order.push((id, parent));
            let from = pending.len();
            pending.extend(self.names(id).map(|(_, child)| (child, id)));
            pending[from..].reverse();
        }
        order
    }

    /// Paths of directories that no entry described, parents before children; the root's is empty.
    pub(crate) fn implied_directories(&self) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let mut pending = vec![(NodeId::ROOT, Vec::new())];
        while let Some((id, path)) = pending.pop() {
            for (name, child) in self.names(id) {
                if self.node(child).content.is_directory() {
                    let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    pending.push((child, [&path, separator, name].concat()));
                }
            }
            if self.node(id).implied {
                found.push(path);
            }
        }
        found.sort();
        found
    }
}
