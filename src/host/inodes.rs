//! Inode numbers that the kernel knows, and the nodes of the tree behind them.
//!
//! A number is the node's identity, so it never changes and is never used again. The kernel counts
//! how often it was told a number and tells how much of that it has forgotten; the table is as large
//! as the kernel's own cache of our tree, and no larger.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;

use parking_lot::Mutex;
use vbus::tree::ROOT_IDENT;

/// One number that the kernel knows.
#[derive(Debug)]
struct Inode {
    /// Where the node is or was, relative to the root.
    path: Arc<str>,
    /// How often the kernel was told.
    num_lookups: u64,
}

/// All numbers that the kernel knows.
#[derive(Debug, Default)]
pub struct Inodes {
    table: Mutex<HashMap<u64, Inode>>,
}

impl Inodes {
    /// The path of number `ino`; the root's is empty. `None` if the kernel was never told that number.
    pub fn path(&self, ino: u64) -> Option<Arc<str>> {
        match ino {
            ROOT_IDENT => Some("".into()),
            _ => self
                .table
                .lock()
                .get(&ino)
                .map(|inode| Arc::clone(&inode.path)),
        }
    }

    /// Notes that the kernel is told `ino` once more, for the node at `path`.
    pub fn remember(&self, ino: u64, path: &str) {
        match self.table.lock().entry(ino) {
            Slot::Occupied(mut slot) => slot.get_mut().num_lookups += 1,
            Slot::Vacant(slot) => {
                slot.insert(Inode {
                    path: path.into(),
                    num_lookups: 1,
                });
            }
        }
    }

    /// Notes that the kernel forgot `count` of what it was told about `ino`.
    pub fn forget(&self, ino: u64, count: u64) {
        if let Slot::Occupied(mut slot) = self.table.lock().entry(ino) {
            let left = slot.get().num_lookups.saturating_sub(count);
            slot.get_mut().num_lookups = left;
            if left == 0 {
                slot.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_needs_no_introduction() {
        assert_eq!(Inodes::default().path(ROOT_IDENT).as_deref(), Some(""));
    }

    #[test]
    fn number_is_known_until_all_of_it_is_forgotten() {
        let inodes = Inodes::default();
        inodes.remember(7, "config/devices");
        inodes.remember(7, "config/devices");

        inodes.forget(7, 1);
        assert_eq!(inodes.path(7).as_deref(), Some("config/devices"));

        inodes.forget(7, 1);
        assert_eq!(inodes.path(7), None);
        assert!(inodes.table.lock().is_empty());
    }

    #[test]
    fn forgetting_the_unknown_or_too_much_is_harmless() {
        let inodes = Inodes::default();
        inodes.forget(9, 1);
        inodes.remember(9, "sys");

        inodes.forget(9, u64::MAX);

        assert_eq!(inodes.path(9), None);
    }
}
