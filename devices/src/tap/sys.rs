//! The ioctls of interfaces and TAPs.
//!
//! Each function here is safe to call with any arguments; the kernel checks them.
#![expect(unsafe_code, reason = "ioctls")]

use std::io;
use std::os::fd::AsRawFd;

/// Bytes of an interface name with its final zero (`IFNAMSIZ`).
pub(super) const IF_NAME_BYTES: usize = 16;

/// `struct ifreq`: an interface's name and a request's argument, as plain bytes.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct IfReq {
    name: [u8; IF_NAME_BYTES],
    argument: [u8; 24],
}

const _: () = assert!(size_of::<IfReq>() == size_of::<libc::ifreq>());
const _: () = assert!(align_of::<IfReq>() == align_of::<libc::ifreq>());

impl IfReq {
    /// A request about the interface `name`; a name of 16 bytes or more is cut.
    pub(super) fn new(name: &str) -> Self {
        let mut request = IfReq::default();
        for (to, from) in request.name[..IF_NAME_BYTES - 1]
            .iter_mut()
            .zip(name.bytes())
        {
            *to = from;
        }
        request
    }

    /// Puts `bytes` (at most 24) into the argument.
    pub(super) fn with(mut self, bytes: &[u8]) -> Self {
        for (to, from) in self.argument.iter_mut().zip(bytes) {
            *to = *from;
        }
        self
    }

    /// The argument as the kernel left it.
    pub(super) fn argument(&self) -> &[u8; 24] {
        &self.argument
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// An interface ioctl (`SIOC*`, `TUNSETIFF`, `TUNSETQUEUE`): the kernel reads and writes one
/// `struct ifreq`.
pub(super) fn ioctl_ifreq(
    file: &impl AsRawFd,
    request: libc::Ioctl,
    argument: &mut IfReq,
) -> io::Result<()> {
    // SAFETY: `argument` is a live, exclusive `struct ifreq` (size and alignment are asserted
    // above), and requests of this kind touch nothing else.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_mut(argument)) })
}

/// An ioctl whose argument is a number (`TUNSETOFFLOAD`).
pub(super) fn ioctl_value(
    file: &impl AsRawFd,
    request: libc::Ioctl,
    value: libc::c_ulong,
) -> io::Result<()> {
    // SAFETY: the argument is a number, so no memory of ours is involved.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, value) })
}

/// An ioctl whose argument points to an `int` that the kernel reads (`TUNSETVNETHDRSZ`).
pub(super) fn ioctl_int(
    file: &impl AsRawFd,
    request: libc::Ioctl,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the argument is a live `int` for the whole call, and the kernel reads no more.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_ref(&value)) })
}
