//! The file behind a disk: checks at opening, lock, flush, discard and zeroing.
//!
//! Called by the builder (opening) and by the device's worker (the rest). Knows nothing of virtio
//! but the sector.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::{SECTOR_BYTES, sys};

/// Bytes of zeroes per write where the file system has no quicker way.
const ZERO_CHUNK_BYTES: usize = 64 << 10;
static ZEROES: [u8; ZERO_CHUNK_BYTES] = [0; ZERO_CHUNK_BYTES];

/// Image formats that are not raw, by the bytes at an offset.
const FORMATS: [(&str, usize, &[u8]); 8] = [
    ("qcow2", 0, b"QFI\xfb"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vhdx", 0, b"vhdxfile"),
    ("vpc", 0, b"conectix"),
    ("qed", 0, b"QED\0"),
    ("vdi", 0x40, b"\x7f\x10\xda\xbe"),
];

/// Why a path cannot be a disk. The text names the remedy where there is one.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Nothing is there.
    #[error("disk {}: no such file; `truncate -s 10G {0}` makes an empty one", path.display())]
    Missing {
        /// The path as the user gave it.
        path: PathBuf,
    },
    /// The user may not even read it.
    #[error("disk {}: permission to read it denied", path.display())]
    NotReadable {
        /// The path as the user gave it.
        path: PathBuf,
    },
    /// The user may read but not write it.
    #[error("disk {}: it cannot be opened for writing; add `ro` to use it read-only", path.display())]
    NotWritable {
        /// The path as the user gave it.
        path: PathBuf,
        /// `EACCES`, `EPERM` or `EROFS`.
        source: io::Error,
    },
    /// It is a directory.
    #[error("disk {}: it is a directory, want a raw image or a block device", path.display())]
    Directory {
        /// The path as the user gave it.
        path: PathBuf,
    },
    /// It is a socket, a pipe or a character device.
    #[error("disk {}: neither a regular file nor a block device", path.display())]
    NotADisk {
        /// The path as the user gave it.
        path: PathBuf,
    },
    /// It does not hold a single sector.
    #[error("disk {}: {size_bytes} bytes, want at least {SECTOR_BYTES}", path.display())]
    TooSmall {
        /// The path as the user gave it.
        path: PathBuf,
        /// Its size in bytes.
        size_bytes: u64,
    },
    /// It is an image in a format that has structure.
    #[error(
        "disk {}: a {format} image, want a raw one; \
         `qemu-img convert -O raw {0} disk.raw` makes it",
        path.display()
    )]
    Format {
        /// The path as the user gave it.
        path: PathBuf,
        /// What qemu-img calls the format.
        format: &'static str,
    },
    /// Another VM uses it, and one of both writes.
    #[error("disk {}: in use by another VM", path.display())]
    Locked {
        /// The path as the user gave it.
        path: PathBuf,
    },
    /// The host has the block device mounted or otherwise claimed, or another VM writes to it.
    #[error("disk {}: in use by the host (mounted?) or by another VM", path.display())]
    Busy {
        /// The path as the user gave it.
        path: PathBuf,
    },
    /// The host refused to open it for another reason.
    #[error("disk {}: cannot open", path.display())]
    Open {
        /// The path as the user gave it.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// Its size, first bytes or lock could not be had.
    #[error("disk {}: cannot {action}", path.display())]
    Inspect {
        /// The path as the user gave it.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The host's answer.
        source: io::Error,
    },
}

/// An open, locked raw image or block device.
///
/// The lock ends when the disk is dropped: a writer is alone, readers share.
#[derive(Debug)]
pub struct Disk {
    file: File,
    size_bytes: u64,
    is_read_only: bool,
    is_block_device: bool,
    /// Smallest unit of addressing in bytes, a power of two of at least 512.
    logical_block_bytes: u32,
    /// Unit in which writing is cheap in bytes, a power of two of at least the logical one.
    physical_block_bytes: u32,
    can_discard: bool,
}

impl Disk {
    /// Opens and locks `path`, a raw image or a block device.
    ///
    /// # Errors
    /// [`DiskError`]; nothing stays open or locked then.
    pub fn open(path: &Path, is_read_only: bool) -> Result<Self, DiskError> {
        let owned = || path.to_owned();
        let inspect = |action| {
            move |source| DiskError::Inspect {
                path: path.to_owned(),
                action,
                source,
            }
        };
        // Before opening, because opening a pipe would wait for its other end.
        let kind = fs::metadata(path)
            .map_err(|source| open_error(path, true, source))?
            .file_type();
        let is_block_device = kind.is_block_device();
        if kind.is_dir() {
            return Err(DiskError::Directory { path: owned() });
        }
        if !kind.is_file() && !is_block_device {
            return Err(DiskError::NotADisk { path: owned() });
        }
        let mut options = OpenOptions::new();
        options.read(true).write(!is_read_only);
        if is_block_device && !is_read_only {
            // Without O_CREAT: fails if the host has the device mounted (open(2)), and keeps it from
            // mounting the device while we have it.
            options.custom_flags(libc::O_EXCL);
        }
        let file = options
            .open(path)
            .map_err(|source| open_error(path, is_read_only, source))?;
        sys::lock(&file, !is_read_only).map_err(|source| match source.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => DiskError::Locked { path: owned() },
            _ => inspect("lock it")(source),
        })?;
        let metadata = file.metadata().map_err(inspect("read its size"))?;
        let size_bytes = if is_block_device {
            sys::device_size(&file).map_err(inspect("read its size"))?
        } else {
            metadata.len()
        };
        if size_bytes < SECTOR_BYTES {
            return Err(DiskError::TooSmall {
                path: owned(),
                size_bytes,
            });
        }
        if let Some(format) = detect_format(&file).map_err(inspect("read its first sector"))? {
            return Err(DiskError::Format {
                path: owned(),
                format,
            });
        }
        let (logical, physical) = if is_block_device {
            sys::device_block_sizes(&file).map_err(inspect("read its block size"))?
        } else {
            (512, u32::try_from(metadata.blksize()).unwrap_or(512))
        };
        let logical_block_bytes = power_of_two_or(logical, 512);
        let mut disk = Disk {
            file,
            size_bytes,
            is_read_only,
            is_block_device,
            logical_block_bytes,
            physical_block_bytes: power_of_two_or(physical, logical_block_bytes),
            can_discard: false,
        };
        disk.can_discard = !is_read_only && (is_block_device || disk.probe_punch_hole());
        Ok(disk)
    }

    /// Whole sectors of [`SECTOR_BYTES`]; a partial one at the end of an image is out of reach.
    pub fn num_sectors(&self) -> u64 {
        self.size_bytes / SECTOR_BYTES
    }

    /// True if nothing may write.
    pub fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// Smallest unit of addressing in bytes, a power of two of at least 512.
    pub fn logical_block_bytes(&self) -> u32 {
        self.logical_block_bytes
    }

    /// Unit in which writing is cheap in bytes, a power of two of at least the logical one.
    pub fn physical_block_bytes(&self) -> u32 {
        self.physical_block_bytes
    }

    /// True if [`Disk::discard`] has a chance to work.
    pub fn can_discard(&self) -> bool {
        self.can_discard
    }

    /// Fills `bytes` from `offset` on.
    ///
    /// # Errors
    /// That of `pread(2)`; `UnexpectedEof` past the end of the disk.
    pub fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    /// Makes all writes that completed before durable (`fdatasync`).
    ///
    /// # Errors
    /// That of `fdatasync(2)`: written data may be lost.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives the storage behind `len` bytes at `offset` back to the host; their content is
    /// undefined (zeroes, in fact) afterwards. The range is inside the disk.
    ///
    /// # Errors
    /// That of the host; `EOPNOTSUPP` or `ENOTTY` if it has no way to do it.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        if self.is_block_device {
            return sys::device_discard(&self.file, offset, len);
        }
        self.punch_hole(offset, len)
    }

    /// Makes `len` bytes at `offset` read as zeroes, in the quickest way that the host offers; with
    /// `may_unmap`, preferably one that frees storage. The range is inside the disk.
    ///
    /// # Errors
    /// That of the host; a part of the range may be zero then.
    pub fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let quick = if self.is_block_device {
            sys::device_zero_out(&self.file, offset, len)
        } else if may_unmap && self.can_discard {
            self.punch_hole(offset, len)
        } else {
            fallocate(&self.file, FallocateMode::ZeroRange, true, offset, len).map_err(Into::into)
        };
        match quick {
            Err(error) if is_unsupported(&error) => self.write_zero_chunks(offset, len),
            result => result,
        }
    }

    fn write_zero_chunks(&self, mut offset: u64, len: u64) -> io::Result<()> {
        let end = offset.saturating_add(len);
        while offset < end {
            let left = usize::try_from(end - offset).unwrap_or(usize::MAX);
            let chunk = ZEROES.get(..left).unwrap_or(&ZEROES);
            self.file.write_all_at(chunk, offset)?;
            offset += chunk.len() as u64;
        }
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        fallocate(&self.file, FallocateMode::PunchHole, true, offset, len).map_err(Into::into)
    }

    /// Punches a hole behind the end of the image, which changes nothing.
    fn probe_punch_hole(&self) -> bool {
        self.punch_hole(self.size_bytes.next_multiple_of(1 << 20), 4096)
            .is_ok()
    }
}

impl AsRawFd for Disk {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// True if `error` says that the file system or device lacks the operation.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY)
    )
}

fn open_error(path: &Path, is_read_only: bool, source: io::Error) -> DiskError {
    let path = path.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOENT) => DiskError::Missing { path },
        Some(libc::EBUSY) => DiskError::Busy { path },
        Some(libc::EACCES | libc::EPERM) if is_read_only || File::open(&path).is_err() => {
            DiskError::NotReadable { path }
        }
        Some(libc::EACCES | libc::EPERM | libc::EROFS) if !is_read_only => {
            DiskError::NotWritable { path, source }
        }
        _ => DiskError::Open { path, source },
    }
}

fn detect_format(file: &File) -> io::Result<Option<&'static str>> {
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 0)?;
    let found = FORMATS.iter().find(|(_, offset, magic)| {
        sector
            .get(*offset..)
            .is_some_and(|rest| rest.starts_with(magic))
    });
    Ok(found.map(|(name, _, _)| *name))
}

fn power_of_two_or(value: u32, fallback: u32) -> u32 {
    if value.is_power_of_two() && value >= fallback {
        value
    } else {
        fallback
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn image(size_bytes: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size_bytes).unwrap();
        file
    }

    #[test]
    fn open_refuses_a_missing_file() {
        let dir = tempfile::tempdir().unwrap();

        let err = Disk::open(&dir.path().join("none"), true).unwrap_err();

        assert!(matches!(err, DiskError::Missing { .. }), "{err}");
    }

    #[test]
    fn open_refuses_a_directory() {
        let dir = tempfile::tempdir().unwrap();

        let err = Disk::open(dir.path(), false).unwrap_err();

        assert!(matches!(err, DiskError::Directory { .. }), "{err}");
    }

    #[test]
    fn open_refuses_a_character_device() {
        let err = Disk::open(Path::new("/dev/null"), false).unwrap_err();

        assert!(matches!(err, DiskError::NotADisk { .. }), "{err}");
    }

    #[test]
    fn open_refuses_less_than_one_sector() {
        let file = image(511);

        let err = Disk::open(file.path(), false).unwrap_err();

        assert!(
            matches!(
                err,
                DiskError::TooSmall {
                    size_bytes: 511,
                    ..
                }
            ),
            "{err}"
        );
    }

    #[test]
    fn open_refuses_qcow2() {
        let mut file = image(4096);
        file.write_all(b"QFI\xfb\0\0\0\x03").unwrap();

        let err = Disk::open(file.path(), true).unwrap_err();

        assert!(
            matches!(
                err,
                DiskError::Format {
                    format: "qcow2",
                    ..
                }
            ),
            "{err}"
        );
        assert!(err.to_string().contains("qemu-img convert -O raw"));
    }

    #[test]
    fn permission_to_write_denied_has_the_remedy() {
        // Not by opening one: root, under whom tests may run, opens everything.
        let file = image(512);
        let denied = io::Error::from_raw_os_error(libc::EACCES);

        let err = open_error(file.path(), false, denied);

        assert!(matches!(err, DiskError::NotWritable { .. }), "{err}");
        assert!(err.to_string().contains("`ro`"), "{err}");
    }

    #[test]
    fn permission_to_read_denied_is_told_apart() {
        let file = image(512);
        let denied = io::Error::from_raw_os_error(libc::EACCES);

        let err = open_error(file.path(), true, denied);

        assert!(matches!(err, DiskError::NotReadable { .. }), "{err}");
    }

    #[test]
    fn writer_excludes_everybody_else() {
        let file = image(512);
        let _writer = Disk::open(file.path(), false).unwrap();

        let second_writer = Disk::open(file.path(), false).unwrap_err();
        let reader = Disk::open(file.path(), true).unwrap_err();

        assert!(matches!(second_writer, DiskError::Locked { .. }));
        assert!(matches!(reader, DiskError::Locked { .. }));
    }

    #[test]
    fn readers_share_and_exclude_a_writer() {
        let file = image(512);
        let _reader = Disk::open(file.path(), true).unwrap();
        let _second_reader = Disk::open(file.path(), true).unwrap();

        let writer = Disk::open(file.path(), false).unwrap_err();

        assert!(matches!(writer, DiskError::Locked { .. }), "{writer}");
    }

    #[test]
    fn lock_ends_with_the_disk() {
        let file = image(512);
        drop(Disk::open(file.path(), false).unwrap());

        assert!(Disk::open(file.path(), false).is_ok());
    }

    #[test]
    fn partial_last_sector_is_out_of_reach() {
        let file = image(1025);

        assert_eq!(Disk::open(file.path(), false).unwrap().num_sectors(), 2);
    }

    #[test]
    fn zero_chunks_cover_the_range_and_nothing_else() {
        let file = image(0);
        let len = 3 * ZERO_CHUNK_BYTES;
        file.as_file().write_all_at(&vec![1; len], 0).unwrap();
        let disk = Disk::open(file.path(), false).unwrap();

        disk.write_zero_chunks(512, len as u64 - 1024).unwrap();

        let bytes = fs::read(file.path()).unwrap();
        assert_eq!(&bytes[..512], &[1; 512]);
        assert!(bytes[512..len - 512].iter().all(|byte| *byte == 0));
        assert_eq!(&bytes[len - 512..], &[1; 512]);
        assert_eq!(bytes.len(), len);
    }
}
