//! The control tree: directories, files with one value each, and links, by path.
//!
//! A pure data structure. It is shown by a mount and by the daemon's socket, which both add nothing
//! to what is here. Paths are relative to the root, with `/` between their parts; `.` and empty parts
//! mean nothing, `..` is the parent.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::io::Errno;

use crate::attribute::Attribute;

mod config;
mod fixed;
mod host;
mod path;
mod sys;

pub use fixed::{Fixed, Shown};
pub(crate) use host::host_root;
pub use path::{MAX_LINKS, MAX_VALUE_BYTES, Tree};

/// Most bytes of a name that is given to something in the tree.
pub const MAX_NAME_BYTES: usize = 128;

/// Identity of the root.
pub const ROOT_IDENT: u64 = 1;

/// A node and what `stat` tells of it.
#[derive(Clone)]
pub struct Entry {
    /// Identity: another one for whatever is made later, under the same name or not. Never 0, and
    /// [`ROOT_IDENT`] for the root only.
    pub ident: u64,
    /// When it was made or last changed through the tree.
    pub modified: SystemTime,
    /// What it is.
    pub node: Node,
}

/// One node of the tree.
#[derive(Clone)]
pub enum Node {
    /// Has entries.
    Directory(Arc<dyn Directory>),
    /// Has a value.
    File(Arc<dyn Attribute>),
    /// Leads elsewhere: a path relative to the directory that the link is in.
    Link(String),
}

/// What somebody else than the host knows of VMs: shown in `sys/vms`, with what they report over their
/// buses. Called by whoever looks at the tree; must not block for long.
pub trait VmSource: Send + Sync {
    /// The VMs, in any order.
    fn vms(&self) -> Vec<Vm>;
}

/// A VM that a [`VmSource`] knows.
#[derive(Debug, Clone)]
pub struct Vm {
    /// Its process.
    pub pid: u32,
    /// Identity of its directory, if it does not report: of
    /// [`Host::allocate_idents`](crate::bus::Host::allocate_idents), like those of what is in it.
    pub ident: u64,
    /// When it was found.
    pub modified: SystemTime,
    /// What is in its directory, by name. A report of the VM does not hide it.
    pub entries: Vec<(String, Entry)>,
}

/// A directory. What it does not support is refused with `EPERM`.
pub trait Directory: Send + Sync {
    /// The entry called `name`.
    fn lookup(&self, name: &str) -> Option<Entry>;

    /// All entries, by name in ascending order.
    fn list(&self) -> Vec<(String, Entry)>;

    /// True if anything can be made or removed in it: the directory then has mode 0755, else 0555.
    fn is_writable(&self) -> bool {
        false
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// `EEXIST`, `EINVAL` for a bad name, `EPERM`.
    fn mkdir(&self, name: &str) -> Result<(), Errno> {
        let _ = name;
        Err(Errno::PERM)
    }

    /// Removes a directory and what the system put into it.
    ///
    /// # Errors
    /// `ENOENT`, `EBUSY` while it is in use, `EPERM`.
    fn rmdir(&self, name: &str) -> Result<(), Errno> {
        let _ = name;
        Err(Errno::PERM)
    }

    /// Makes a link to the node at `target`, a path relative to the root in which no link, `.` or
    /// `..` is left.
    ///
    /// # Errors
    /// `EEXIST`, `EINVAL` for a node that cannot be linked here, `EPERM`.
    fn symlink(&self, name: &str, target: &str) -> Result<(), Errno> {
        let _ = (name, target);
        Err(Errno::PERM)
    }

    /// Removes a link.
    ///
    /// # Errors
    /// `ENOENT`, `EPERM`.
    fn unlink(&self, name: &str) -> Result<(), Errno> {
        let _ = name;
        Err(Errno::PERM)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("ident", &self.ident)
            .field("modified", &self.modified)
            .field("node", &self.node)
            .finish()
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Directory(_) => f.write_str("Directory"),
            Node::File(_) => f.write_str("File"),
            Node::Link(target) => f.debug_tuple("Link").field(target).finish(),
        }
    }
}
