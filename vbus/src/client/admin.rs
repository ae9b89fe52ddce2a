//! The control tree of a daemon.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::link::Link;
use crate::abi::wire::{MAX_TEXT_BYTES, Stat, kind, stat_kind};
use crate::wire::texts;

/// What a node of the tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// Has entries.
    Directory,
    /// Has a value.
    File,
    /// Leads elsewhere.
    Link,
}

/// What is known of a node of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeStat {
    /// Identity: another one for whatever is made later, under the same name or not.
    pub ident: u64,
    /// When it was made or last changed through the tree.
    pub modified: SystemTime,
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits.
    pub mode: u16,
}

/// The control tree, as [`crate::tree::Tree`] has it. Paths are of at most 4096 bytes.
///
/// Any operation also fails with `ENAMETOOLONG`, and with `ECONNRESET` if the daemon is gone.
#[derive(Debug)]
pub struct Admin {
    link: Arc<Link>,
}

impl Admin {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Admin { link }
    }

    /// All entries of a directory, by name in ascending order.
    ///
    /// # Errors
    /// As of [`crate::tree::Tree::list`].
    pub fn list(&self, path: &str) -> Result<Vec<(String, NodeStat)>, Errno> {
        let mut entries = Vec::new();
        loop {
            let after = entries.last().map(|(name, _): &(String, _)| name.clone());
            let after = after.unwrap_or_default();
            let (has_more, bytes) = self.request(kind::TREE_LIST, path, &after)?;
            let num_before = entries.len();
            read_entries(&bytes, &mut entries)?;
            if has_more == 0 {
                return Ok(entries);
            }
            // Else the same page would come for ever.
            if entries.len() == num_before {
                return Err(Errno::PROTO);
            }
        }
    }

    /// A node; a link itself, not where it leads.
    ///
    /// # Errors
    /// As of [`crate::tree::Tree::stat`].
    pub fn stat(&self, path: &str) -> Result<NodeStat, Errno> {
        let (_, bytes) = self.request(kind::TREE_STAT, path, "")?;
        let stat = Stat::read_from_bytes(&bytes).map_err(|_| Errno::PROTO)?;
        node_stat(&stat)
    }

    /// The text of a file, a newline at its end.
    ///
    /// # Errors
    /// As of [`crate::tree::Tree::read`]. `EFBIG`: more than 64 KiB.
    pub fn read(&self, path: &str) -> Result<String, Errno> {
        self.text(kind::TREE_READ, path)
    }

    /// Gives a file a value.
    ///
    /// # Errors
    /// As of [`crate::tree::Tree::write`].
    pub fn write(&self, path: &str, text: &str) -> Result<(), Errno> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(Errno::INVAL);
        }
        self.request(kind::TREE_WRITE, path, text).map(drop)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As of [`crate::tree::Tree::mkdir`].
    pub fn mkdir(&self, path: &str) -> Result<(), Errno> {
        self.request(kind::TREE_MKDIR, path, "").map(drop)
    }

    /// Removes a directory.
    ///
    /// # Errors
    /// As of [`crate::tree::Tree::rmdir`].
    pub fn rmdir(&self, path: &str) -> Result<(), Errno> {
        self.request(kind::TREE_RMDIR, path, "").map(drop)
    }

    /// Makes a link at `path` to the node at `target`.
    ///
    /// # Errors
    /// As of [`crate::tree::Tree::symlink`].
    pub fn symlink(&self, target: &str, path: &str) -> Result<(), Errno> {
        self.request(kind::TREE_SYMLINK, path, target).map(drop)
    }

    /// Removes a link.
    ///
    /// # Errors
    /// As of [`crate::tree::Tree::unlink`].
    pub fn unlink(&self, path: &str) -> Result<(), Errno> {
        self.request(kind::TREE_UNLINK, path, "").map(drop)
    }

    /// Where a link leads.
    ///
    /// # Errors
    /// As of [`crate::tree::Tree::readlink`].
    pub fn readlink(&self, path: &str) -> Result<String, Errno> {
        self.text(kind::TREE_READLINK, path)
    }

    fn text(&self, op: u16, path: &str) -> Result<String, Errno> {
        let (_, bytes) = self.request(op, path, "")?;
        String::from_utf8(bytes).map_err(|_| Errno::PROTO)
    }

    fn request(&self, op: u16, path: &str, text: &str) -> Result<(u32, Vec<u8>), Errno> {
        let head = texts(path, text).ok_or(Errno::NAMETOOLONG)?;
        let body = [head.as_bytes(), path.as_bytes(), text.as_bytes()];
        let reply = self.link.exchange(op, &body, &[])?;
        Ok((reply.result?, reply.body))
    }
}

fn read_entries(mut bytes: &[u8], entries: &mut Vec<(String, NodeStat)>) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let (stat, rest) = Stat::read_from_prefix(bytes).map_err(|_| Errno::PROTO)?;
        let name_len = stat.name_len.get() as usize;
        let (name, rest) = rest.split_at_checked(name_len).ok_or(Errno::PROTO)?;
        let name = std::str::from_utf8(name).map_err(|_| Errno::PROTO)?;
        entries.push((name.to_owned(), node_stat(&stat)?));
        bytes = rest;
    }
    Ok(())
}

fn node_stat(stat: &Stat) -> Result<NodeStat, Errno> {
    let secs = u64::try_from(stat.modified_secs.get()).unwrap_or(0);
    let since = Duration::new(secs, stat.modified_nanos.get() % 1_000_000_000);
    Ok(NodeStat {
        ident: stat.ident.get(),
        modified: UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH),
        kind: match stat.kind.get() {
            stat_kind::DIRECTORY => NodeKind::Directory,
            stat_kind::FILE => NodeKind::File,
            stat_kind::LINK => NodeKind::Link,
            _ => return Err(Errno::PROTO),
        },
        mode: stat.mode.get(),
    })
}
