//! Operations by path, as a shell does them.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::io::Errno;

use super::{Directory, Entry, MAX_NAME_BYTES, Node, ROOT_IDENT};

/// Most links that a path may lead over.
pub const MAX_LINKS: usize = 8;
/// Most bytes of a value that is written, its newline included.
pub const MAX_VALUE_BYTES: usize = 4096;
/// Most bytes of a path.
const MAX_PATH_BYTES: usize = 4096;
/// Most bytes of a part of a path that is looked up (Linux `NAME_MAX`).
const MAX_PART_BYTES: usize = 255;

/// A tree of [`Directory`]s, by path. Cloning is cheap.
///
/// A path may begin with `/` or not; it is relative to the root in any case. Links before the last
/// part are always followed. All operations fail with `ENOENT` and `ENOTDIR` for a path that leads
/// nowhere, `ELOOP` for more than [`MAX_LINKS`] links, `ENAMETOOLONG`, and with what the node says.
#[derive(Clone)]
pub struct Tree {
    root: Arc<dyn Directory>,
    made: SystemTime,
}

/// A way from the root to a node, without a link.
struct Place {
    /// Names and entries of all nodes on the way, the last one included; empty for the root.
    steps: Vec<(String, Entry)>,
}

impl Tree {
    /// The tree below `root`.
    pub fn new(root: Arc<dyn Directory>) -> Self {
        Tree {
            root,
            made: SystemTime::now(),
        }
    }

    /// The node at `path`; a link itself, not where it leads.
    ///
    /// # Errors
    /// As of the type.
    pub fn stat(&self, path: &str) -> Result<Entry, Errno> {
        Ok(self.entry(&self.resolve(path, false)?))
    }

    /// All entries of the directory at `path`, by name in ascending order.
    ///
    /// # Errors
    /// As of the type.
    pub fn list(&self, path: &str) -> Result<Vec<(String, Entry)>, Errno> {
        Ok(self.directory(&self.resolve(path, true)?)?.list())
    }

    /// The text of the file at `path`: its value and a newline.
    ///
    /// # Errors
    /// `EISDIR`.
    pub fn read(&self, path: &str) -> Result<String, Errno> {
        match self.entry(&self.resolve(path, true)?).node {
            Node::File(attribute) => Ok(attribute.read()? + "\n"),
            _ => Err(Errno::ISDIR),
        }
    }

    /// Gives the file at `path` the value in `text`, of which one newline at the end is stripped.
    ///
    /// # Errors
    /// `EISDIR`. `EACCES`: it is read only. `EINVAL`: more than [`MAX_VALUE_BYTES`], no UTF-8, or
    /// control characters.
    pub fn write(&self, path: &str, text: &[u8]) -> Result<(), Errno> {
        let Node::File(attribute) = self.entry(&self.resolve(path, true)?).node else {
            return Err(Errno::ISDIR);
        };
        if !attribute.is_writable() {
            return Err(Errno::ACCESS);
        }
        attribute.write(value_of(text)?)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// `EEXIST`. `EINVAL`: bad name. `EPERM`: not here.
    pub fn mkdir(&self, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.vacancy(path)?;
        parent.mkdir(name)
    }

    /// Removes a directory.
    ///
    /// # Errors
    /// `EBUSY`: it is in use. `ENOTDIR`. `EINVAL`: the path ends in `.` or `..`. `EPERM`: not here.
    pub fn rmdir(&self, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(path)?;
        let name = name.ok_or(Errno::BUSY)?;
        if is_dots(name) {
            return Err(Errno::INVAL);
        }
        match lookup(&parent, name)?.node {
            Node::Directory(_) => parent.rmdir(name),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Makes a link at `path` to the node at `target`: a path from the root if it begins with `/`,
    /// else from the directory that the link is in.
    ///
    /// # Errors
    /// `ENOENT`: also if `target` is nowhere. `EEXIST`. `EINVAL`: bad name, or nothing that can be
    /// linked here. `EPERM`: not here.
    pub fn symlink(&self, target: &str, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.vacancy(path)?;
        let target = if target.starts_with('/') {
            self.resolve(target, true)?
        } else {
            if target.is_empty() {
                return Err(Errno::NOENT);
            }
            let (directory, _) = split(path);
            let start = self.resolve(directory, true)?;
            self.resolve_from(start, target, true)?
        };
        parent.symlink(name, &target.path())
    }

    /// Removes a link.
    ///
    /// # Errors
    /// `EISDIR`. `EPERM`: not a link, or not here.
    pub fn unlink(&self, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(path)?;
        let name = name.ok_or(Errno::ISDIR)?;
        if is_dots(name) {
            return Err(Errno::ISDIR);
        }
        match lookup(&parent, name)?.node {
            Node::Directory(_) => Err(Errno::ISDIR),
            Node::File(_) => Err(Errno::PERM),
            Node::Link(_) => parent.unlink(name),
        }
    }

    /// Where the link at `path` leads, relative to the directory it is in.
    ///
    /// # Errors
    /// `EINVAL`: not a link.
    pub fn readlink(&self, path: &str) -> Result<String, Errno> {
        match self.stat(path)?.node {
            Node::Link(target) => Ok(target),
            _ => Err(Errno::INVAL),
        }
    }

    /// The directory of `path`, and its last part if it has one.
    fn parent<'a>(&self, path: &'a str) -> Result<(Arc<dyn Directory>, Option<&'a str>), Errno> {
        check_path(path)?;
        let (directory, name) = split(path);
        let parent = self.directory(&self.resolve(directory, true)?)?;
        Ok((parent, name))
    }

    /// A directory, and a name that can be given to something new in it.
    fn vacancy<'a>(&self, path: &'a str) -> Result<(Arc<dyn Directory>, &'a str), Errno> {
        let (parent, name) = self.parent(path)?;
        let name = name.ok_or(Errno::EXIST)?;
        if is_dots(name) || parent.lookup(name).is_some() {
            return Err(Errno::EXIST);
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(Errno::NAMETOOLONG);
        }
        Ok((parent, name))
    }

    fn resolve(&self, path: &str, follow_last: bool) -> Result<Place, Errno> {
        self.resolve_from(Place { steps: Vec::new() }, path, follow_last)
    }

    fn resolve_from(
        &self,
        mut place: Place,
        path: &str,
        follow_last: bool,
    ) -> Result<Place, Errno> {
        check_path(path)?;
        // Parts that are still to go, the next one last.
        let mut parts: Vec<String> = parts(path).rev().map(str::to_owned).collect();
        let mut num_links = 0;
        while let Some(part) = parts.pop() {
            let directory = self.directory(&place)?;
            if part == ".." {
                place.steps.pop();
                continue;
            }
            let entry = lookup(&directory, &part)?;
            let follow = follow_last || !parts.is_empty() || path.ends_with('/');
            match &entry.node {
                Node::Link(target) if follow => {
                    num_links += 1;
                    if num_links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    parts.extend(self::parts(target).rev().map(str::to_owned));
                }
                _ => place.steps.push((part, entry)),
            }
        }
        Ok(place)
    }

    fn entry(&self, place: &Place) -> Entry {
        match place.steps.last() {
            Some((_, entry)) => entry.clone(),
            None => Entry {
                ident: ROOT_IDENT,
                modified: self.made,
                node: Node::Directory(Arc::clone(&self.root)),
            },
        }
    }

    fn directory(&self, place: &Place) -> Result<Arc<dyn Directory>, Errno> {
        match self.entry(place).node {
            Node::Directory(directory) => Ok(directory),
            _ => Err(Errno::NOTDIR),
        }
    }
}

impl Place {
    fn path(&self) -> String {
        let names: Vec<&str> = self.steps.iter().map(|(name, _)| name.as_str()).collect();
        names.join("/")
    }
}

/// The parts of a path that mean something.
fn parts(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
}

fn is_dots(name: &str) -> bool {
    name == "." || name == ".."
}

/// A path as directory and last part, which is none for the root.
fn split(path: &str) -> (&str, Option<&str>) {
    let path = path.trim_end_matches('/');
    match path.rsplit_once('/') {
        Some((directory, name)) => (directory, Some(name)),
        None if path.is_empty() => ("", None),
        None => ("", Some(path)),
    }
}

fn lookup(directory: &Arc<dyn Directory>, name: &str) -> Result<Entry, Errno> {
    if name.len() > MAX_PART_BYTES {
        return Err(Errno::NAMETOOLONG);
    }
    directory.lookup(name).ok_or(Errno::NOENT)
}

fn check_path(path: &str) -> Result<(), Errno> {
    if path.len() > MAX_PATH_BYTES {
        return Err(Errno::NAMETOOLONG);
    }
    Ok(())
}

/// What is to be written of `text`.
fn value_of(text: &[u8]) -> Result<&str, Errno> {
    if text.len() > MAX_VALUE_BYTES {
        return Err(Errno::INVAL);
    }
    let text = std::str::from_utf8(text).map_err(|_| Errno::INVAL)?;
    let value = text.strip_suffix('\n').unwrap_or(text);
    if value.chars().any(char::is_control) {
        return Err(Errno::INVAL);
    }
    Ok(value)
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").finish_non_exhaustive()
    }
}
