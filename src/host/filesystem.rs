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

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use vbus::tree::{Entry, MAX_NAME_BYTES, Node, ROOT_IDENT, Tree};

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

fn answer_entry(reply: ReplyEntry, outcome: Result<FileAttr, Errno>) {
    match outcome {
        Ok(attr) => reply.entry(&NO_TIME, &attr, GENERATION),
        Err(error) => reply.error(error),
    }
}

fn answer_empty(reply: ReplyEmpty, outcome: Result<(), Errno>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for ControlFs {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let outcome = match name.to_str() {
            Some(_) => self.child(parent, name),
            None => Err(Errno::ENOENT),
        };
        answer_entry(reply, outcome.and_then(|path| self.introduce(&path)));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.inodes.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.entry(ino) {
            Ok((_, entry)) => reply.attr(&NO_TIME, &self.attr(ino.0, &entry)),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let is_fixed =
            mode.is_some() || uid.is_some() || gid.is_some() || atime.is_some() || mtime.is_some();
        match (self.entry(ino), size) {
            (Err(error), _) => reply.error(error),
            (Ok(_), _) if is_fixed => reply.error(Errno::EPERM),
            (Ok(_), Some(1..)) => reply.error(Errno::EINVAL),
            (Ok((_, entry)), _) => reply.attr(&NO_TIME, &self.attr(ino.0, &entry)),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.entry(ino) {
            Ok((
                _,
                Entry {
                    node: Node::Link(target),
                    ..
                },
            )) => reply.data(target.as_bytes()),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(error) => reply.error(error),
        }
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let outcome = self.child(parent, name).and_then(|path| {
            self.tree.mkdir(&path).map_err(errno)?;
            self.introduce(&path)
        });
        answer_entry(reply, outcome);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let path = self.child(parent, name);
        let outcome = path.and_then(|path| self.tree.unlink(&path).map_err(errno));
        answer_empty(reply, outcome);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let path = self.child(parent, name);
        let outcome = path.and_then(|path| self.tree.rmdir(&path).map_err(errno));
        answer_empty(reply, outcome);
    }

    fn symlink(
        &self,
        _req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let outcome = self.child(parent, link_name).and_then(|path| {
            let target = self.link_target(target)?;
            self.tree.symlink(&target, &path).map_err(errno)?;
            self.introduce(&path)
        });
        answer_entry(reply, outcome);
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }

    fn link(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _newparent: INodeNo,
        _newname: &OsStr,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EPERM);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let is_write = flags.acc_mode() != OpenAccMode::O_RDONLY;
        match self.entry(ino).map(|(_, entry)| entry.node) {
            // Root may write all files as far as the kernel is concerned.
            Ok(Node::File(file)) if is_write && !file.is_writable() => reply.error(Errno::EACCES),
            Ok(_) => reply.opened(self.handles.open(), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.read_file(ino, fh, offset) {
            Ok(bytes) => {
                let start = usize::try_from(offset).map_or(bytes.len(), |at| at.min(bytes.len()));
                let end = start.saturating_add(size as usize).min(bytes.len());
                reply.data(bytes.get(start..end).unwrap_or_default());
            }
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // A writer that appends does not choose its offset.
        let is_whole = offset == 0 || flags.0 & libc::O_APPEND != 0;
        let outcome = match is_whole {
            true => self.write_file(ino, data),
            false => Err(Errno::EINVAL),
        };
        match outcome {
            // It is no longer than `MAX_VALUE_BYTES`.
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(0)),
            Err(error) => reply.error(error),
        }
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.handles.close(fh);
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(self.handles.open(), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        match self.list(ino, fh, offset) {
            Ok(entries) => {
                // An entry's offset is where the next one begins.
                for (next, entry) in (1..)
                    .zip(entries.iter())
                    .skip_while(|(at, _)| *at <= offset)
                {
                    if reply.add(INodeNo(entry.ino), next, entry.kind, &entry.name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error),
        }
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.handles.close(fh);
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(
            0,
            0,
            0,
            0,
            0,
            BLOCK_BYTES,
            u32::try_from(MAX_NAME_BYTES).unwrap_or(u32::MAX),
            BLOCK_BYTES,
        );
    }
}
