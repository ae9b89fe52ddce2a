//! Who wants to know what goes between a guest's memory and its disk.

use std::fmt;
use std::sync::Arc;

use vm_memory::GuestAddress;

/// Told of the transfers of one disk, by the threads that make them.
///
/// What is told after a transfer is a hint: the guest may have changed its memory since.
pub trait TransferWatch: Send + Sync + fmt::Debug {
    /// Until [`TransferWatch::unpin`], `len` bytes of guest RAM at `gpa` stay in memory: a transfer
    /// may hold a lock of the disk's file system, which whoever brings them back may need.
    fn pin(&self, gpa: GuestAddress, len: u32);
    /// The transfer is over.
    fn unpin(&self, gpa: GuestAddress, len: u32);
    /// `len` bytes of the disk at `offset` are about to change: on return nobody needs the old ones,
    /// or begins to, until [`TransferWatch::end_change`].
    fn begin_change(&self, offset: u64, len: u64);
    /// They have changed, or not.
    fn end_change(&self, offset: u64, len: u64);
    /// `len` bytes of guest RAM at `gpa` and of the disk at `offset` were the same a moment ago.
    fn transferred(&self, gpa: GuestAddress, len: u32, offset: u64);
}

/// Bytes of a disk that are about to change, until it is dropped.
#[derive(Debug)]
pub(super) struct Change {
    watch: Arc<dyn TransferWatch>,
    offset: u64,
    len: u64,
}

impl Change {
    pub(super) fn begin(watch: &Arc<dyn TransferWatch>, offset: u64, len: u64) -> Self {
        watch.begin_change(offset, len);
        Change {
            watch: Arc::clone(watch),
            offset,
            len,
        }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        self.watch.end_change(self.offset, self.len);
    }
}

/// A transfer under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Watched {
    watch: Arc<dyn TransferWatch>,
    /// Of guest RAM.
    pieces: Vec<(GuestAddress, u32)>,
    /// On the disk.
    offset: u64,
    /// A write.
    _change: Option<Change>,
}

impl Watched {
    /// Of `pieces`, from or to `offset` of the disk.
    pub(super) fn begin(
        watch: &Arc<dyn TransferWatch>,
        pieces: impl Iterator<Item = (GuestAddress, u32)>,
        offset: u64,
        is_write: bool,
    ) -> Self {
        let pieces: Vec<_> = pieces.collect();
        for (gpa, len) in &pieces {
            watch.pin(*gpa, *len);
        }
        let len = pieces.iter().map(|(_, len)| u64::from(*len)).sum();
        Watched {
            watch: Arc::clone(watch),
            pieces,
            offset,
            _change: is_write.then(|| Change::begin(watch, offset, len)),
        }
    }

    /// All of it has been transferred.
    pub(super) fn succeed(&self) {
        let mut offset = self.offset;
        for (gpa, len) in &self.pieces {
            self.watch.transferred(*gpa, *len, offset);
            offset += u64::from(*len);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        for (gpa, len) in &self.pieces {
            self.watch.unpin(*gpa, *len);
        }
    }
}
