//! What is open: a file's value and a directory's entries as they were when reading began, so that
//! nobody reads half of the old and half of the new.

use std::collections::HashMap;
use std::sync::Arc;

use fuser::{FileHandle, FileType};
use parking_lot::Mutex;

/// An entry of a directory, as readdir shows it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Inode number.
    pub ino: u64,
    /// What it is.
    pub kind: FileType,
    /// Its name.
    pub name: String,
}

/// What was found at offset 0.
#[derive(Debug, Clone)]
pub enum Snapshot {
    /// Nothing was read yet.
    None,
    /// The bytes of a file.
    File(Arc<[u8]>),
    /// The entries of a directory.
    Directory(Arc<[Listed]>),
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    open: HashMap<u64, Snapshot>,
}

/// All that is open.
#[derive(Debug, Default)]
pub struct Handles {
    table: Mutex<Table>,
}

impl Handles {
    /// A new handle with nothing read.
    pub fn open(&self) -> FileHandle {
        let mut table = self.table.lock();
        table.last += 1; // 2⁶⁴ opens do not happen
        let number = table.last;
        table.open.insert(number, Snapshot::None);
        FileHandle(number)
    }

    /// What `handle` read last.
    pub fn snapshot(&self, handle: FileHandle) -> Snapshot {
        let table = self.table.lock();
        table.open.get(&handle.0).cloned().unwrap_or(Snapshot::None)
    }

    /// Replaces what `handle` read last.
    pub fn keep(&self, handle: FileHandle, snapshot: Snapshot) {
        if let Some(kept) = self.table.lock().open.get_mut(&handle.0) {
            *kept = snapshot;
        }
    }

    /// Forgets `handle`.
    pub fn close(&self, handle: FileHandle) {
        self.table.lock().open.remove(&handle.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_apart_and_forgotten_when_closed() {
        let handles = Handles::default();
        let (first, second) = (handles.open(), handles.open());
        assert_ne!(first, second);

        handles.keep(first, Snapshot::File((*b"1\n").into()));

        assert!(matches!(handles.snapshot(first), Snapshot::File(bytes) if *bytes == *b"1\n"));
        assert!(matches!(handles.snapshot(second), Snapshot::None));
        handles.close(first);
        handles.keep(first, Snapshot::File((*b"2\n").into()));
        assert!(matches!(handles.snapshot(first), Snapshot::None));
        handles.close(second);
        assert!(handles.table.lock().open.is_empty());
    }
}
