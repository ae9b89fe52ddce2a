//! Faults on pages of guest RAM, served by this process instead of the kernel.
//!
//! A safe form of `userfaultfd(2)` for the mapping of one guest's RAM. The `userfaultfd` crate has no
//! write protection in what it fills, which closes the window between a refill and the next write, and
//! needs libclang to be built; so this is on the kernel's own definitions, from `linux-raw-sys`.
//!
//! # Source
//! Linux `Documentation/admin-guide/mm/userfaultfd.rst`, `include/uapi/linux/userfaultfd.h`.
#![expect(unsafe_code, reason = "ioctls of userfaultfd")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use linux_raw_sys::general::{
    UFFD_API, UFFD_EVENT_PAGEFAULT, UFFD_FEATURE_MINOR_SHMEM, UFFD_FEATURE_MISSING_SHMEM,
    UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_WP_HUGETLBFS_SHMEM, UFFD_PAGEFAULT_FLAG_MINOR,
    UFFD_PAGEFAULT_FLAG_WP, UFFD_PAGEFAULT_FLAG_WRITE, UFFDIO_COPY_MODE_WP,
    UFFDIO_REGISTER_MODE_MINOR, UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP, uffdio_api,
    uffdio_continue, uffdio_copy, uffdio_range, uffdio_register, uffdio_writeprotect,
};
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use super::host::Accesses;
use super::ram::{PAGE_BYTES, PageBytes, Ram};

const GROUP: u8 = 0xaa;
const API: Opcode = opcode::read_write::<uffdio_api>(GROUP, 0x3f);
const REGISTER: Opcode = opcode::read_write::<uffdio_register>(GROUP, 0x00);
const WAKE: Opcode = opcode::read::<uffdio_range>(GROUP, 0x02);
const COPY: Opcode = opcode::read_write::<uffdio_copy>(GROUP, 0x03);
const WRITEPROTECT: Opcode = opcode::read_write::<uffdio_writeprotect>(GROUP, 0x06);
const CONTINUE: Opcode = opcode::read_write::<uffdio_continue>(GROUP, 0x07);
/// Of `/dev/userfaultfd`.
const NEW: Opcode = opcode::none(GROUP, 0x00);

/// Bits of modes that `linux-raw-sys` does not have.
const WRITEPROTECT_MODE_WP: u64 = 1;
const CONTINUE_MODE_WP: u64 = 2;

/// Size of `struct uffd_msg`, and where its fields are.
const MESSAGE_BYTES: usize = 32;
const MESSAGE_FLAGS: usize = 8;
const MESSAGE_ADDRESS: usize = 16;
/// So many messages are read at once.
const MAX_MESSAGES: usize = 16;

/// What shared memory needs, and what it is called. All of it is there from Linux 5.19 on.
const NEEDED: [(u32, &str); 3] = [
    (UFFD_FEATURE_MISSING_SHMEM, "holes"),
    (UFFD_FEATURE_MINOR_SHMEM, "pages to be mapped"),
    (
        UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
        "write protection",
    ),
];
const REQUIRED: u64 = (NEEDED[0].0 | NEEDED[1].0 | NEEDED[2].0) as u64;

/// What of shared memory cannot be served by a kernel with these features.
pub fn missing(features: u64) -> Vec<&'static str> {
    let lacks = |bits: u32| features & u64::from(bits) != u64::from(bits);
    let missing = NEEDED.into_iter().filter(|(bits, _)| lacks(*bits));
    missing.map(|(_, name)| name).collect()
}

/// Why faults cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum UserfaultError {
    /// Faults of the kernel (KVM's) have to be served too, which takes a privilege.
    #[error(
        "no permission for userfaultfd; run as root, let your user open /dev/userfaultfd, or sysctl \
         vm.unprivileged_userfaultfd=1"
    )]
    Permission,
    /// The kernel was built without it.
    #[error("no userfaultfd in this kernel; use a host kernel with CONFIG_USERFAULTFD")]
    Missing,
    /// The kernel is older than 5.19.
    #[error(
        "userfaultfd of this kernel cannot protect shared memory (features {features:#x}); use a host \
         kernel from 5.19 on, with CONFIG_PTE_MARKER_UFFD_WP"
    )]
    Features {
        /// What it has.
        features: u64,
    },
    /// The host is out of descriptors or the like.
    #[error("cannot make a userfaultfd")]
    Create(#[source] Errno),
}

/// What an access met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// A hole of the memory file.
    Missing {
        /// It was a write.
        is_write: bool,
    },
    /// A page that is in the file and not mapped.
    Unmapped,
    /// A write to a protected page.
    Protected,
}

/// An access that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// To this page.
    pub page: u64,
    /// Why it waits.
    pub kind: FaultKind,
}

/// The faults on one guest's RAM. Nothing waits before [`Accesses::register`].
///
/// Dropping it lets everything that waits go on, with zeros in holes.
#[derive(Debug)]
pub struct Userfault {
    file: File,
    ram: Arc<Ram>,
    /// For threads of ours that wait for a page.
    lock: Mutex<()>,
    woken: Condvar,
}

/// Whether faults can be served here.
///
/// # Errors
/// [`UserfaultError`].
pub fn probe() -> Result<(), UserfaultError> {
    open().map(drop)
}

impl Userfault {
    /// For the mapping of `ram`.
    ///
    /// # Errors
    /// [`UserfaultError`].
    pub fn new(ram: Arc<Ram>) -> Result<Self, UserfaultError> {
        Ok(Userfault {
            file: File::from(open()?),
            ram,
            lock: Mutex::default(),
            woken: Condvar::new(),
        })
    }

    fn set_protection(&self, pages: Range<u64>, mode: u64) -> Result<(), Errno> {
        self.each_range(pages, |range| {
            let mut protection = uffdio_writeprotect { range, mode };
            // SAFETY:
            // - WRITEPROTECT takes a `uffdio_writeprotect`.
            // - It changes which writes to the mapping wait, and neither its place nor its bytes.
            let request = unsafe { Updater::<WRITEPROTECT, _>::new(&mut protection) };
            self.submit(request)
        })
    }

    fn fault(&self, message: &[u8; MESSAGE_BYTES]) -> Option<Fault> {
        let field = |offset: usize| {
            let bytes = message.get(offset..)?.first_chunk()?;
            Some(u64::from_ne_bytes(*bytes))
        };
        if u32::from(*message.first()?) != UFFD_EVENT_PAGEFAULT {
            return None; // no other kind is asked for
        }
        let flags = field(MESSAGE_FLAGS)?;
        let has = |flag: u32| flags & u64::from(flag) != 0;
        let kind = if has(UFFD_PAGEFAULT_FLAG_WP) {
            FaultKind::Protected
        } else if has(UFFD_PAGEFAULT_FLAG_MINOR) {
            FaultKind::Unmapped
        } else {
            FaultKind::Missing {
                is_write: has(UFFD_PAGEFAULT_FLAG_WRITE),
            }
        };
        let page = self.ram.page_at(field(MESSAGE_ADDRESS)?)?;
        Some(Fault { page, kind })
    }

    fn each_range(
        &self,
        pages: Range<u64>,
        mut act: impl FnMut(uffdio_range) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        for run in self.ram.runs(pages) {
            act(uffdio_range {
                start: self.ram.host_addr(run.start).ok_or(Errno::INVAL)?,
                len: (run.end - run.start) * PAGE_BYTES as u64,
            })?;
        }
        Ok(())
    }

    fn submit(&self, request: impl rustix::ioctl::Ioctl<Output = ()>) -> Result<(), Errno> {
        // SAFETY: the request is one of those above, made for a userfaultfd, which `file` is.
        unsafe { ioctl(&self.file, request) }
    }
}

impl Accesses for Userfault {
    fn register(&self, pages: Range<u64>) -> Result<(), Errno> {
        let mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP;
        let mode = u64::from(mode | UFFDIO_REGISTER_MODE_MINOR);
        self.each_range(pages, |range| {
            let mut register = uffdio_register {
                range,
                mode,
                ioctls: 0,
            };
            // SAFETY:
            // - REGISTER takes a `uffdio_register`.
            // - It changes which accesses to the mapping wait, and neither its place nor its bytes.
            let request = unsafe { Updater::<REGISTER, _>::new(&mut register) };
            self.submit(request)
        })
    }

    fn protect(&self, pages: Range<u64>) -> Result<(), Errno> {
        self.set_protection(pages, WRITEPROTECT_MODE_WP)
    }

    fn unprotect(&self, pages: Range<u64>) -> Result<(), Errno> {
        self.set_protection(pages, 0)
    }

    fn fill(&self, page: u64, bytes: &PageBytes, protect: bool) -> Result<bool, Errno> {
        let mut copy = uffdio_copy {
            dst: self.ram.host_addr(page).ok_or(Errno::INVAL)?,
            src: bytes.as_ptr().addr() as u64,
            len: PAGE_BYTES as u64,
            mode: if protect {
                u64::from(UFFDIO_COPY_MODE_WP)
            } else {
                0
            },
            copy: 0,
        };
        // SAFETY:
        // - COPY takes a `uffdio_copy`.
        // - It reads PAGE_BYTES of `bytes`, which are borrowed.
        // - It writes only to holes of the mapping of guest RAM, which `ram` keeps and which is only
        //   accessed in ways that allow for bytes to change.
        let request = unsafe { Updater::<COPY, _>::new(&mut copy) };
        match self.submit(request) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn map(&self, pages: Range<u64>, protect: bool) -> Result<(), Errno> {
        let mode = if protect { CONTINUE_MODE_WP } else { 0 };
        self.each_range(pages, |range| {
            let mut request = uffdio_continue {
                range,
                mode,
                mapped: 0,
            };
            // SAFETY:
            // - CONTINUE takes a `uffdio_continue`.
            // - It maps what is in the file of the mapping at that place, as a plain access would.
            let request = unsafe { Updater::<CONTINUE, _>::new(&mut request) };
            self.submit(request)
        })
    }

    fn wake(&self, page: u64) -> Result<(), Errno> {
        // With the lock: nobody is between its look and its sleep.
        drop(self.lock.lock());
        self.woken.notify_all();
        self.each_range(page..page + 1, |range| {
            // SAFETY:
            // - WAKE takes a `uffdio_range`.
            // - It changes no memory.
            let request = unsafe { Setter::<WAKE, _>::new(range) };
            self.submit(request)
        })
    }

    fn faults(&self) -> Result<Vec<Fault>, Errno> {
        let mut bytes = [0; MESSAGE_BYTES * MAX_MESSAGES];
        let len = match rustix::io::read(&self.file, &mut bytes) {
            Ok(len) => len,
            Err(Errno::AGAIN) => 0,
            Err(errno) => return Err(errno),
        };
        let (messages, _) = bytes.as_chunks::<MESSAGE_BYTES>();
        let messages = messages.iter().take(len / MESSAGE_BYTES);
        Ok(messages.filter_map(|message| self.fault(message)).collect())
    }

    fn wait_while(&self, is_waited_for: &dyn Fn() -> bool) {
        self.woken
            .wait_while(&mut self.lock.lock(), |()| is_waited_for());
    }
}

impl AsFd for Userfault {
    /// Readable when an access waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A userfaultfd with all that is required.
fn open() -> Result<OwnedFd, UserfaultError> {
    let create = || match create() {
        Err(Errno::PERM) => Err(UserfaultError::Permission),
        Err(Errno::NOSYS) => Err(UserfaultError::Missing),
        result => result.map_err(UserfaultError::Create),
    };
    // Each takes one handshake only.
    let features = handshake(create()?.as_fd(), 0).map_err(UserfaultError::Create)?;
    if features & REQUIRED != REQUIRED {
        return Err(UserfaultError::Features { features });
    }
    let fd = create()?;
    handshake(fd.as_fd(), REQUIRED).map_err(UserfaultError::Create)?;
    Ok(fd)
}

fn create() -> Result<OwnedFd, Errno> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: nothing is registered yet, so no access of anybody waits for it.
    match unsafe { userfaultfd(flags) } {
        Err(Errno::PERM) => create_by_device(flags).map_err(|_| Errno::PERM),
        result => result,
    }
}

/// For those who may open the device, whatever other privileges they have.
fn create_by_device(flags: UserfaultfdFlags) -> io::Result<OwnedFd> {
    let device = File::open("/dev/userfaultfd")?;
    // SAFETY: NEW takes flags by value and answers a new descriptor.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), NEW.into(), flags.bits()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Tells the kernel which features are `wanted`; those that it has.
fn handshake(fd: BorrowedFd<'_>, wanted: u64) -> Result<u64, Errno> {
    let mut api = uffdio_api {
        api: u64::from(UFFD_API),
        features: wanted,
        ioctls: 0,
    };
    // SAFETY: API takes a `uffdio_api`.
    let request = unsafe { Updater::<API, _>::new(&mut api) };
    // SAFETY: as above, and `fd` is a userfaultfd.
    unsafe { ioctl(fd, request) }?;
    Ok(api.features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_lacks_is_named() {
        assert!(missing(REQUIRED).is_empty());
        let no_minor = REQUIRED & !u64::from(UFFD_FEATURE_MINOR_SHMEM);
        assert_eq!(missing(no_minor), ["pages to be mapped"]);
        // Linux 5.11: protection of private memory only.
        let old = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_MISSING_SHMEM;
        let lacks = ["pages to be mapped", "write protection"];
        assert_eq!(missing(old.into()), lacks);
    }
}
