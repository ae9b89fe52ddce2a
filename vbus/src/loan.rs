//! Memory in the hands of another process.
//!
//! Whoever shares memory with a daemon has to know when that is over, also if the daemon was killed,
//! hangs, or was stopped and may go on at any time. The kernel knows. The daemon is given the memfd as
//! a file that was opened for it alone, with a shared lock (`flock(2)`). Its descriptors and its
//! mappings hold that file open, and the lock ends with the last of them: then nothing can write to
//! the memory through it any more. A lock is no lease of time, and there is nothing that the daemon
//! has to do for it or could forget.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::GuestRam;

/// The file to give away. Closed here as soon as it was sent.
///
/// # Errors
/// The host is out of descriptors, or has no `/proc`.
pub(crate) fn lend(memfd: &File) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    let lent = open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    flock(&lent, FlockOperation::NonBlockingLockShared)?;
    Ok(lent)
}

/// True while any process holds memory of `ram` that was lent to it: in a mapping, as a descriptor, or
/// in a message that it has not read. Only for the one that lends it, and not while it does.
pub fn is_lent(ram: &GuestRam) -> bool {
    ram.iter().any(|region| {
        let Some(memfd) = region.file_offset() else {
            return false; // It cannot be lent.
        };
        is_file_lent(memfd.file())
    })
}

/// The same of what was lent of `memfd`.
pub(crate) fn is_file_lent(memfd: &File) -> bool {
    match flock(memfd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => flock(memfd, FlockOperation::Unlock).is_err(),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};

    use super::*;
    use crate::memory::{Region, map_memfd};

    const BYTES: usize = 8192;

    fn ram() -> (GuestRam, File) {
        let (_, fd) = Region::new_shared(BYTES).unwrap();
        let file = File::from(fd);
        let halves = [0, BYTES / 2].map(|start| {
            let offset = FileOffset::new(file.try_clone().unwrap(), start as u64);
            let mapping = MmapRegion::from_file(offset, BYTES / 2).unwrap();
            GuestRegionMmap::new(mapping, GuestAddress(start as u64)).unwrap()
        });
        (GuestRam::from_regions(halves.into()).unwrap(), file)
    }

    #[test]
    fn memory_is_lent_for_as_long_as_it_is_mapped() {
        let (ram, file) = ram();
        assert!(!is_lent(&ram));

        let lent = [lend(&file).unwrap(), lend(&file).unwrap()];
        assert!(is_lent(&ram), "as a descriptor");
        // As the other side does it: the descriptor goes, the mapping stays.
        let [first, second] = lent.map(|fd| map_memfd(fd, BYTES).unwrap());
        assert!(is_lent(&ram));
        drop(first);
        assert!(is_lent(&ram), "there is another");
        drop(second);

        assert!(!is_lent(&ram));
        assert!(!is_lent(&ram), "looking changes nothing");
    }
}
