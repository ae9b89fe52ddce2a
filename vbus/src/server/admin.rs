//! The control tree for administrators.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::outbox::Outbox;
use crate::abi::wire::{Answer, Header, MAX_MESSAGE_BYTES, Stat, kind, stat_kind};
use crate::tree::{Entry, Node, Tree};

/// Most bytes of a result.
const MAX_RESULT_BYTES: usize = MAX_MESSAGE_BYTES - size_of::<Header>() - size_of::<Answer>();

/// Does `op` of `id` (kind and number of the request) and answers it.
pub fn serve(tree: &Tree, outbox: &Outbox, (id, op): ((u16, u64), u16), path: &str, text: &str) {
    let done = |result: Result<(), Errno>| result.map(|()| (0, Vec::new()));
    let result = match op {
        kind::TREE_LIST => list(tree, path, text),
        kind::TREE_STAT => tree
            .stat(path)
            .map(|entry| (0, stat(&entry, 0).as_bytes().to_vec())),
        kind::TREE_READ => tree.read(path).and_then(bounded),
        kind::TREE_READLINK => tree.readlink(path).and_then(bounded),
        kind::TREE_WRITE => done(tree.write(path, text.as_bytes())),
        kind::TREE_MKDIR => done(tree.mkdir(path)),
        kind::TREE_RMDIR => done(tree.rmdir(path)),
        kind::TREE_SYMLINK => done(tree.symlink(text, path)),
        kind::TREE_UNLINK => done(tree.unlink(path)),
        _ => Err(Errno::NOSYS),
    };
    match result {
        Ok((value, bytes)) => outbox.answer(id, Ok(value), [&bytes, &[]]),
        Err(errno) => outbox.answer(id, Err(errno), [&[], &[]]),
    }
}

fn bounded(text: String) -> Result<(u32, Vec<u8>), Errno> {
    if text.len() > MAX_RESULT_BYTES {
        return Err(Errno::FBIG);
    }
    Ok((0, text.into_bytes()))
}

/// As many entries behind the one called `after` as fit, and 1 if there are more.
fn list(tree: &Tree, path: &str, after: &str) -> Result<(u32, Vec<u8>), Errno> {
    let mut bytes = Vec::new();
    for (name, entry) in tree.list(path)? {
        if name.as_str() <= after {
            continue;
        }
        if bytes.len() + size_of::<Stat>() + name.len() > MAX_RESULT_BYTES {
            return Ok((1, bytes));
        }
        let name_len = u32::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?;
        bytes.extend_from_slice(stat(&entry, name_len).as_bytes());
        bytes.extend_from_slice(name.as_bytes());
    }
    Ok((0, bytes))
}

fn stat(entry: &Entry, name_len: u32) -> Stat {
    let (kind, mode) = match &entry.node {
        Node::Directory(directory) if directory.is_writable() => (stat_kind::DIRECTORY, 0o755),
        Node::Directory(_) => (stat_kind::DIRECTORY, 0o555),
        Node::File(attribute) if attribute.is_writable() => (stat_kind::FILE, 0o644),
        Node::File(_) => (stat_kind::FILE, 0o444),
        Node::Link(_) => (stat_kind::LINK, 0o777),
    };
    let modified = since_epoch(entry.modified);
    Stat {
        ident: entry.ident.into(),
        modified_secs: modified.0.into(),
        modified_nanos: modified.1.into(),
        kind: kind.into(),
        mode: mode.into(),
        name_len: name_len.into(),
        ..Stat::default()
    }
}

/// Whole seconds and nanoseconds; the start of 1970 for what was before.
fn since_epoch(time: SystemTime) -> (i64, u32) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let secs = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    (secs, since.subsec_nanos())
}
