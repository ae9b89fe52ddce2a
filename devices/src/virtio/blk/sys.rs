//! System calls on a disk's file that the standard library lacks.
#![expect(unsafe_code, reason = "ioctls and locks of the disk's file")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

/// `_IOR(0x12, 114, size_t)`, `include/uapi/linux/fs.h`.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
/// `_IO(0x12, 104)`
const BLKSSZGET: libc::c_ulong = 0x1268;
/// `_IO(0x12, 123)`
const BLKPBSZGET: libc::c_ulong = 0x127b;
/// `_IO(0x12, 119)`
const BLKDISCARD: libc::c_ulong = 0x1277;
/// `_IO(0x12, 127)`
const BLKZEROOUT: libc::c_ulong = 0x127f;

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Size of a block device in bytes.
pub(super) fn device_size(file: &File) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64 (64-bit `size_t`) to its argument, which `size` is.
    check(unsafe { ioctl_with_mut_ref(file, BLKGETSIZE64, &mut size) })?;
    Ok(size)
}

/// Logical and physical block size of a block device in bytes.
pub(super) fn device_block_sizes(file: &File) -> io::Result<(u32, u32)> {
    let mut logical: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes one int to its argument, which `logical` is.
    check(unsafe { ioctl_with_mut_ref(file, BLKSSZGET, &mut logical) })?;
    let mut physical: libc::c_uint = 0;
    // SAFETY: BLKPBSZGET writes one unsigned int to its argument, which `physical` is.
    check(unsafe { ioctl_with_mut_ref(file, BLKPBSZGET, &mut physical) })?;
    Ok((logical.unsigned_abs(), physical))
}

/// Discards `len` bytes at `offset` of a block device.
pub(super) fn device_discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: BLKDISCARD reads two u64, which the array is.
    check(unsafe { ioctl_with_ref(file, BLKDISCARD, &[offset, len]) })
}

/// Writes zeroes to `len` bytes at `offset` of a block device; the kernel knows the fastest way.
pub(super) fn device_zero_out(file: &File, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: BLKZEROOUT reads two u64, which the array is.
    check(unsafe { ioctl_with_ref(file, BLKZEROOUT, &[offset, len]) })
}

/// Takes a lock on the whole file that goes with the open file description: shared for readers,
/// exclusive for a writer. Fails with `EAGAIN` if another description holds a conflicting lock.
///
/// # Source
/// `fcntl_locking(2)`, "Open file description locks"; QEMU and Cloud Hypervisor take the same kind.
pub(super) fn lock(file: &File, is_exclusive: bool) -> io::Result<()> {
    let kind = if is_exclusive {
        libc::F_WRLCK
    } else {
        libc::F_RDLCK
    };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the constants are 0 to 2, the fields are shorts"
    )]
    let flock = libc::flock64 {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0, // up to the end, wherever that will be
        l_pid: 0, // must be 0 for this kind of lock
    };
    // SAFETY: F_OFD_SETLK reads one `struct flock64`, which `flock` is, and keeps no pointer.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const flock) })
}
