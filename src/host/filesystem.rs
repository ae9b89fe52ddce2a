//! The control tree as a file system: each request of the kernel becomes one operation on
//! [`Tree`], and nothing is decided here that the tree decides.
//!
//! The kernel caches neither names, nor attributes, nor contents, because the tree changes by itself
//! (members, counters). Permissions are checked by the kernel (`default_permissions`).
//!
//! | request | here |
//! |---|---|
//! | read | at offset 0 a snapshot is taken, so a value is never torn; a reader that seeks back sees the value of now |
//! | write | the whole value in one write; the errno is that of `write(2)`, which a shell prints |
//! | truncate to 0 | nothing: shells do that before they write |
//! | create, mknod, link, rename, chmod, chown, utime | `EPERM` |
//!
//! Called by the threads of the FUSE session.

mod operations;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuser::{Errno, FileAttr, FileHandle, FileType, Generation, INodeNo};
use vbus::tree::{Entry, Node, ROOT_IDENT, Tree};

use super::handles::{Handles, Listed, Snapshot};
use super::inodes::Inodes;

/// How long the kernel may believe what it was told: not at all.
const NO_TIME: Duration = Duration::ZERO;
/// A number belongs to one node for ever, so it needs no second part.
const GENERATION: Generation = Generation(0);
/// `st_blksize`, and the unit of `statfs`.
const BLOCK_BYTES: u32 = 4096;

/// The control tree for a FUSE session.
pub struct ControlFs {
    tree: Tree,
    /// Where it is mounted, for links whose targets are absolute.
    mount_point: PathBuf,
    /// Owner of everything.
    uid: u32,
    gid: u32,
    inodes: Inodes,
    handles: Handles,
}

impl std::fmt::Debug for ControlFs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlFs")
            .field("mount_point", &self.mount_point)
            .finish_non_exhaustive()
    }
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

/// Path of `name` in the directory at `dir`.
fn child_path(dir: &str, name: &str) -> String {
    match dir {
        "" => name.into(),
        _ => format!("{dir}/{name}"),
    }
}

fn kind(node: &Node) -> FileType {
    match node {
        Node::Directory(_) => FileType::Directory,
        Node::File(_) => FileType::RegularFile,
        Node::Link(_) => FileType::Symlink,
    }
}

impl ControlFs {
    /// `tree`, owned by this process's user, for a mount at `mount_point` (absolute, without links).
    pub fn new(tree: Tree, mount_point: PathBuf) -> Self {
        ControlFs {
            tree,
            mount_point,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            inodes: Inodes::default(),
            handles: Handles::default(),
        }
    }

    fn path(&self, ino: INodeNo) -> Result<Arc<str>, Errno> {
        self.inodes.path(ino.0).ok_or(Errno::ESTALE)
    }

    /// The node behind `ino`; not another one that is at the same place by now.
    fn entry(&self, ino: INodeNo) -> Result<(Arc<str>, Entry), Errno> {
        let path = self.path(ino)?;
        let entry = self.tree.stat(&path).map_err(errno)?;
        match entry.ident == ino.0 {
            true => Ok((path, entry)),
            false => Err(Errno::ESTALE),
        }
    }

    /// Path of `name` in the directory `parent`, which is still there.
    fn child(&self, parent: INodeNo, name: &OsStr) -> Result<String, Errno> {
        let (dir, _) = self.entry(parent)?;
        let name = name.to_str().ok_or(Errno::EINVAL)?;
        Ok(child_path(&dir, name))
    }

    fn attr(&self, ino: u64, entry: &Entry) -> FileAttr {
        let (perm, size) = match &entry.node {
            Node::Directory(dir) if dir.is_writable() => (0o755, 0),
            Node::Directory(_) => (0o555, 0),
            Node::File(file) => {
                let size = file.read().map_or(0, |value| value.len() + 1);
                (if file.is_writable() { 0o644 } else { 0o444 }, size)
            }
            Node::Link(target) => (0o777, target.len()),
        };
        FileAttr {
            ino: INodeNo(ino),
            size: size as u64,
            blocks: 0,
            atime: entry.modified,
            mtime: entry.modified,
            ctime: entry.modified,
            crtime: entry.modified,
            kind: kind(&entry.node),
            perm,
            // 1 for directories too: "not counted", as on btrfs; counting would read all of them.
            nlink: 1,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }

    /// Looks `path` up and introduces it to the kernel.
    fn introduce(&self, path: &str) -> Result<FileAttr, Errno> {
        let entry = self.tree.stat(path).map_err(errno)?;
        let attr = self.attr(entry.ident, &entry);
        self.inodes.remember(entry.ident, path);
        Ok(attr)
    }

    fn read_file(&self, ino: INodeNo, handle: FileHandle, offset: u64) -> Result<Arc<[u8]>, Errno> {
        if let (1.., Snapshot::File(bytes)) = (offset, self.handles.snapshot(handle)) {
            return Ok(bytes);
        }
        let (path, _) = self.entry(ino)?;
        let text = self.tree.read(&path).map_err(errno)?;
        let bytes: Arc<[u8]> = text.into_bytes().into();
        self.handles
            .keep(handle, Snapshot::File(Arc::clone(&bytes)));
        Ok(bytes)
    }

    fn write_file(&self, ino: INodeNo, data: &[u8]) -> Result<(), Errno> {
        let (path, _) = self.entry(ino)?;
        self.tree.write(&path, data).map_err(errno)
    }

    /// The entries of a directory with `.` and `..`.
    fn list(&self, ino: INodeNo, handle: FileHandle, offset: u64) -> Result<Arc<[Listed]>, Errno> {
        if let (1.., Snapshot::Directory(entries)) = (offset, self.handles.snapshot(handle)) {
            return Ok(entries);
        }
        let (path, _) = self.entry(ino)?;
        let parent = match path.rsplit_once('/') {
            Some((parent, _)) => self.tree.stat(parent).map_err(errno)?.ident,
            None => ROOT_IDENT,
        };
        let dots = [(ino.0, "."), (parent, "..")].map(|(ino, name)| Listed {
            ino,
            kind: FileType::Directory,
            name: name.into(),
        });
        let entries = self.tree.list(&path).map_err(errno)?;
        let entries = entries.into_iter().map(|(name, entry)| Listed {
            ino: entry.ident,
            kind: kind(&entry.node),
            name,
        });
        let entries: Arc<[Listed]> = dots.into_iter().chain(entries).collect();
        self.handles
            .keep(handle, Snapshot::Directory(Arc::clone(&entries)));
        Ok(entries)
    }

    /// A link's target as the tree takes it: an absolute one has to be below the mount point, and
    /// becomes absolute in the tree.
    fn link_target(&self, target: &Path) -> Result<String, Errno> {
        let inside = match target.is_absolute() {
            true => Path::new("/").join(
                target
                    .strip_prefix(&self.mount_point)
                    .map_err(|_| Errno::EINVAL)?,
            ),
            false => target.into(),
        };
        inside
            .into_os_string()
            .into_string()
            .map_err(|_| Errno::EINVAL)
    }
}
