//! The initial RAM disk: a file, with our own archive appended when there is a command to run.
//!
//! The kernel unpacks concatenated archives one after the other, later files over earlier ones.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use alacrity_devices::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use crate::layout::MIB;
use crate::memory::low_end;

const PAGE_BYTES: u64 = 4096;

/// Why an initrd is refused.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// It cannot be opened or read.
    #[error("cannot read initrd {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// It does not fit behind the kernel.
    #[error("initrd {} of {} MiB does not fit into guest memory, {} MiB are free behind the kernel; raise --memory", path.display(), bytes.div_ceil(MIB), free / MIB)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Size of initrd and appended archive.
        bytes: u64,
        /// Bytes there are for it.
        free: u64,
    },
    /// The file did not arrive whole in guest RAM.
    #[error("cannot copy initrd {} into guest memory", path.display())]
    Copy {
        /// The file.
        path: PathBuf,
        /// What the copy said.
        source: vm_memory::GuestMemoryError,
    },
}

/// An open initrd.
#[derive(Debug)]
pub struct Initrd {
    path: PathBuf,
    file: File,
    file_bytes: u64,
    appended: Vec<u8>,
}

/// Where an initrd ended up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedInitrd {
    /// First GPA, page-aligned.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl Initrd {
    /// Opens `path`; `appended` is a cpio archive that follows it.
    ///
    /// # Errors
    /// [`InitrdError::Read`].
    pub fn open(path: &Path, appended: Vec<u8>) -> Result<Self, InitrdError> {
        let read_error = |source| InitrdError::Read {
            path: path.into(),
            source,
        };
        let file = File::open(path).map_err(read_error)?;
        let file_bytes = file.metadata().map_err(read_error)?.len();
        Ok(Initrd {
            path: path.into(),
            file,
            file_bytes,
            appended,
        })
    }

    /// Copies it to the top of low RAM, above `kernel_end` and not past `max`.
    ///
    /// # Errors
    /// [`InitrdError`].
    pub fn load(
        &mut self,
        ram: &GuestRam,
        kernel_end: u64,
        max: u64,
    ) -> Result<LoadedInitrd, InitrdError> {
        // An archive starts on a multiple of 4 bytes (Linux early-userspace/buffer-format.rst).
        let appended_at = self.file_bytes.next_multiple_of(4);
        let bytes = appended_at.saturating_add(self.appended.len() as u64);
        let top = low_end(ram).min(max.saturating_add(1));
        let start = top.saturating_sub(bytes) & !(PAGE_BYTES - 1);
        if start < kernel_end || bytes > top {
            return Err(InitrdError::TooLarge {
                path: self.path.clone(),
                bytes,
                free: top.saturating_sub(kernel_end),
            });
        }
        let copy_error = |source| InitrdError::Copy {
            path: self.path.clone(),
            source,
        };
        let len = usize::try_from(self.file_bytes).unwrap_or(usize::MAX);
        ram.read_exact_volatile_from(GuestAddress(start), &mut self.file, len)
            .map_err(copy_error)?;
        ram.write_slice(&self.appended, GuestAddress(start + appended_at))
            .map_err(copy_error)?;
        Ok(LoadedInitrd { start, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn initrd(bytes: &[u8], appended: &[u8]) -> Initrd {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        Initrd::open(file.path(), appended.to_vec()).unwrap()
    }

    #[test]
    fn archive_is_appended_on_a_4_byte_boundary() {
        let ram = crate::memory::allocate(64 * MIB, false).unwrap();

        let loaded = initrd(b"abcde", b"XY").load(&ram, 0, u64::MAX - 1).unwrap();

        let mut bytes = [0; 10];
        ram.read_slice(&mut bytes, GuestAddress(loaded.start))
            .unwrap();
        assert_eq!(&bytes, b"abcde\0\0\0XY");
        assert_eq!(
            loaded,
            LoadedInitrd {
                start: 64 * MIB - PAGE_BYTES,
                bytes: 10
            }
        );
    }

    #[test]
    fn initrd_that_would_overlap_the_kernel_is_refused() {
        let ram = crate::memory::allocate(64 * MIB, false).unwrap();

        let err = initrd(&[0; 8192], b"")
            .load(&ram, 64 * MIB - 4096, u64::MAX - 1)
            .unwrap_err();

        assert!(
            matches!(
                err,
                InitrdError::TooLarge {
                    bytes: 8192,
                    free: 4096,
                    ..
                }
            ),
            "{err}"
        );
    }

    #[test]
    fn initrd_stays_below_the_kernels_limit() {
        let ram = crate::memory::allocate(64 * MIB, false).unwrap();

        let loaded = initrd(&[0; 4096], b"").load(&ram, 0, 32 * MIB - 1).unwrap();

        assert_eq!(loaded.start, 32 * MIB - 4096);
    }
}
